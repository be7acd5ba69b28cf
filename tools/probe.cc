#include "tools/probe.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>

#include "dataloader/loader.h"
#include "runtime/base/status.h"
#include "runtime/checkpoint/safetensors.h"
#include "runtime/ops/copy.h"
#include "tools/loaded_model.h"
#include "tools/one_sample.h"
#include "trainer/huggingface/pretrained.h"

namespace omni::tools {
namespace {

using dataloader::Microbatch;
using parallel::MediaPack;

// Host tensors by name, written together at the end.
class Report {
 public:
  void Add(const std::string& name, std::vector<float> values, std::vector<int64_t> shape) {
    AddBytes(name, values.data(), DType::kFloat32, std::move(shape));
  }
  void Add(const std::string& name, const std::vector<int32_t>& values,
           std::vector<int64_t> shape) {
    AddBytes(name, values.data(), DType::kInt32, std::move(shape));
  }
  absl::Status Write(const std::string& path) const {
    std::vector<std::pair<std::string, TensorView>> tensors;
    for (const auto& [name, tensor] : tensors_) {
      tensors.emplace_back(name, TensorView::Dense(const_cast<std::byte*>(tensor.bytes.data()),
                                                   tensor.dtype, DeviceKind::kCpu, tensor.shape));
    }
    return WriteSafetensors(path, tensors, {{"made_by", "omnitrain probe"}});
  }

