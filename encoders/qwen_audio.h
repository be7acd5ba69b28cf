// The audio tower of Qwen2.5-Omni: a Whisper-like encoder over log-mel frames, in chunks.
//
// Frames are cut into chunks of chunk_frames (2 s). Each chunk by itself goes through two
// convolutions (the second halves the frames), gets sinusoid positions from its own start, and
// is one attention segment of the pre-norm blocks (LayerNorm; k without bias; GELU MLP). Then
// each sound as a whole is averaged over pairs of steps, normalised and projected: 100 frames,
// one second, become 25 rows.
//
//   audio: {kind: qwen_audio, mel_bands: 80, hidden: 128, layers: 4, heads: 4, ffn: 512,
//           chunk_frames: 200, window_frames: 0}
#pragma once

#include "encoders/whisper_tower.h"

namespace omni::encoders {

struct QwenAudioConfig : WhisperTowerConfig {
  int32_t chunk_frames = 200;  // even
  // > 0: the loader makes the log-mel of a sound in a silent window of this many frames, as the
  // reference's feature extractor does (30,000: 300 s). 0: of the sound by itself.
  int32_t window_frames = 0;

  // A chunk, or two where the pairs of pooled steps straddle them.
  parallel::SampleUnit unit() const {
    const int32_t chunks = chunk_frames / 2 % WhisperTower::kPool == 0 ? 1 : WhisperTower::kPool;
    return {.input_rows = chunks * chunk_frames,
            .output_rows = chunks * chunk_frames / 2 / WhisperTower::kPool};
  }
};
// InvalidArgument, with file, line and key, for unknown keys and contradictions.
absl::Status Read(const ConfigNode& node, QwenAudioConfig* out);

// How the frames of a pack fall into chunks and steps: kept_steps is absent, cu_frames has a
// segment per chunk.
WhisperTower::Layout MakeAudioLayout(absl::Span<const parallel::MediaItem> items,
                                     int32_t chunk_frames);

class QwenAudio : public Encoder {
 public:
  static absl::StatusOr<std::unique_ptr<Encoder>> Create(const ConfigNode& section,
                                                         const EncoderOptions& options);
  QwenAudio(const QwenAudioConfig& config, const EncoderOptions& options);

  std::vector<parallel::ParameterSpec> Parameters() const override { return list_.specs(); }
  void Bind(const parallel::ParameterStore& store) override { list_.Bind(store); }
  InputGeometry geometry() const override {
    return {.mel_bands = config_.mel_bands,
            .mel_window = config_.window_frames,
            .unit = config_.unit()};
  }
  int64_t NumOutputRows(const parallel::MediaItem& item) const override;
  EncoderOutput Encode(ExecContext& ctx, const parallel::MediaPack& pack,
                       const EncodeOptions& options) const override;
  FlopCount Flops(absl::Span<const parallel::MediaItem> items) const override;

 private:
  TensorView UploadPositions(ExecContext& ctx, const WhisperTower::Layout& layout) const;

  const QwenAudioConfig config_;
  const int32_t output_hidden_;
  std::vector<double> sinusoid_;  // [chunk_frames / 2, hidden]
  parallel::ParameterList list_;
  WhisperTower tower_;
};

}  // namespace omni::encoders
