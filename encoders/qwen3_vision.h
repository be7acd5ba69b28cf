// The vision tower of Qwen3-VL and Qwen3-Omni: native resolution, images and video alike.
//
// Patches of temporal_patch frames x patch x patch pixels go through a linear stem with bias and
// get a learned position each, interpolated from a position_side x position_side table, and 2-D
// RoPE in every block (LayerNorm, GELU in its tanh form); attention is within a frame. A merger
// turns every merge x merge patches into one row of the decoder's width. DeepStack: the listed
// layers' states go through mergers of their own, for the decoder's first layers.
//
//   vision: {kind: qwen3_vision, hidden: 1152, layers: 27, heads: 16, ffn: 4304, patch: 16,
//            temporal_patch: 2, merge: 2, position_side: 48, deepstack_layers: [8, 16, 24]}
#pragma once

#include "encoders/layer_norm_blocks.h"
#include "encoders/patch_input.h"

namespace omni::encoders {

struct Qwen3VisionConfig : PatchInput {
  Qwen3VisionConfig() : PatchInput{.patch = 16, .mean = {0.5, 0.5, 0.5}, .std = {0.5, 0.5, 0.5}} {}

  int32_t hidden = 1152;
  int32_t layers = 27;
  int32_t heads = 16;
  int32_t ffn = 4304;
  int32_t position_side = 48;                  // the table has its square of rows
  std::vector<int32_t> deepstack_layers = {};  // ascending
  double rope_theta = 10000.0;
  float norm_eps = 1e-6f;
  parallel::InitConfig init;

  int32_t head_dim() const { return hidden / heads; }
};
// InvalidArgument, with file, line and key, for unknown keys and contradictions.
absl::Status Read(const ConfigNode& node, Qwen3VisionConfig* out);

class Qwen3Vision : public Encoder {
 public:
  static absl::StatusOr<std::unique_ptr<Encoder>> Create(const ConfigNode& section,
                                                         const EncoderOptions& options);
  Qwen3Vision(const Qwen3VisionConfig& config, const EncoderOptions& options);

  std::vector<parallel::ParameterSpec> Parameters() const override { return list_.specs(); }
  void Bind(const parallel::ParameterStore& store) override { list_.Bind(store); }
  InputGeometry geometry() const override { return config_.geometry(); }
  int64_t NumOutputRows(const parallel::MediaItem& item) const override {
    return config_.NumCells(item);
  }
  int32_t num_deepstack() const override {
    return static_cast<int32_t>(config_.deepstack_layers.size());
  }
  EncoderOutput Encode(ExecContext& ctx, const parallel::MediaPack& pack,
                       const EncodeOptions& options) const override;
  int32_t sequence_heads() const override { return config_.heads; }
  FlopCount Flops(absl::Span<const parallel::MediaItem> items) const override;

 private:
  // Cells of merge x merge patches, side by side, to the decoder's width.
  struct Merger {
    parallel::Affine norm, fc1, fc2;
  };
  void DeclareMerger(const std::string& path, int64_t norm_size, Merger* merger);
  Var Positions(ExecContext& ctx, const parallel::MediaPack& pack, const VisionRows& rows) const;
  // Norm over a patch (the last merger) or over a whole cell (DeepStack's), whichever its size is.
  Var Merge(ExecContext& ctx, const Merger& merger, const Var& x_PH) const;

  const Qwen3VisionConfig config_;
  const int32_t output_hidden_;
  parallel::ParameterList list_;
  parallel::Affine patch_embed_;
  Weight position_embed_;
  LayerNormBlocks blocks_;
  Merger merger_;
  std::vector<Merger> deepstack_;  // one per deepstack layer
};

}  // namespace omni::encoders
