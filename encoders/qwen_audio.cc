#include "encoders/qwen_audio.h"

#include <algorithm>

#include "runtime/base/status.h"

namespace omni::encoders {

using parallel::MediaItem;
using parallel::MediaPack;

absl::Status Read(const ConfigNode& node, QwenAudioConfig* out) {
  ConfigReader reader(node);
  reader.Child("kind");
  ReadWhisperTower(reader, out);
  reader.Read("chunk_frames", &out->chunk_frames, AtLeast(2));
  reader.Read("window_frames", &out->window_frames, NonNegative());
  OMNI_RETURN_IF_ERROR(reader.Finish());
  OMNI_RETURN_IF_ERROR(CheckWhisperTower(reader, *out));
  if (out->chunk_frames % 2 != 0) {
    return reader.Error("chunk_frames", absl::StrCat(out->chunk_frames,
                                                     " is odd, but the stem "
                                                     "halves the frames of a chunk"));
  }
  return absl::OkStatus();
}

WhisperTower::Layout MakeAudioLayout(absl::Span<const MediaItem> items, int32_t chunk_frames) {
  WhisperTower::Layout layout{.cu_frames = {0}, .cu_steps = {0}, .cu_items = {0}};
  std::vector<size_t> last_chunk;  // of each item
  for (const MediaItem& item : items) {
    for (int32_t done = 0; done < item.t; done += chunk_frames) {
      layout.cu_frames.push_back(layout.cu_frames.back() + std::min(chunk_frames, item.t - done));
    }
    last_chunk.push_back(layout.cu_frames.size() - 1);
  }
  layout.cu_steps = WhisperTower::Steps(layout.cu_frames);
  for (const size_t chunk : last_chunk) layout.cu_items.push_back(layout.cu_steps[chunk]);
  return layout;
}

absl::StatusOr<std::unique_ptr<Encoder>> QwenAudio::Create(const ConfigNode& section,
                                                           const EncoderOptions& options) {
  QwenAudioConfig config;
  config.init = options.init;
  OMNI_RETURN_IF_ERROR(Read(section, &config));
  return std::make_unique<QwenAudio>(config, options);
}

QwenAudio::QwenAudio(const QwenAudioConfig& config, const EncoderOptions& options)
    : config_(config),
      output_hidden_(options.output_hidden),
      tower_(config, options.output_hidden) {
  const int32_t num_steps = config.chunk_frames / 2, hidden = config.hidden;
  sinusoid_.reserve(int64_t{num_steps} * hidden);
  for (int32_t step = 0; step < num_steps; ++step) {
    for (int32_t channel = 0; channel < hidden; ++channel) {
      sinusoid_.push_back(parallel::Sinusoid(step, channel, hidden));
    }
  }
  tower_.Declare(options.name, &list_);
}

int64_t QwenAudio::NumOutputRows(const MediaItem& item) const {
  return MakeAudioLayout({&item, 1}, config_.chunk_frames).cu_items.back() / WhisperTower::kPool;
}

TensorView QwenAudio::UploadPositions(ExecContext& ctx, const WhisperTower::Layout& layout) const {
  const int64_t num_steps = layout.cu_steps.back(), hidden = config_.hidden;
  std::vector<double> rows;
  rows.reserve(num_steps * hidden);
  for (size_t chunk = 0; chunk + 1 < layout.cu_steps.size(); ++chunk) {
    const int64_t length = layout.cu_steps[chunk + 1] - layout.cu_steps[chunk];
    rows.insert(rows.end(), sinusoid_.begin(), sinusoid_.begin() + length * hidden);
  }
  return UploadAs(ctx, tower_.dtype(), absl::MakeConstSpan(rows), num_steps, hidden);
}

EncoderOutput QwenAudio::Encode(ExecContext& ctx, const MediaPack& pack,
                                const EncodeOptions& options) const {
  // Chunks are independent and units are whole chunks, so a shard is a shorter sound.
  std::vector<MediaItem> items = pack.items;
  int64_t num_rows = 0;
  for (MediaItem& item : items) {
    const parallel::SampleShard& shard = options.shard;
    item.t = static_cast<int32_t>(
        config_.unit().InputRows(item, shard.index(), shard.num_shards()).size());
    num_rows += NumOutputRows(item);
  }
  const WhisperTower::Layout layout = MakeAudioLayout(items, config_.chunk_frames);
  if (num_rows == 0) return NoRows(ctx, tower_.dtype(), output_hidden_);
  const Var positions_SH{.value = UploadPositions(ctx, layout)};
  return {.rows_RH = tower_.Forward(ctx, pack, layout, positions_SH,
                                    SegmentAttention(layout.cu_steps), options.recompute)};
}

FlopCount QwenAudio::Flops(absl::Span<const MediaItem> items) const {
  FlopCounter counter(/*input_wants_grad=*/false);
  tower_.CountFlops(MakeAudioLayout(items, config_.chunk_frames), &counter);
  return counter.count();
}

}  // namespace omni::encoders
