#include "encoders/qwen_vision.h"

#include <algorithm>

#include "encoders/tower_block.h"
#include "runtime/base/status.h"
#include "runtime/ops/ops.h"

namespace omni::encoders {

using parallel::Bias;
using parallel::Matrix;
using parallel::MediaPack;
using parallel::Recompute;
using parallel::Scale;
using parallel::Stem;

bool QwenVisionConfig::is_windowed(int32_t layer) const {
  return window > 0 && std::find(full_attention_layers.begin(), full_attention_layers.end(),
                                 layer) == full_attention_layers.end();
}

absl::Status Read(const ConfigNode& node, QwenVisionConfig* out) {
  ConfigReader reader(node);
  reader.Child("kind");
  reader.Read("hidden", &out->hidden, AtLeast(1));
  reader.Read("layers", &out->layers, AtLeast(1));
  reader.Read("heads", &out->heads, AtLeast(1));
  reader.Read("ffn", &out->ffn, AtLeast(1));
  ReadPatchInput(reader, out);
  reader.Read("window", &out->window, AtLeast(0));
  reader.Read("full_attention_layers", &out->full_attention_layers, AtLeast(0));
  reader.Read("rope_theta", &out->rope_theta, Positive());
  reader.Read("norm_eps", &out->norm_eps, Positive());
  reader.Read("attention_bias", &out->attention_bias);
  reader.Read("mlp_bias", &out->mlp_bias);
  reader.ReadStruct("init", &out->init);
  OMNI_RETURN_IF_ERROR(reader.Finish());  // the checks below divide

  OMNI_RETURN_IF_ERROR(CheckVisionTower(reader, *out, out->hidden, out->heads));
  if (out->window % (out->merge * out->patch) != 0) {
    return reader.Error("window",
                        absl::StrCat(out->window, " pixels are not a multiple of merge x patch = ",
                                     out->merge * out->patch));
  }
  for (const int32_t layer : out->full_attention_layers) {
    if (layer >= out->layers) {
      return reader.Error("full_attention_layers",
                          absl::StrCat("layer ", layer, " of a tower of ", out->layers, " layers"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Encoder>> QwenVision::Create(const ConfigNode& section,
                                                            const EncoderOptions& options) {
  QwenVisionConfig config;
  config.init = options.init;
  OMNI_RETURN_IF_ERROR(Read(section, &config));
  return std::make_unique<QwenVision>(config, options);
}

QwenVision::QwenVision(const QwenVisionConfig& config, const EncoderOptions& options)
    : config_(config), output_hidden_(options.output_hidden), blocks_(config.layers) {
  Declare(options.name);
}

void QwenVision::Declare(const std::string& name) {
  const parallel::InitConfig& init = config_.init;
  const int64_t hidden = config_.hidden, ffn = config_.ffn;
  list_.Add(Stem(name + ".patch_embed.weight", {hidden, config_.patch_elements()},
                 init.Std(config_.patch_elements())),
            &patch_embed_);
  for (int32_t layer = 0; layer < config_.layers; ++layer) {
    Block& block = blocks_[layer];
    const std::string prefix = absl::StrCat(name, ".blocks.", layer, ".");
    const auto add = [&](const char* map, int64_t out, int64_t in, double std, int32_t num_stacked,
                         bool has_bias, parallel::Affine* affine) {
      parallel::ParameterSpec spec = Matrix(prefix + map + ".weight", out, in, std);
      spec.num_stacked = num_stacked;
      list_.Add(std::move(spec), &affine->weight);
      if (has_bias) list_.Add(Bias(prefix + map + ".bias", out), &affine->bias);
    };
    list_.Add(Scale(prefix + "attention_norm.weight", hidden), &block.attention_norm);
    add("attention.qkv", 3 * hidden, hidden, init.Std(hidden), 3, config_.attention_bias,
        &block.qkv);
    add("attention.output", hidden, hidden, init.ResidualStd(hidden, config_.layers), 1,
        config_.attention_bias, &block.output);
    list_.Add(Scale(prefix + "mlp_norm.weight", hidden), &block.mlp_norm);
    add("mlp.gate_up", 2 * ffn, hidden, init.Std(hidden), 2, config_.mlp_bias, &block.gate_up);
    add("mlp.down", hidden, ffn, init.ResidualStd(ffn, config_.layers), 1, config_.mlp_bias,
        &block.down);
  }
  // The first map of the merger is a stem to the optimizer: it reads merge^2 patches side by
  // side, and small models learned better with it under AdamW.
  const int64_t merged = hidden * config_.merge * config_.merge;
  list_.Add(Scale(name + ".merger.norm.weight", hidden), &merger_norm_);
  list_.Add(Stem(name + ".merger.fc1.weight", {merged, merged}, init.Std(merged)),
            &merger_fc1_.weight);
  list_.Add(Bias(name + ".merger.fc1.bias", merged), &merger_fc1_.bias);
  list_.Add(Matrix(name + ".merger.fc2.weight", output_hidden_, merged,
                   init.Std(merged) * init.projector_scale),
            &merger_fc2_.weight);
  list_.Add(Bias(name + ".merger.fc2.bias", output_hidden_), &merger_fc2_.bias);
}

bool QwenVision::Block::trains() const {
  return AnyTrains({&qkv.weight, &qkv.bias, &output.weight, &output.bias, &mlp_norm,
                    &gate_up.weight, &gate_up.bias, &down.weight, &down.bias});
}

const Weight& QwenVision::NormAfter(int32_t layer) const {
  return layer + 1 < config_.layers ? blocks_[layer + 1].attention_norm : merger_norm_;
}

AddNormResult QwenVision::Run(ExecContext& ctx, int32_t layer, const AddNormResult& x,
                              const RopeTable* rope, const SegmentAttention& attention,
                              bool recompute_parts) const {
  const Block& block = blocks_[layer];
  const int64_t hidden = config_.hidden;
  const Var qkv = Linear(ctx, x.normed_TH, block.qkv.weight, block.qkv.bias_or_null());
  const std::vector<Var> parts = SplitColumns(ctx, qkv, {hidden, hidden, hidden});
  const Var mixed_PH = attention.Attend(ctx,
                                        {.q_PH = parts[0],
                                         .k_PH = parts[1],
                                         .v_PH = parts[2],
                                         .num_heads = config_.heads,
                                         .rope = rope},
                                        recompute_parts);
  const Var attention_PH = Linear(ctx, mixed_PH, block.output.weight, block.output.bias_or_null());
  const AddNormResult middle =
      AddRmsNorm(ctx, x.sum_TH, attention_PH, block.mlp_norm, config_.norm_eps);
  const Var gate_up =
      Linear(ctx, middle.normed_TH, block.gate_up.weight, block.gate_up.bias_or_null());
  const Var mlp_PH = RunPart(
      ctx, recompute_parts, AnyTrains({&block.down.weight, &block.down.bias}), gate_up,
      [&block](ExecContext& inner, const Var& in) {
        return Linear(inner, SwiGlu(inner, in), block.down.weight, block.down.bias_or_null());
      });
  return AddRmsNorm(ctx, middle.sum_TH, mlp_PH, NormAfter(layer), config_.norm_eps);
}

EncoderOutput QwenVision::Encode(ExecContext& ctx, const MediaPack& pack,
                                 const EncodeOptions& options) const {
  if (pack.items.empty()) return NoRows(ctx, patch_embed_.value.dtype, output_hidden_);
  const VisionRows rows =
      MakeVisionRows(pack.items, config_.merge, config_.window_cells(), options.shard);
  const DType dtype = patch_embed_.value.dtype;
  const RopeTable rope = MakePatchRope(ctx, rows, config_.head_dim(), config_.rope_theta, dtype);
  const Var patches_PI{.value = UploadPatches(ctx, pack, config_, rows, dtype)};
  AddNormResult x{.sum_TH = PatchEmbed(ctx, patches_PI, patch_embed_, nullptr), .normed_TH = {}};
  x.normed_TH = RmsNorm(ctx, x.sum_TH, blocks_[0].attention_norm, config_.norm_eps);
  const bool recompute_parts = options.recompute == Recompute::kSelective;
  for (int32_t layer = 0; layer < config_.layers; ++layer) {
    const bool trains = blocks_[layer].trains() || AnyTrains({&NormAfter(layer)});
    const SegmentAttention& attention = config_.is_windowed(layer) ? rows.windows : rows.frames;
    x = RunBlock(ctx, options.recompute == Recompute::kFull, trains, x, &rope,
                 [this, layer, attention, recompute_parts](
                     ExecContext& inner, const AddNormResult& before, const RopeTable* table) {
                   return Run(inner, layer, before, table, attention, recompute_parts);
                 });
  }

  const int64_t patches_per_cell = int64_t{config_.merge} * config_.merge;
  const Var merged = Reshape(ctx, x.normed_TH, {rows.num_cells, patches_per_cell * config_.hidden});
  const Var hidden = Gelu(ctx, Linear(ctx, merged, merger_fc1_.weight, merger_fc1_.bias_or_null()));
  const Var rows_RH = Linear(ctx, hidden, merger_fc2_.weight, merger_fc2_.bias_or_null());
  if (rows.places.empty()) return {.rows_RH = rows_RH};
  const TensorView places = UploadNew<int32_t>(ctx, rows.places, {rows.num_cells});
  return {.rows_RH = GatherRows(ctx, rows_RH, places)};
}

FlopCount QwenVision::Flops(absl::Span<const parallel::MediaItem> items) const {
  FlopCounter counter(/*input_wants_grad=*/false);
  const VisionWork work = CountVisionWork(items, config_.merge, config_.window_cells());
  counter.Linear(work.patches, patch_embed_);
  for (int32_t layer = 0; layer < config_.layers; ++layer) {
    const Block& block = blocks_[layer];
    counter.Vector(block.attention_norm);
    counter.Linear(work.patches, block.qkv.weight);
    counter.Attention(config_.is_windowed(layer) ? work.window_pairs : work.frame_pairs,
                      config_.heads, config_.head_dim());
    counter.Linear(work.patches, block.output.weight);
    counter.Vector(block.mlp_norm);
    counter.Linear(work.patches, block.gate_up.weight);
    counter.Linear(work.patches, block.down.weight);
  }
  counter.Vector(merger_norm_);
  counter.Linear(work.cells, merger_fc1_.weight);
  counter.Linear(work.cells, merger_fc2_.weight);
  return counter.count();
}

}  // namespace omni::encoders