 private:
  struct Tensor {
    DType dtype;
    std::vector<int64_t> shape;
    std::vector<std::byte> bytes;
  };
  void AddBytes(const std::string& name, const void* data, DType dtype,
                std::vector<int64_t> shape) {
    int64_t bytes = SizeOf(dtype);
    for (const int64_t size : shape) bytes *= size;
    Tensor tensor{dtype, std::move(shape), std::vector<std::byte>(bytes)};
    if (bytes > 0) std::memcpy(tensor.bytes.data(), data, bytes);
    tensors_[name] = std::move(tensor);
  }
  std::map<std::string, Tensor> tensors_;
};

std::vector<float> ReadFloats(ExecContext& ctx, const TensorView& view) {
  if (view.num_elements() == 0) return {};
  TensorArena arena(ctx.device);
  ExecContext plain{.device = ctx.device, .stream = ctx.stream, .arena = &arena};
  const TensorView wide = plain.New(DType::kFloat32, view.shape());
  CopyTo(plain, view, wide);
  return HostRead<float>(plain, wide);
}

// Bytes as the tower sees them: (x / 255 - mean) / std by channel.
void AddVision(const MediaPack& pack, const encoders::InputGeometry& geometry, Report* report) {
  const auto per_channel = pack.row_elements / static_cast<int64_t>(geometry.mean.size());
  std::vector<float> pixels(pack.payload.size());
  for (size_t i = 0; i < pixels.size(); ++i) {
    const size_t channel = i % pack.row_elements / per_channel;
    pixels[i] = static_cast<float>((pack.payload[i] / 255.0 - geometry.mean[channel]) /
                                   geometry.std[channel]);
  }
  std::vector<int32_t> grids;
  for (const parallel::MediaItem& item : pack.items) {
    grids.insert(grids.end(), {item.t, item.h, item.w});
  }
  report->Add("vision.pixel_values", std::move(pixels), {pack.num_rows(), pack.row_elements});
  report->Add("vision.grid_thw", grids, {static_cast<int64_t>(pack.items.size()), 3});
}

void AddAudio(const MediaPack& pack, Report* report) {
  std::vector<float> frames(pack.payload.size() / sizeof(float));
  std::memcpy(frames.data(), pack.payload.data(), pack.payload.size());
  std::vector<int32_t> lengths;
  for (const parallel::MediaItem& item : pack.items) lengths.push_back(item.t);
  report->Add("audio.input_features", std::move(frames), {pack.num_rows(), pack.row_elements});
  report->Add("audio.feature_lengths", lengths, {static_cast<int64_t>(lengths.size())});
}

void AddInputs(const trainer::MultimodalModel& model, const Microbatch& microbatch,
               Report* report) {
  const parallel::TokenPack& tokens = microbatch.tokens;
  const int64_t num_tokens = tokens.num_tokens();
  report->Add("input_ids", tokens.token_ids, {num_tokens});
  report->Add("targets", tokens.targets, {num_tokens});
  report->Add("position_ids", tokens.positions, {3, num_tokens});
  for (const auto& [name, pack] : microbatch.media) {
    if (pack.items.empty()) continue;
    const encoders::InputGeometry geometry = model.encoder(name)->geometry();
    if (geometry.patch > 0) {
      AddVision(pack, geometry, report);
    } else {
      AddAudio(pack, report);
    }
  }
}

// Of every parameter whose gradient is not all zero, under the checkpoint's names if it has some.
void AddGradients(ExecContext& ctx, trainer::Trainer& trainer,
                  const std::optional<trainer::TensorMap>& map, Report* report) {
  const parallel::ParameterStore store =
      trainer.storage().Store([](const std::string&) { return true; });
  std::map<std::string, std::vector<float>> by_path;
  for (const parallel::ParameterSpec& spec : trainer.model().Parameters()) {
    const Weight& weight = store.Get(spec.path);
    if (!weight.trainable()) continue;
    std::vector<float> values = ReadFloats(ctx, weight.grad);
    if (std::all_of(values.begin(), values.end(), [](float v) { return v == 0; })) continue;
    if (map.has_value()) {
      by_path[spec.path] = std::move(values);
    } else {
      report->Add("grad." + spec.path, std::move(values), spec.shape);
    }
  }
  if (!map.has_value()) return;
  for (const trainer::MappedTensor& tensor : map->tensors()) {
    const auto found = by_path.find(tensor.path);
    if (found == by_path.end()) continue;
    std::vector<float> theirs(tensor.num_elements());
    ToTheirLayout(tensor, sizeof(float), found->second.data() + tensor.begin, theirs.data());
    report->Add("grad." + tensor.name, std::move(theirs), tensor.shape);
  }
}

}  // namespace

absl::Status Probe(const ProbeOptions& options) {
  // As the other framework's template writes a conversation, and its tokenizer reads it.
  std::vector<std::string> overrides = {"data.text_has_specials=true"};
  overrides.insert(overrides.end(), options.overrides.begin(), options.overrides.end());
  OMNI_ASSIGN_OR_RETURN(trainer::Recipe recipe,
                        RecipeFor(options.model, options.conversation, overrides));
  recipe.data.ends_last_turn = true;
  OMNI_ASSIGN_OR_RETURN(const auto planner, dataloader::OpenSources(recipe.data));
  OMNI_ASSIGN_OR_RETURN(const OneSample sample, LoadOneSample(*planner, 0));
  OMNI_ASSIGN_OR_RETURN(const auto loaded,
                        LoadedModel::Load(recipe, options.model, options.gradients));
  std::optional<trainer::TensorMap> map;
  if (!recipe.pretrained.empty()) {
    OMNI_ASSIGN_OR_RETURN(const auto pretrained, trainer::PretrainedModel::Open(recipe.pretrained));
    map = pretrained->family().tensors;
  }

  Report report;
  const Microbatch& microbatch = sample.microbatch;
  AddInputs(loaded->model(), microbatch, &report);
  trainer::Trainer& trainer = loaded->trainer();
  Device& device = trainer.device();
  const std::unique_ptr<Stream> stream = device.NewStream();
  Tape tape(device);
  {
    TensorArena arena(device);
    ExecContext ctx{.device = device, .stream = *stream, .arena = &arena};
    const TensorView logits = loaded->model().Logits(ctx, microbatch.tokens, microbatch.media);
    report.Add("logits", ReadFloats(ctx, logits), {logits.size(0), logits.size(1)});
  }
  const parallel::LossScales scales{
      .loss_token = 1.0 / static_cast<double>(microbatch.loss_tokens),
      .token = 1.0 / static_cast<double>(microbatch.tokens.num_tokens()),
      .lane = 1.0};
  TensorArena arena(device);
  ExecContext ctx{.device = device, .stream = *stream, .arena = &arena};
  trainer::MicrobatchResult result;
  if (options.gradients) {
    ExecContext recording{.device = device, .stream = *stream, .tape = &tape};
    result =
        loaded->model().ForwardBackward(recording, microbatch.tokens, microbatch.media, scales);
  } else {
    result = loaded->model().ForwardMicrobatch(ctx, microbatch.tokens, microbatch.media, scales);
  }
  const std::vector<float> token_loss = ReadFloats(ctx, result.loss.value);
  double loss = token_loss.empty() ? 0.0 : token_loss[0];
  for (const backbone::AuxiliaryLoss& auxiliary : result.auxiliary) {
    loss += auxiliary.coefficient * ReadFloats(ctx, auxiliary.value.value)[0];
  }
  report.Add("token_loss", token_loss, {static_cast<int64_t>(token_loss.size())});
  report.Add("loss", std::vector<float>{static_cast<float>(loss)}, {1});
  report.Add("losses", ReadFloats(ctx, result.losses_T), {microbatch.tokens.num_tokens()});
  if (options.gradients) AddGradients(ctx, trainer, map, &report);
  return report.Write(options.out);
}

}  // namespace omni::tools
