// What running a step as a Program costs on one rank: the executor against the plain loop (encode,
// decode, back, microbatch by microbatch), on the quickstart's model and data, alternating.
//
//   executor_bench [--steps=N] [--runs=N] [--scale=S]
//
// Prints for each step's batch the medians of both and their ratio, and last the median ratio.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "dataloader/loader.h"
#include "runtime/base/status.h"
#include "tools/data_make.h"
#include "trainer/pipeline/executor.h"
#include "trainer/recipe.h"

namespace omni::trainer {
namespace {

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct Options {
  int32_t steps = 3, runs = 9;
  double scale = 0.02;  // of the quickstart's data
};

class Bench {
 public:
  absl::Status Build(const Recipe& recipe) {
    RegisterCpuKernels(kernels_);
    encoders::EncoderRegistry registry;
    encoders::RegisterEncoders(registry);
    OMNI_ASSIGN_OR_RETURN(model_, MultimodalModel::Create(recipe.model, registry));
    OMNI_ASSIGN_OR_RETURN(device_, Device::Create({.kind = DeviceKind::kCpu,
                                                   .reserved_bytes = int64_t{4} << 30,
                                                   .num_threads = 1,
                                                   .kernels = &kernels_}));
    stream_ = device_->NewStream();
    layout_.emplace(recipe.layout(*model_));
    data_ = dataloader::NameEncoders(parallel::DataLayout::Of(*layout_), recipe.data);
    const std::vector<int32_t> heads(model_->encoders().size(), 1);
    OMNI_ASSIGN_OR_RETURN(groups_, RankGroups::Create(nullptr, *layout_, heads, *stream_));
    TensorArena arena(*device_);
    ExecContext ctx{.device = *device_, .stream = *stream_, .arena = &arena};
    storage_ = parallel::FlatStorage::Create(
        ctx, model_->Parameters(),
        {.dtype = recipe.training.dtype,
         .seed = 1,
         .module_of = [&](const std::string& path) { return model_->ModuleOf(path); },
         .rule_of =
             [&](const parallel::ParameterSpec& s) { return recipe.training.optimizer.RuleOf(s); },
         .ever_trained = [](const std::string&) { return true; }});
    model_->Bind(storage_->Store([](const std::string&) { return true; }));
    executor_ = std::make_unique<Executor>(ExecutorOptions{.device = *device_,
                                                           .stream = *stream_,
                                                           .model = *model_,
                                                           .layout = *layout_,
                                                           .data = data_,
                                                           .groups = *groups_,
                                                           .dtype = recipe.training.dtype,
                                                           .deadline = absl::Minutes(1)});
    tape_ = std::make_unique<Tape>(*device_);
    OMNI_ASSIGN_OR_RETURN(auto sources, dataloader::OpenSources(recipe.data));
    OMNI_ASSIGN_OR_RETURN(loader_,
                          dataloader::Loader::Create(std::move(sources), {.data = data_}));
    return absl::OkStatus();
  }

  absl::Status Run(const Options& options) {
    std::vector<double> ratios;
    for (int32_t step = 0; step < options.steps; ++step) {
      OMNI_ASSIGN_OR_RETURN(const dataloader::StepBatch batch, loader_->Next(absl::Minutes(1)));
      dataloader::StepBatch moved = batch;
      dataloader::MoveMediaIntoMicrobatches(&moved);
      const parallel::LossScales scales = {
          .loss_token = 1.0 / static_cast<double>(batch.global_loss_tokens)};
      std::vector<double> plain, program;
      for (int32_t run = 0; run < options.runs + 1; ++run) {
        const absl::Time begin = absl::Now();
        RunPlain(moved, scales);
        const absl::Time middle = absl::Now();
        OMNI_RETURN_IF_ERROR(RunProgram(batch, scales));
        const absl::Time end = absl::Now();
        if (run == 0) continue;  // warms up
        plain.push_back(absl::ToDoubleMilliseconds(middle - begin));
        program.push_back(absl::ToDoubleMilliseconds(end - middle));
      }
      ratios.push_back(Median(program) / Median(plain));
      std::printf("step %d, %d microbatches: plain %.2f ms, program %.2f ms, ratio %.4f\n", step,
                  static_cast<int>(batch.microbatches.size()), Median(plain), Median(program),
                  ratios.back());
    }
    std::printf("median ratio %.4f\n", Median(ratios));
    return absl::OkStatus();
  }

