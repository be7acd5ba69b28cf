#include "tests/support/tiny_encoder.h"

#include "runtime/base/status.h"
#include "runtime/ops/ops.h"

namespace omni::testing {

using parallel::Bias;
using parallel::Matrix;
using parallel::MediaPack;
using parallel::Stem;

absl::Status Read(const ConfigNode& node, TinyPatchesConfig* out) {
  ConfigReader reader(node);
  reader.Child("kind");
  reader.Read("patch", &out->patch, AtLeast(1));
  reader.Read("hidden", &out->hidden, AtLeast(1));
  reader.ReadStruct("init", &out->init);
  return reader.Finish();
}

absl::StatusOr<std::unique_ptr<encoders::Encoder>> TinyPatches::Create(
    const ConfigNode& section, const encoders::EncoderOptions& options) {
  TinyPatchesConfig config;
  config.init = options.init;
  OMNI_RETURN_IF_ERROR(Read(section, &config));
  return std::make_unique<TinyPatches>(config, options);
}

TinyPatches::TinyPatches(const TinyPatchesConfig& config, const encoders::EncoderOptions& options)
    : config_(config), output_hidden_(options.output_hidden) {
  const parallel::InitConfig& init = config_.init;
  const int64_t pixels = int64_t{config_.patch} * config_.patch, hidden = config_.hidden;
  const std::string& name = options.name;
  list_.Add(Stem(name + ".patch_embed.weight", {hidden, pixels}, init.Std(pixels)),
            &patch_embed_.weight);
  list_.Add(Bias(name + ".patch_embed.bias", hidden), &patch_embed_.bias);
  list_.Add(Matrix(name + ".projector.weight", output_hidden_, hidden,
                   init.Std(hidden) * init.projector_scale),
            &projector_.weight);
  list_.Add(Bias(name + ".projector.bias", output_hidden_), &projector_.bias);
}

encoders::EncoderOutput TinyPatches::Encode(ExecContext& ctx, const MediaPack& pack,
                                            const encoders::EncodeOptions&) const {
  const DType dtype = patch_embed_.weight.value.dtype;
  if (pack.items.empty()) return encoders::NoRows(ctx, dtype, output_hidden_);
  const int64_t pixels = int64_t{config_.patch} * config_.patch;
  OMNI_CHECK_EQ(pack.row_elements, pixels);
  const TensorView bytes = UploadNew<uint8_t>(ctx, pack.payload, {pack.num_rows(), pixels});
  const Var patches_PI{.value = NormalizePatches(ctx, bytes, 1, {0.5f}, {0.5f}, dtype)};
  const Var hidden_PH =
      Gelu(ctx, PatchEmbed(ctx, patches_PI, patch_embed_.weight, &patch_embed_.bias));
  return {.rows_RH = Linear(ctx, hidden_PH, projector_.weight, &projector_.bias)};
}

FlopCount TinyPatches::Flops(absl::Span<const parallel::MediaItem> items) const {
  FlopCounter counter(/*input_wants_grad=*/false);
  int64_t rows = 0;
  for (const parallel::MediaItem& item : items) rows += NumOutputRows(item);
  counter.Linear(rows, patch_embed_.weight);
  counter.Linear(rows, projector_.weight);
  return counter.count();
}

void RegisterTinyPatches(encoders::EncoderRegistry& registry) {
  registry.Register("tiny_patches", TinyPatches::Create);
}

}  // namespace omni::testing
