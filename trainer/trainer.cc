// Building a rank and the outer loop; a step is in trainer_step.cc, saving in trainer_save.cc.
#include "trainer/trainer.h"

#include <algorithm>
#include <filesystem>

#include "runtime/base/status.h"
#include "runtime/comm/host_staged.h"
#include "runtime/comm/nccl_communicator.h"
#include "runtime/device/cuda_device/cuda_device.h"
#include "runtime/device/work_count.h"
#include "runtime/ops/copy.h"
#include "trainer/pipeline/model_slice.h"
#include "trainer/report/read_metrics.h"

namespace omni::trainer {

absl::StatusOr<std::unique_ptr<Trainer>> Trainer::Create(TrainerOptions options) {
  OMNI_CHECK(options.kernels != nullptr);
  std::unique_ptr<Trainer> trainer(new Trainer(std::move(options)));
  if (trainer->options_.link == nullptr) trainer->options_.link = &trainer->silent_link_;
  const WorkCount count(trainer->progress_);
  OMNI_RETURN_IF_ERROR(trainer->Build());
  OMNI_RETURN_IF_ERROR(trainer->Resume());
  if (trainer->options_.trains) OMNI_RETURN_IF_ERROR(trainer->TellMemory());
  return trainer;
}

Trainer::~Trainer() {
  if (options_.comm != nullptr) options_.comm->SetInputStream(nullptr);
}

void Trainer::SetPhase(const char* phase) {
  options_.link->SetProgress(step_, phase);
  BeginActivity(phase);
}

void Trainer::BeginActivity(absl::string_view what) {
  if (options_.comm != nullptr) {
    options_.comm->SetActivity(absl::StrCat("step ", step_ + 1, ", ", what));
  }
  const FaultConfig& fault = options_.recipe.runtime.fault;
  if (fault.Strikes(rank(), step_ + 1, what)) {
    Strike(fault.kind, what, options_.comm, options_.log);
  }
}

absl::Status Trainer::Build() {
  SetPhase("building the model");
  const Recipe& recipe = options_.recipe;
  modules_ = recipe.modules();
  encoders::EncoderRegistry registry;
  encoders::RegisterEncoders(registry);
  OMNI_ASSIGN_OR_RETURN(costs_, MultimodalModel::Create(recipe.model, registry));
  layout_ = LayoutFor(*costs_);
  const std::vector<backbone::DecoderPart> parts = PartsOf(*layout_, rank());
  OMNI_ASSIGN_OR_RETURN(model_, MultimodalModel::Create(recipe.model, registry, parts));
  OMNI_ASSIGN_OR_RETURN(
      device_, Device::Create({.kind = recipe.runtime.device,
                               .reserved_bytes = recipe.plan_options().reserved_bytes,
                               .num_threads = recipe.runtime.threads,
                               .index = options_.local_rank,
                               .delay_seed = recipe.training.seed + static_cast<uint64_t>(rank()),
                               .kernels = options_.kernels}));
  if (!recipe.pretrained.empty()) {
    OMNI_ASSIGN_OR_RETURN(pretrained_, PretrainedModel::Open(recipe.pretrained));
    for (const MappedTensor& tensor : pretrained_->family().tensors.tensors()) {
      given_.insert(tensor.path);
    }
  }
  stream_ = device_->NewStream();
  if (options_.comm != nullptr) {
    if (!IsHostMemory(device_->kind())) {
      OMNI_ASSIGN_OR_RETURN(gpu_comm_, ConnectGpus());
      options_.comm = gpu_comm_.get();
    }
    options_.comm->SetInputStream(stream_.get());
  }
  arena_ = std::make_unique<TensorArena>(*device_);
  OMNI_RETURN_IF_ERROR(BuildGroups());
  ExecContext ctx{.device = *device_, .stream = *stream_, .tape = nullptr, .arena = arena_.get()};
  const std::vector<parallel::Placement> placements = PlacementsOf(*model_, *layout_, rank());
  model_->CutLora(placements);
  std::set<std::string> here;
  for (const parallel::Placement& placement : placements) here.insert(placement.spec.path);
  std::vector<parallel::ParameterSpec> elsewhere;
  for (parallel::ParameterSpec& spec : costs_->Parameters()) {
    if (here.count(spec.path) == 0) elsewhere.push_back(std::move(spec));
  }
  storage_ = parallel::FlatStorage::Create(
      ctx, placements,
      {.dtype = recipe.training.dtype,
       .num_ranks = groups_->placement().ranks(),
       .seed = recipe.training.seed,
       .module_of = [&](const std::string& path) { return model_->ModuleOf(path); },
       .rule_of =
           [&](const parallel::ParameterSpec& s) { return recipe.training.optimizer.RuleOf(s); },
       .ever_trained =
           [&](const std::string& module) {
             return options_.gradients && modules_.EverTrained(module, recipe.training.steps);
           },
       .gradients_in_turn = recipe.parallel.schedule != parallel::ScheduleKind::kZbH1 &&
                            recipe.parallel.schedule != parallel::ScheduleKind::kZbV,
       .is_given = [&](const std::string& path) { return given_.count(path) > 0; },
       .elsewhere = std::move(elsewhere),
       .shardings = groups_->placement().shardings});
  weights_ = std::make_unique<parallel::ShardedWeights>(*storage_, groups_->placement());
  for (const auto& [name, encoder] : costs_->encoders()) {
    encoder->Bind(storage_->Store([](const std::string&) { return false; }));
  }
  optimizer_ = std::make_unique<ShardedOptimizer>(ctx, *storage_, groups_->placement(),
                                                  recipe.training.optimizer, limits().step);
  routers_ =
      std::make_unique<RouterBalance>(ctx, model_->decoder().config(), recipe.training.dtype);
  model_->BindSelectionBias(routers_->bias_LE());
  executor_ = std::make_unique<Executor>(executor_options());
  if (options_.run_dir.empty() || !options_.trains) return absl::OkStatus();
  return BuildKeeper();
}

// Over NCCL, or over host memory, whichever the recipe asks for; by itself over NCCL between GPUs.
absl::StatusOr<std::unique_ptr<Communicator>> Trainer::ConnectGpus() {
  GpuComm wanted = options_.recipe.runtime.gpu_comm;
  if (wanted == GpuComm::kAuto) {
    const bool has_nccl = device_->kind() == DeviceKind::kCuda && NcclOf(*device_) != nullptr;
    wanted = has_nccl && world() > 1 ? GpuComm::kNccl : GpuComm::kHost;
  }
  if (wanted == GpuComm::kHost) return StageOnHost(options_.comm, device_.get());
  auto nccl = ConnectNccl(options_.comm, device_.get(), {.stall = 10 * limits().step});
  if (!nccl.ok()) return Annotate(nccl.status(), "runtime.gpu_comm");
  return *std::move(nccl);
}

// A rank by itself has all of the model, whatever layout the recipe wishes for a job.
parallel::Layout Trainer::LayoutFor(const MultimodalModel& whole) const {
  if (options_.recipe.parallel.workers == world()) return options_.recipe.layout(whole);
  std::vector<std::string> encoders;
  for (const auto& [name, encoder] : whole.encoders()) encoders.push_back(name);
  return parallel::Layout::Alone(whole.decoder().config().shape(), encoders);
}

absl::Status Trainer::BuildGroups() {
  std::vector<int32_t> heads;
  data_layout_ = parallel::DataLayout::Of(*layout_);
  for (size_t e = 0; e < model_->encoders().size(); ++e) {
    const encoders::Encoder& encoder = *model_->encoders()[e].second;
    heads.push_back(encoder.sequence_heads());
    data_layout_.encoders[e].unit = encoder.geometry().unit;
  }
  // With those the data name and the model lacks, which will have no items.
  data_layout_ = dataloader::NameEncoders(std::move(data_layout_), options_.recipe.data);
  OMNI_ASSIGN_OR_RETURN(groups_, RankGroups::Create(options_.comm, *layout_, heads, *stream_));
  return absl::OkStatus();
}

ExecutorOptions Trainer::executor_options() {
  return {.device = *device_,
          .stream = *stream_,
          .model = *model_,
          .layout = *layout_,
          .data = data_layout_,
          .groups = *groups_,
          .rank = rank(),
          .dtype = options_.recipe.training.dtype,
          .deadline = limits().step,
          .trace = &trace_,
          .weights = weights_.get()};
}

void Trainer::Bind() {
  model_->Bind(storage_->Store(
      [&](const std::string& module) { return !modules_.At(module, step_).frozen; }));
}

absl::Status Trainer::AllReduce(std::vector<double>* values, ReduceOp op) {
  if (world() == 1) return absl::OkStatus();
  TensorArena arena(*device_);
  ExecContext ctx{.device = *device_, .stream = *stream_, .tape = nullptr, .arena = &arena};
  const TensorView view = UploadNew<double>(ctx, *values, {static_cast<int64_t>(values->size())});
  OMNI_RETURN_IF_ERROR(stream_->Synchronize());
  OMNI_RETURN_IF_ERROR(options_.comm->AllReduce(view, op)->WaitHost(limits().step));
  *values = HostRead<double>(ctx, view);
  return absl::OkStatus();
}

absl::Status Trainer::Run() {
  OMNI_ASSIGN_OR_RETURN(bool owes_evaluation, OwesEvaluation());
  const char* end = finished() && !owes_evaluation ? kAlreadyFinished : kFinished;
  // A stop cuts it short, on all ranks at the same microbatch; the next start makes up for it.
  const auto evaluate = [&]() -> absl::Status {
    const absl::Status status = EvaluateAndReport();
    owes_evaluation = absl::IsCancelled(status);
    stopping_ = stopping_ || owes_evaluation;
    return owes_evaluation ? absl::OkStatus() : status;
  };
  if (owes_evaluation) {
    if (rank() == 0) {
      options_.link->Notice(
          "info", absl::StrCat("evaluating step ", step_, ", which an earlier start left out"));
    }
    OMNI_RETURN_IF_ERROR(evaluate());
  }
  while (!finished()) {
    const auto values = RunStep();
    if (absl::IsCancelled(values.status())) {  // on all ranks: a stop found some without data
      stopping_ = true;
      save_owed_ = step_ > 0;
      OMNI_RETURN_IF_ERROR(SaveIfOwed());
      break;
    }
    if (!values.ok()) return EndForData(values.status());
    if (rank() == 0) options_.link->ReportStep(step_, *values);
    const int64_t every = options_.recipe.training.checkpoint.every;
    save_owed_ |= finished() || (every > 0 && step_ % every == 0);
    OMNI_RETURN_IF_ERROR(SaveIfOwed());
    if (!EvaluationIsDue()) continue;
    owes_evaluation = stopping_;
    if (!stopping_) OMNI_RETURN_IF_ERROR(evaluate());
    save_owed_ |= stopping_;
    OMNI_RETURN_IF_ERROR(SaveIfOwed());
  }
  if (rank() == 0) TellLeftOut();
  SetPhase("saving");
  OMNI_RETURN_IF_ERROR(FinishSave());
  if (keeper_ != nullptr) keeper_->FinishChores();
  const int64_t saved = keeper_ == nullptr ? step_ : keeper_->saved_step();
  // A stop before the first step leaves nothing to save.
  if (saved == step_ || (stopping_ && step_ == 0)) {
    const bool stopped = owes_evaluation || step_ < options_.recipe.training.steps;
    if (rank() == 0) options_.link->Notice(stopped ? kStopped : end, absl::StrCat(step_));
    return absl::OkStatus();
  }
  const std::string newest =
      saved < 0 ? "there is none" : absl::StrCat("the newest is of step ", saved);
  if (skipped_in_a_row_ > 0) {
    return absl::DataLossError(absl::StrCat("gradients were not finite in the last ",
                                            skipped_in_a_row_, " steps, so step ", step_,
                                            " was not saved as a checkpoint; ", newest));
  }
  // The warning has said why; a run that ended well has its last state on disk.
  return absl::ResourceExhaustedError(
      absl::StrCat("the last checkpoint, of step ", step_, ", was not saved; ", newest));
}

bool Trainer::EvaluationIsDue() const {
  const TrainingConfig& training = options_.recipe.training;
  if (options_.recipe.data.eval.empty() || step_ == 0) return false;
  if (step_ >= training.steps) return training.eval_at_end;
  return training.eval_every > 0 && step_ % training.eval_every == 0;
}

absl::StatusOr<bool> Trainer::OwesEvaluation() {
  if (!EvaluationIsDue() || options_.run_dir.empty()) return false;
  std::vector<double> owed = {0.0};
  if (rank() == 0 && !HasEvaluation(options_.run_dir + "/metrics.jsonl", step_)) owed[0] = 1.0;
  OMNI_RETURN_IF_ERROR(AllReduce(&owed, ReduceOp::kSum));
  return owed[0] > 0;
}

absl::Status Trainer::EvaluateAndReport() {
  SetPhase("evaluating");
  const auto scores = RunEvaluation(dataloader::Blind::kNone);
  if (!scores.ok()) {
    FinishSave().IgnoreError();  // of a step that is done; fails at once if a rank is gone
    return scores.status();
  }
  if (rank() == 0) {
    options_.link->Notice("evaluation", FormatScores(*scores, absl::StrCat("step ", step_)));
    options_.link->ReportStep(step_, ScoreValues(*scores));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<SourceScore>> Trainer::RunEvaluation(dataloader::Blind blind) {
  const WorkCount count(progress_);
  return Evaluate(executor_options(), options_.recipe.data, options_.comm,
                  {.blind = blind,
                   .storage = NewStorage(),
                   .log = options_.log,
                   .limits = limits(),
                   .progress = progress_.get(),
                   .stops = [this] { return options_.link->stop_requested(); }});
}

std::vector<TensorRange> Trainer::StateRanges() {
  ExecContext ctx{.device = *device_, .stream = *stream_, .tape = nullptr, .arena = arena_.get()};
  std::vector<TensorRange> ranges = optimizer_->StateRanges(ctx);
  if (rank() == 0) {  // what all ranks hold
    for (TensorRange& range : routers_->StateRanges()) ranges.push_back(std::move(range));
  }
  return ranges;
}

std::vector<double> Trainer::ReadParameter(const std::string& path) {
  TensorArena arena(*device_);
  ExecContext ctx{.device = *device_, .stream = *stream_, .tape = nullptr, .arena = &arena};
  const TensorView value =
      storage_->Store([](const std::string&) { return false; }).Get(path).value;
  const TensorView wide = ctx.New(DType::kFloat64, value.shape());
  CopyTo(ctx, value, wide);
  return HostRead<double>(ctx, wide);
}

}  // namespace omni::trainer
