// The payload pass: a sample's media files into the rows that its plan gave them.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "dataloader/data_config.h"
#include "dataloader/media/audio.h"
#include "dataloader/media/video.h"
#include "dataloader/sample_planner.h"

namespace omni::dataloader {

// Thread-safe.
class MediaDecoder {
 public:
  // `video` may be null: the plugin is then looked for when the first clip is met.
  MediaDecoder(const DataConfig& config, std::shared_ptr<const VideoPlugin> video);

  // Loads medium `media` of `plan` and writes its rows: `payload` has the bytes its shape says.
  // With `augment` the AudioMask is applied, as (seed, source, sample, draw) say. Errors:
  // IsSampleFault for what does not decode or has not the size its metadata said.
  absl::Status Decode(const SampleStore& store, const SamplePlan& plan, const MediaSpan& media,
                      bool augment, absl::Span<uint8_t> payload) const;

 private:
  absl::StatusOr<std::shared_ptr<const VideoPlugin>> Video() const;
  void Mask(const SamplePlan& plan, const MediaSpan& media, absl::Span<float> mel) const;

  const DataConfig config_;
  const LogMel log_mel_;
  mutable std::mutex mutex_;  // of video_
  // Shared with whoever made the loader.
  mutable std::shared_ptr<const VideoPlugin> video_;
};

}  // namespace omni::dataloader
