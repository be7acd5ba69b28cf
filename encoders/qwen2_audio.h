// The audio tower of Qwen2-Audio: Whisper's encoder, each sound in a window of its own.
//
// The reference pads every sound with silence to a window of 2 * max_positions frames (30 s), runs
// all of it and masks the padding out of the attention. Here only the sound is run, with the same
// result: what reaches its rows from the padding is what the two convolutions see of it, at most
// two frames past the last, and the loader hands those over (InputGeometry::mel_context). So an
// item has t frames and min(t + 2, window) input rows.
//
// A sound can be split over ranks at every fourth frame: a shard is handed the frames that its
// convolutions see beyond its bounds, and attention is over all shards.
//
// Positions are a table, fixed (Whisper's sinusoids unless a checkpoint says otherwise), counted
// from the start of the sound. Attention is over the whole sound; 100 frames become 25 rows.
//
//   audio: {kind: qwen2_audio, mel_bands: 128, hidden: 1280, layers: 32, heads: 20, ffn: 5120,
//           max_positions: 1500}
#pragma once

#include "encoders/whisper_tower.h"

namespace omni::encoders {

struct Qwen2AudioConfig : WhisperTowerConfig {
  int32_t max_positions = 1500;  // steps of 20 ms; a sound has at most twice as many frames

  int32_t window_frames() const { return 2 * max_positions; }
};
// InvalidArgument, with file, line and key, for unknown keys and contradictions.
absl::Status Read(const ConfigNode& node, Qwen2AudioConfig* out);

// A segment per sound everywhere; kept_steps leaves out what only the frames past a sound's end
// make, and what other shards make. CHECK-fails if an item's rows are not those described above.
struct WindowedAudioLayout : WhisperTower::Layout {
  std::vector<int32_t> positions;  // of the kept steps, in their sounds
};
WindowedAudioLayout MakeWindowedAudioLayout(absl::Span<const parallel::MediaItem> items,
                                            int32_t window_frames, int32_t shard = 0,
                                            int32_t num_shards = 1);

class Qwen2Audio : public Encoder {
 public:
  static constexpr int32_t kContextFrames = 2;
  // Four frames are two steps are an output row. Step j sees the frames 2 j - 2 to 2 j + 2 through
  // both convolutions.
  static constexpr parallel::SampleUnit kUnit = {
      .input_rows = 4, .output_rows = 1, .rows_before = 2, .rows_after = 1};

  static absl::StatusOr<std::unique_ptr<Encoder>> Create(const ConfigNode& section,
                                                         const EncoderOptions& options);
  Qwen2Audio(const Qwen2AudioConfig& config, const EncoderOptions& options);

  std::vector<parallel::ParameterSpec> Parameters() const override { return list_.specs(); }
  void Bind(const parallel::ParameterStore& store) override { list_.Bind(store); }
  InputGeometry geometry() const override {
    return {.mel_bands = config_.mel_bands,
            .mel_window = config_.window_frames(),
            .mel_context = kContextFrames,
            .unit = kUnit};
  }
  int32_t sequence_heads() const override { return config_.heads; }
  int64_t NumOutputRows(const parallel::MediaItem& item) const override;
  EncoderOutput Encode(ExecContext& ctx, const parallel::MediaPack& pack,
                       const EncodeOptions& options) const override;
  FlopCount Flops(absl::Span<const parallel::MediaItem> items) const override;

 private:
  SegmentAttention Attention(absl::Span<const parallel::MediaItem> items,
                             const WindowedAudioLayout& layout,
                             const parallel::SampleShard& shard) const;

  const Qwen2AudioConfig config_;
  const int32_t output_hidden_;
  parallel::ParameterList list_;
  Weight position_embed_;
  WhisperTower tower_;
};

}  // namespace omni::encoders
