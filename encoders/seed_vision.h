// The vision tower of Seed1.5-VL (arXiv 2505.07062): Seed-ViT, native resolution, with average
// pooling and an adapter of two layers.
//
// Patches of patch x patch pixels, frame by frame, go through a linear stem and pre-norm blocks
// (2-D RoPE, MLP of ratio 4, attention within a picture or frame); merge x merge patches are
// averaged and the adapter takes them to the decoder's width: one row per 28 x 28 pixels.
//
// The report gives depth 27, width 1280, 20 heads of 64, MLP ratio 4.0, patch 14 and 532 M
// parameters. What it leaves open is chosen here: LayerNorm with bias before attention and MLP
// and after the last block (eps 1e-6), erf GELU, bias on every map, RoPE base 10^4, mean and
// deviation of CLIP, and an adapter as wide as the decoder. The choices give 532.05 M without the
// adapter. No weights are public.
//
//   vision: {kind: seed_vision, hidden: 1280, layers: 27, heads: 20, ffn: 5120, patch: 14, merge:
//   2}
#pragma once

#include "encoders/layer_norm_blocks.h"
#include "encoders/patch_input.h"

namespace omni::encoders {

struct SeedVisionConfig : PatchInput {
  SeedVisionConfig() : PatchInput{.temporal_patch = 1} {}

  int32_t hidden = 1280;
  int32_t layers = 27;
  int32_t heads = 20;
  int32_t ffn = 5120;
  int32_t adapter = 0;  // inner width of the adapter; absent: the decoder's
  double rope_theta = 10000.0;
  float norm_eps = 1e-6f;
  parallel::InitConfig init;

  int32_t head_dim() const { return hidden / heads; }
};
// InvalidArgument, with file, line and key, for unknown keys and contradictions.
absl::Status Read(const ConfigNode& node, SeedVisionConfig* out);

class SeedVision : public Encoder {
 public:
  static absl::StatusOr<std::unique_ptr<Encoder>> Create(const ConfigNode& section,
                                                         const EncoderOptions& options);
  SeedVision(const SeedVisionConfig& config, const EncoderOptions& options);

  std::vector<parallel::ParameterSpec> Parameters() const override { return list_.specs(); }
  void Bind(const parallel::ParameterStore& store) override { list_.Bind(store); }
  InputGeometry geometry() const override { return config_.geometry(); }
  int64_t NumOutputRows(const parallel::MediaItem& item) const override {
    return config_.NumCells(item);
  }
  EncoderOutput Encode(ExecContext& ctx, const parallel::MediaPack& pack,
                       const EncodeOptions& options) const override;
  int32_t sequence_heads() const override { return config_.heads; }
  FlopCount Flops(absl::Span<const parallel::MediaItem> items) const override;

 private:
  const SeedVisionConfig config_;
  const int32_t output_hidden_;
  parallel::ParameterList list_;
  parallel::Affine patch_embed_, post_norm_, fc1_, fc2_;
  LayerNormBlocks blocks_;
};

}  // namespace omni::encoders
