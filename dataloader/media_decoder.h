// The payload pass: a sample's media files into the rows that its plan gave them.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "dataloader/data_config.h"
#include "dataloader/media/audio.h"
#include "dataloader/media/video.h"
#include "dataloader/sample_planner.h"
#include "parallel/encoder_shards.h"
#include "runtime/base/progress.h"

namespace omni::dataloader {

// Thread-safe.
class MediaDecoder {
 public:
  // `video` may be null: the plugin is then looked for when the first clip is met.
  // `progress`, which may be null, is ticked for each frame of a clip.
  MediaDecoder(const DataConfig& config, std::shared_ptr<const VideoPlugin> video,
               Progress* progress = nullptr);

  // Loads medium `media` of `plan` and writes its rows [wanted): `payload` has the bytes of so
  // many. With `augment` the AudioMask is applied, as (seed, source, sample, draw) say. Errors:
  // IsSampleFault for what does not decode or has not the size its metadata said.
  absl::Status Decode(const SampleStore& store, const SamplePlan& plan, const MediaSpan& media,
                      bool augment, const parallel::UnitRange& wanted,
                      absl::Span<uint8_t> payload) const;

  // Memory of what is being decoded, beside the rows: files, and frames or sounds on their way.
  // From any thread.
  int64_t held_bytes() const { return held_bytes_.load(std::memory_order_relaxed); }

 private:
  absl::Status DecodeSound(const std::string& bytes, const SamplePlan& plan, const MediaSpan& media,
                           bool augment, const parallel::UnitRange& wanted,
                           absl::Span<uint8_t> payload) const;
  absl::StatusOr<std::shared_ptr<const VideoPlugin>> Video() const;
  void Mask(const SamplePlan& plan, const MediaSpan& media, absl::Span<float> mel) const;

  const DataConfig config_;
  const LogMel log_mel_;
  Progress* const progress_;
  mutable std::mutex mutex_;  // of video_
  // Shared with whoever made the loader.
  mutable std::shared_ptr<const VideoPlugin> video_;
  mutable std::atomic<int64_t> held_bytes_{0};
};

}  // namespace omni::dataloader
