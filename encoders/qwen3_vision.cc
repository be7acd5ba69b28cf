#include "encoders/qwen3_vision.h"

#include "encoders/position_taps.h"
#include "runtime/base/status.h"
#include "runtime/ops/ops.h"

namespace omni::encoders {

using parallel::Bias;
using parallel::Matrix;
using parallel::MediaPack;
using parallel::Scale;
using parallel::Stem;

absl::Status Read(const ConfigNode& node, Qwen3VisionConfig* out) {
  ConfigReader reader(node);
  reader.Child("kind");
  reader.Read("hidden", &out->hidden, AtLeast(1));
  reader.Read("layers", &out->layers, AtLeast(1));
  reader.Read("heads", &out->heads, AtLeast(1));
  reader.Read("ffn", &out->ffn, AtLeast(1));
  ReadPatchInput(reader, out);
  reader.Read("position_side", &out->position_side, Between(1, 4096));
  reader.Read("deepstack_layers", &out->deepstack_layers, AtLeast(0));
  reader.Read("rope_theta", &out->rope_theta, Positive());
  reader.Read("norm_eps", &out->norm_eps, Positive());
  reader.ReadStruct("init", &out->init);
  OMNI_RETURN_IF_ERROR(reader.Finish());  // the checks below divide
  OMNI_RETURN_IF_ERROR(CheckVisionTower(reader, *out, out->hidden, out->heads));
  int32_t previous = -1;
  for (const int32_t layer : out->deepstack_layers) {
    if (layer >= out->layers) {
      return reader.Error("deepstack_layers",
                          absl::StrCat("layer ", layer, " of a tower of ", out->layers, " layers"));
    }
    if (layer <= previous) {
      return reader.Error("deepstack_layers",
                          absl::StrCat("layer ", layer, " after layer ", previous,
                                       ", expected each layer once, in ascending order"));
    }
    previous = layer;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Encoder>> Qwen3Vision::Create(const ConfigNode& section,
                                                             const EncoderOptions& options) {
  Qwen3VisionConfig config;
  config.init = options.init;
  OMNI_RETURN_IF_ERROR(Read(section, &config));
  return std::make_unique<Qwen3Vision>(config, options);
}

Qwen3Vision::Qwen3Vision(const Qwen3VisionConfig& config, const EncoderOptions& options)
    : config_(config),
      output_hidden_(options.output_hidden),
      blocks_({.hidden = config.hidden,
               .layers = config.layers,
               .heads = config.heads,
               .ffn = config.ffn,
               .norm_eps = config.norm_eps,
               .gelu = GeluKind::kTanh}),
      deepstack_(config.deepstack_layers.size()) {
  const parallel::InitConfig& init = config_.init;
  const std::string& name = options.name;
  const int64_t hidden = config_.hidden, elements = config_.patch_elements();
  list_.Add(Stem(name + ".patch_embed.weight", {hidden, elements}, init.Std(elements)),
            &patch_embed_.weight);
  list_.Add(Bias(name + ".patch_embed.bias", hidden), &patch_embed_.bias);
  list_.Add(
      Stem(name + ".position_embed.weight",
           {int64_t{config_.position_side} * config_.position_side, hidden}, init.embedding_std),
      &position_embed_);
  blocks_.Declare(name + ".blocks", init, &list_);
  const int64_t merged = hidden * config_.merge * config_.merge;
  DeclareMerger(name + ".merger", hidden, &merger_);
  for (size_t i = 0; i < deepstack_.size(); ++i) {
    DeclareMerger(absl::StrCat(name, ".merger.deepstack.", i), merged, &deepstack_[i]);
  }
}

void Qwen3Vision::DeclareMerger(const std::string& path, int64_t norm_size, Merger* merger) {
  const parallel::InitConfig& init = config_.init;
  const int64_t merged = int64_t{config_.hidden} * config_.merge * config_.merge;
  list_.Add(Scale(path + ".norm.weight", norm_size), &merger->norm.weight);
  list_.Add(Bias(path + ".norm.bias", norm_size), &merger->norm.bias);
  list_.Add(Stem(path + ".fc1.weight", {merged, merged}, init.Std(merged)), &merger->fc1.weight);
  list_.Add(Bias(path + ".fc1.bias", merged), &merger->fc1.bias);
  list_.Add(
      Matrix(path + ".fc2.weight", output_hidden_, merged, init.Std(merged) * init.projector_scale),
      &merger->fc2.weight);
  list_.Add(Bias(path + ".fc2.bias", output_hidden_), &merger->fc2.bias);
}

Var Qwen3Vision::Positions(ExecContext& ctx, const MediaPack& pack, const VisionRows& rows) const {
  PositionTaps taps = MakePositionTaps(pack.items, config_.merge, config_.position_side);
  taps.taps_P4 = rows.Held(std::move(taps.taps_P4), 4);
  taps.weights_P4 = rows.Held(std::move(taps.weights_P4), 4);
  const int64_t num_patches = rows.num_patches;
  const TensorView taps_P4 = UploadNew<int32_t>(ctx, taps.taps_P4, {num_patches, 4});
  const std::vector<double> exact(taps.weights_P4.begin(), taps.weights_P4.end());
  const TensorView weights_P4 = position_embed_.value.dtype == DType::kFloat64
                                    ? UploadNew<double>(ctx, exact, {num_patches, 4})
                                    : UploadNew<float>(ctx, taps.weights_P4, {num_patches, 4});
  return InterpolateRows(ctx, position_embed_, taps_P4, weights_P4);
}

Var Qwen3Vision::Merge(ExecContext& ctx, const Merger& merger, const Var& x_PH) const {
  const int64_t hidden = config_.hidden;
  const int64_t patches_per_cell = int64_t{config_.merge} * config_.merge;
  const int64_t num_patches = x_PH.value.size(0), num_cells = num_patches / patches_per_cell;
  const auto norm = [&](const Var& x) {
    return LayerNorm(ctx, x, merger.norm.weight, &merger.norm.bias, config_.norm_eps);
  };
  const auto cells = [&](const Var& x) {
    return Reshape(ctx, x, {num_cells, patches_per_cell * hidden});
  };
  const bool norms_patches = merger.norm.weight.value.size(0) == hidden;
  const Var merged = norms_patches ? cells(norm(x_PH)) : norm(cells(x_PH));
  const Var inner = Gelu(ctx, Linear(ctx, merged, merger.fc1.weight, &merger.fc1.bias));
  return Linear(ctx, inner, merger.fc2.weight, &merger.fc2.bias);
}

EncoderOutput Qwen3Vision::Encode(ExecContext& ctx, const MediaPack& pack,
                                  const EncodeOptions& options) const {
  const DType dtype = patch_embed_.weight.value.dtype;
  if (pack.items.empty()) return NoRows(ctx, dtype, output_hidden_);
  const VisionRows rows = MakeVisionRows(pack.items, config_.merge, 0, options.shard);
  const RopeTable rope = MakePatchRope(ctx, rows, config_.head_dim(), config_.rope_theta, dtype);
  const Var patches_PI{.value = UploadPatches(ctx, pack, config_, rows, dtype)};
  const Var stem_PH = PatchEmbed(ctx, patches_PI, patch_embed_.weight, &patch_embed_.bias);
  const Var positions_PH = Positions(ctx, pack, rows);
  const std::vector<Var> states_PH = blocks_.Forward(ctx, {.x_PH = stem_PH,
                                                           .positions_PH = &positions_PH,
                                                           .attention = rows.frames,
                                                           .rope = &rope,
                                                           .recompute = options.recompute});
  EncoderOutput output;
  for (size_t i = 0; i < deepstack_.size(); ++i) {
    output.deepstack_RH.push_back(
        Merge(ctx, deepstack_[i], states_PH[config_.deepstack_layers[i]]));
  }
  output.rows_RH = Merge(ctx, merger_, states_PH.back());
  return output;
}

FlopCount Qwen3Vision::Flops(absl::Span<const parallel::MediaItem> items) const {
  FlopCounter counter(/*input_wants_grad=*/false);
  const VisionWork work = CountVisionWork(items, config_.merge, 0);
  counter.Linear(work.patches, patch_embed_.weight);
  counter.Vector(position_embed_);
  blocks_.CountFlops(work.patches, work.frame_pairs, &counter);
  // A DeepStack merger's input wants a gradient if anything before it is trained; counted as if
  // that were anything at all in the tower, which is how modules are frozen.
  FlopCount total = counter.count();
  const auto count_merger = [&](const Merger& merger) {
    FlopCounter own(counter.wants_grad());
    own.Vector(merger.norm.weight);
    own.Linear(work.cells, merger.fc1.weight);
    own.Linear(work.cells, merger.fc2.weight);
    total += own.count();
  };
  for (const Merger& merger : deepstack_) count_merger(merger);
  count_merger(merger_);
  return total;
}

}  // namespace omni::encoders
