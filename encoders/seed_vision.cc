#include "encoders/seed_vision.h"

#include "runtime/base/status.h"
#include "runtime/ops/ops.h"

namespace omni::encoders {

using parallel::Bias;
using parallel::Matrix;
using parallel::MediaPack;
using parallel::Scale;
using parallel::Stem;

absl::Status Read(const ConfigNode& node, SeedVisionConfig* out) {
  ConfigReader reader(node);
  reader.Child("kind");
  reader.Read("hidden", &out->hidden, AtLeast(1));
  reader.Read("layers", &out->layers, AtLeast(1));
  reader.Read("heads", &out->heads, AtLeast(1));
  reader.Read("ffn", &out->ffn, AtLeast(1));
  ReadPatchInput(reader, out);
  reader.Read("adapter", &out->adapter, AtLeast(1));
  reader.Read("rope_theta", &out->rope_theta, Positive());
  reader.Read("norm_eps", &out->norm_eps, Positive());
  reader.ReadStruct("init", &out->init);
  OMNI_RETURN_IF_ERROR(reader.Finish());  // the checks below divide
  return CheckVisionTower(reader, *out, out->hidden, out->heads);
}

absl::StatusOr<std::unique_ptr<Encoder>> SeedVision::Create(const ConfigNode& section,
                                                            const EncoderOptions& options) {
  SeedVisionConfig config;
  config.init = options.init;
  OMNI_RETURN_IF_ERROR(Read(section, &config));
  return std::make_unique<SeedVision>(config, options);
}

SeedVision::SeedVision(const SeedVisionConfig& config, const EncoderOptions& options)
    : config_(config),
      output_hidden_(options.output_hidden),
      blocks_({.hidden = config.hidden,
               .layers = config.layers,
               .heads = config.heads,
               .ffn = config.ffn,
               .norm_eps = config.norm_eps,
               .gelu = GeluKind::kErf}) {
  const parallel::InitConfig& init = config_.init;
  const std::string& name = options.name;
  const int64_t hidden = config_.hidden, elements = config_.patch_elements();
  const int64_t adapter = config_.adapter > 0 ? config_.adapter : output_hidden_;
  list_.Add(Stem(name + ".patch_embed.weight", {hidden, elements}, init.Std(elements)),
            &patch_embed_.weight);
  list_.Add(Bias(name + ".patch_embed.bias", hidden), &patch_embed_.bias);
  blocks_.Declare(name + ".blocks", init, &list_);
  list_.Add(Scale(name + ".post_norm.weight", hidden), &post_norm_.weight);
  list_.Add(Bias(name + ".post_norm.bias", hidden), &post_norm_.bias);
  list_.Add(Matrix(name + ".projector.fc1.weight", adapter, hidden, init.Std(hidden)),
            &fc1_.weight);
  list_.Add(Bias(name + ".projector.fc1.bias", adapter), &fc1_.bias);
  list_.Add(Matrix(name + ".projector.fc2.weight", output_hidden_, adapter,
                   init.Std(adapter) * init.projector_scale),
            &fc2_.weight);
  list_.Add(Bias(name + ".projector.fc2.bias", output_hidden_), &fc2_.bias);
}

EncoderOutput SeedVision::Encode(ExecContext& ctx, const MediaPack& pack,
                                 const EncodeOptions& options) const {
  const DType dtype = patch_embed_.weight.value.dtype;
  if (pack.items.empty()) return NoRows(ctx, dtype, output_hidden_);
  const VisionRows rows = MakeVisionRows(pack.items, config_.merge, 0, options.shard);
  const RopeTable rope = MakePatchRope(ctx, rows, config_.head_dim(), config_.rope_theta, dtype);
  const Var patches_PI{.value = UploadPatches(ctx, pack, config_, rows, dtype)};
  const Var stem_PH = PatchEmbed(ctx, patches_PI, patch_embed_.weight, &patch_embed_.bias);
  const std::vector<Var> states_PH = blocks_.Forward(
      ctx,
      {.x_PH = stem_PH, .attention = rows.frames, .rope = &rope, .recompute = options.recompute});
  const Var normed_PH =
      LayerNorm(ctx, states_PH.back(), post_norm_.weight, &post_norm_.bias, config_.norm_eps);
  // A cell's patches stand next to each other, so all of the rows are one segment.
  const int32_t all_patches[] = {0, static_cast<int32_t>(rows.num_patches)};
  const Var pooled_RH = AvgPool1d(ctx, normed_PH, all_patches, config_.merge * config_.merge);
  const Var inner = Gelu(ctx, Linear(ctx, pooled_RH, fc1_.weight, &fc1_.bias));
  return {.rows_RH = Linear(ctx, inner, fc2_.weight, &fc2_.bias)};
}

FlopCount SeedVision::Flops(absl::Span<const parallel::MediaItem> items) const {
  FlopCounter counter(/*input_wants_grad=*/false);
  const VisionWork work = CountVisionWork(items, config_.merge, 0);
  counter.Linear(work.patches, patch_embed_.weight);
  blocks_.CountFlops(work.patches, work.frame_pairs, &counter);
  counter.Vector(post_norm_.weight);
  counter.Linear(work.cells, fc1_.weight);
  counter.Linear(work.cells, fc2_.weight);
  return counter.count();
}

}  // namespace omni::encoders
