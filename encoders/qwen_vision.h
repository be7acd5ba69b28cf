// The vision tower of Qwen2.5-VL and Qwen2.5-Omni: native resolution, images and video alike.
//
// Patches of temporal_patch frames x patch x patch pixels go through a linear stem without
// bias, pre-norm blocks (RMSNorm, attention with 2-D RoPE inside windows or, in the listed
// layers, inside the frame; gated SiLU MLP), and a merger that turns every merge x merge
// patches into one row of the decoder's width. An image is one frame, doubled by the loader.
//
//   vision: {kind: qwen_vision, hidden: 128, layers: 4, heads: 4, ffn: 352, patch: 14,
//            temporal_patch: 2, merge: 2, window: 112, full_attention_layers: [1, 3]}
#pragma once

#include "encoders/encoder.h"
#include "encoders/patch_input.h"
#include "runtime/ops/norm.h"

namespace omni::encoders {

struct QwenVisionConfig : PatchInput {
  int32_t hidden = 1280;
  int32_t layers = 32;
  int32_t heads = 16;
  int32_t ffn = 3420;
  int32_t window = 112;                             // pixels; 0: every layer sees the whole frame
  std::vector<int32_t> full_attention_layers = {};  // those that do where there are windows
  double rope_theta = 10000.0;
  float norm_eps = 1e-6f;
  bool attention_bias = true;
  bool mlp_bias = true;
  parallel::InitConfig init;

  int32_t head_dim() const { return hidden / heads; }
  int32_t window_cells() const { return window / (merge * patch); }
  bool is_windowed(int32_t layer) const;
};
// InvalidArgument, with file, line and key, for unknown keys and contradictions.
absl::Status Read(const ConfigNode& node, QwenVisionConfig* out);

class QwenVision : public Encoder {
 public:
  static absl::StatusOr<std::unique_ptr<Encoder>> Create(const ConfigNode& section,
                                                         const EncoderOptions& options);
  QwenVision(const QwenVisionConfig& config, const EncoderOptions& options);

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
  struct Block {
    Weight attention_norm, mlp_norm;
    parallel::Affine qkv, output, gate_up, down;

    bool trains() const;  // anything after its own attention_norm
  };
  void Declare(const std::string& name);
  const Weight& NormAfter(int32_t layer) const;  // the next block's, or the merger's
  // The states and their norm before a block -> after it.
  AddNormResult Run(ExecContext& ctx, int32_t layer, const AddNormResult& x, const RopeTable* rope,
                    const SegmentAttention& attention, bool recompute_parts) const;

  const QwenVisionConfig config_;
  const int32_t output_hidden_;
  parallel::ParameterList list_;
  Weight patch_embed_, merger_norm_;
  std::vector<Block> blocks_;
  parallel::Affine merger_fc1_, merger_fc2_;
};

}  // namespace omni::encoders
