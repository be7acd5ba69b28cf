#include "dataloader/media_decoder.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "dataloader/media/image.h"
#include "dataloader/media/patches.h"
#include "runtime/base/check.h"
#include "runtime/base/rng.h"
#include "runtime/base/status.h"

namespace omni::dataloader {
namespace {

// Pixels of a picture or of a few frames, samples of a sound in fp32; about.
int64_t TransientBytes(const MediaInfo& info) {
  const int64_t pixels = int64_t{info.height} * info.width;
  switch (info.kind) {
    case MediaKind::kImage:
      return 3 * pixels;
    case MediaKind::kVideo:
      return 4 * 3 * pixels;
    case MediaKind::kAudio:
      return 4 * info.num_samples;
  }
  return 0;
}

}  // namespace

MediaDecoder::MediaDecoder(const DataConfig& config, std::shared_ptr<const VideoPlugin> video,
                           Progress* progress)
    : config_(config),
      log_mel_(config.audio.mel_bands),
      progress_(progress),
      video_(std::move(video)) {}

absl::StatusOr<std::shared_ptr<const VideoPlugin>> MediaDecoder::Video() const {
  const std::lock_guard lock(mutex_);
  if (video_ == nullptr) {
    OMNI_ASSIGN_OR_RETURN(video_, VideoPlugin::Load());
  }
  return video_;
}

absl::Status MediaDecoder::Decode(const SampleStore& store, const SamplePlan& plan,
                                  const MediaSpan& media, bool augment,
                                  const parallel::UnitRange& wanted,
                                  absl::Span<uint8_t> payload) const {
  OMNI_ASSIGN_OR_RETURN(const std::string bytes,
                        store.LoadMedia(plan.media_key.index, media.media_index));
  const MediaInfo& info = plan.media_info[media.media_index];
  const parallel::MediaItem& item = media.shape.item;
  const PatchGrid grid{.t = item.t, .h = item.h, .w = item.w};
  const int64_t held = static_cast<int64_t>(bytes.size()) + TransientBytes(info);
  held_bytes_.fetch_add(held, std::memory_order_relaxed);
  const absl::Cleanup give_back = [&] { held_bytes_.fetch_sub(held, std::memory_order_relaxed); };
  switch (media.shape.kind) {
    case MediaKind::kImage:
      return ImageToPatches(bytes, config_.image, grid, {wanted.begin, wanted.end}, payload);
    case MediaKind::kVideo: {
      OMNI_ASSIGN_OR_RETURN(const auto plugin, Video());
      VideoOptions options = config_.video;
      options.fps = media.shape.video_fps;
      OMNI_ASSIGN_OR_RETURN(const VideoPlan video, PlanVideo(info, options));
      OMNI_CHECK(video.grid == grid);
      return VideoToPatches(*plugin, bytes, info, video, options, {wanted.begin, wanted.end},
                            payload, progress_);
    }
    case MediaKind::kAudio:
      return DecodeSound(bytes, plan, media, augment, wanted, payload);
  }
  return absl::InternalError("unknown media kind");
}

absl::Status MediaDecoder::DecodeSound(const std::string& bytes, const SamplePlan& plan,
                                       const MediaSpan& media, bool augment,
                                       const parallel::UnitRange& wanted,
                                       absl::Span<uint8_t> payload) const {
  // The floor of a log-mel depends on all of the sound, so it is made whole; it is no longer than
  // max_seconds.
  const parallel::MediaItem& item = media.shape.item;
  const bool is_whole = wanted.size() == item.num_input_rows;
  const int64_t bands = config_.audio.mel_bands;
  std::vector<float> all(is_whole ? 0 : item.num_input_rows * bands);
  // The payload is a vector's storage at a multiple of a row: aligned for floats.
  const absl::Span<float> mel = is_whole ? absl::MakeSpan(reinterpret_cast<float*>(payload.data()),
                                                          payload.size() / sizeof(float))
                                         : absl::MakeSpan(all);
  OMNI_RETURN_IF_ERROR(AudioToMel(bytes, config_.audio, log_mel_, item.t, mel));
  if (augment) Mask(plan, media, mel);
  if (!is_whole) std::memcpy(payload.data(), &all[wanted.begin * bands], payload.size());
  return absl::OkStatus();
}

void MediaDecoder::Mask(const SamplePlan& plan, const MediaSpan& media,
                        absl::Span<float> mel) const {
  const AudioMask& mask = config_.audio_mask;
  if (mel.empty() || (mask.frames == 0 && mask.bands == 0)) return;
  // Not by sample_id, which has a path: the same data in another folder are masked alike.
  const std::string sample =
      absl::StrCat(config_.sources[plan.key.source].name, ":", plan.key.index);
  CounterRng rng(config_.seed, StreamOf(sample) ^ (static_cast<uint64_t>(plan.key.draw) << 8) ^
                                   static_cast<uint64_t>(media.media_index));
  const int64_t bands = config_.audio.mel_bands;
  const int64_t frames = media.shape.item.t;
  const float mean = std::accumulate(mel.begin(), mel.end(), 0.0f) / static_cast<float>(mel.size());
  const auto draw = [&](int64_t size, int64_t widest) {
    const int64_t width = static_cast<int64_t>(rng.NextBelow(std::min(widest, size) + 1));
    const int64_t begin = static_cast<int64_t>(rng.NextBelow(size - width + 1));
    return std::pair(begin, begin + width);
  };
  const auto [first_frame, end_frame] = draw(frames, mask.frames);
  const auto [first_band, end_band] = draw(bands, mask.bands);
  for (int64_t frame = 0; frame < frames; ++frame) {
    for (int64_t band = 0; band < bands; ++band) {
      const bool is_masked =
          (frame >= first_frame && frame < end_frame) || (band >= first_band && band < end_band);
      if (is_masked) mel[frame * bands + band] = mean;
    }
  }
}

}  // namespace omni::dataloader
