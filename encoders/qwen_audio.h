// The audio tower of Qwen2.5-Omni: a Whisper-like encoder over log-mel frames, in chunks.
//
// Frames are cut into chunks of chunk_frames (2 s). Each chunk by itself goes through two
// convolutions (the second halves the frames), gets sinusoid positions from its own start, and
// is one attention segment of the pre-norm blocks (LayerNorm; k without bias; GELU MLP). Then
// each sound as a whole is averaged over pairs of steps, normalised and projected: 100 frames,
// one second, become 25 rows.
//
//   audio: {kind: qwen_audio, mel_bands: 80, hidden: 128, layers: 4, heads: 4, ffn: 512,
//           chunk_frames: 200}
#pragma once

#include "encoders/encoder.h"

namespace omni::encoders {

struct QwenAudioConfig {
  int32_t mel_bands = 128;
  int32_t hidden = 1280;
  int32_t layers = 32;
  int32_t heads = 20;
  int32_t ffn = 5120;
  int32_t chunk_frames = 200;  // even
  float norm_eps = 1e-5f;
  parallel::InitConfig init;

  int32_t head_dim() const { return hidden / heads; }
};
// InvalidArgument, with file, line and key, for unknown keys and contradictions.
absl::Status Read(const ConfigNode& node, QwenAudioConfig* out);

// How the frames of a pack fall into chunks and steps.
struct AudioLayout {
  std::vector<int32_t> cu_chunks;  // input frames
  std::vector<int32_t> cu_steps;   // the same chunks after the stem, one attention segment each
  std::vector<int32_t> cu_items;   // steps of each item as a whole
};
AudioLayout MakeAudioLayout(const std::vector<parallel::MediaItem>& items, int32_t chunk_frames);

class QwenAudio : public Encoder {
 public:
  static absl::StatusOr<std::unique_ptr<Encoder>> Create(const ConfigNode& section,
                                                         const EncoderOptions& options);
  QwenAudio(const QwenAudioConfig& config, const EncoderOptions& options);

  std::vector<parallel::ParameterSpec> Parameters() const override { return list_.specs(); }
  void Bind(const parallel::ParameterStore& store) override { list_.Bind(store); }
  InputGeometry geometry() const override { return {.mel_bands = config_.mel_bands}; }
  int64_t NumOutputRows(const parallel::MediaItem& item) const override;
  EncoderOutput Encode(ExecContext& ctx, const parallel::MediaPack& pack) const override;
  FlopCount Flops(const parallel::MediaPack& pack) const override;

 private:
  struct Block {
    parallel::Affine attention_norm, mlp_norm;
    // k has no bias, so it is a map by itself; q and v share one.
    parallel::Affine qv, output, fc1, fc2;
    Weight k;
  };
  void Declare(const std::string& name);
  TensorView UploadFrames(ExecContext& ctx, const parallel::MediaPack& pack) const;
  TensorView UploadPositions(ExecContext& ctx, const AudioLayout& layout) const;
  Var Attention(ExecContext& ctx, const Block& block, const Var& normed_FH,
                const AudioLayout& layout) const;
  DType dtype() const { return conv1_.weight.value.dtype; }

  const QwenAudioConfig config_;
  const int32_t output_hidden_;
  std::vector<double> sinusoid_;  // [chunk_frames / 2, hidden]
  parallel::ParameterList list_;
  parallel::Affine conv1_, conv2_, post_norm_, projector_;
  std::vector<Block> blocks_;
};

}  // namespace omni::encoders