 private:
  void RunPlain(const dataloader::StepBatch& batch, const parallel::LossScales& scales) {
    ExecContext ctx{.device = *device_, .stream = *stream_, .tape = tape_.get()};
    for (const dataloader::Microbatch& microbatch : batch.microbatches) {
      if (microbatch.tokens.num_tokens() == 0) continue;
      const MicrobatchResult result =
          model_->ForwardBackward(ctx, microbatch.tokens, microbatch.media, scales);
      HostRead<float>(ctx, result.losses_T);
    }
    tape_->Reset();
  }

  absl::Status RunProgram(const dataloader::StepBatch& batch, const parallel::LossScales& scales) {
    const std::vector<bool> trains(model_->encoders().size(), true);
    const parallel::Program program = BuildProgram(
        layout_->Schedule(static_cast<int32_t>(batch.microbatches.size()), trains), 0);
    return executor_->Run(
        program, {.batch = batch,
                  .scales = scales,
                  .trained = {.encoders = trains, .embedding = true, .decoder = true},
                  .on_losses = [](int32_t, absl::Span<const int32_t>, const std::vector<double>&,
                                  const std::vector<int32_t>&) {},
                  .on_end = [](const parallel::Action&) { return absl::OkStatus(); }});
  }

  KernelRegistry kernels_;
  std::unique_ptr<MultimodalModel> model_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
  std::optional<parallel::Layout> layout_;
  parallel::DataLayout data_;
  std::unique_ptr<RankGroups> groups_;
  std::unique_ptr<parallel::FlatStorage> storage_;
  std::unique_ptr<Tape> tape_;
  std::unique_ptr<Executor> executor_;
  std::unique_ptr<dataloader::Loader> loader_;
};

absl::Status Main(const Options& options) {
  const std::string folder = absl::StrCat("/tmp/executor-bench-", getpid());
  OMNI_RETURN_IF_ERROR(
      tools::MakeQuickstartData({.out = folder + "/data/quickstart", .scale = options.scale}));
  std::filesystem::current_path(folder);
  OMNI_ASSIGN_OR_RETURN(const Recipe recipe,
                        LoadRecipe(OMNI_SOURCE_DIR "/deploy/recipes/quickstart.yaml",
                                   {"parallel.workers=1", "runtime.threads=1"}));
  absl::Status status;
  {
    Bench bench;
    status = bench.Build(recipe);
    if (status.ok()) status = bench.Run(options);
  }
  std::filesystem::current_path("/");
  std::filesystem::remove_all(folder);
  return status;
}

}  // namespace
}  // namespace omni::trainer

int main(int argc, char** argv) {
  omni::trainer::Options options;
  for (int i = 1; i < argc; ++i) {
    const std::pair<std::string, std::string> option =
        absl::StrSplit(argv[i], absl::MaxSplits('=', 1));
    const bool is_read = option.first == "--steps"  ? absl::SimpleAtoi(option.second, &options.steps)
                         : option.first == "--runs" ? absl::SimpleAtoi(option.second, &options.runs)
                         : option.first == "--scale"
                             ? absl::SimpleAtod(option.second, &options.scale)
                             : false;
    if (!is_read) {
      std::fprintf(stderr, "executor_bench [--steps=N] [--runs=N] [--scale=S], found %s\n", argv[i]);
      return 2;
    }
  }
  const absl::Status status = omni::trainer::Main(options);
  if (status.ok()) return 0;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return 1;
}
