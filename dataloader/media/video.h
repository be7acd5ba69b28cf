// Clips through the FFmpeg plugin (ffmpeg_plugin.h).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "dataloader/media/image.h"
#include "dataloader/media/media_info.h"

namespace omni::dataloader {

class VideoPlugin {
 public:
  // Loads omnitrain_ffmpeg.so: `path` if given, else $OMNITRAIN_FFMPEG_PLUGIN, else ../lib of the
  // running binary, or lib or nothing beside it. FailedPrecondition, with where it was looked
  // for and how to get it, if it is absent or does not load.
  static absl::StatusOr<std::shared_ptr<const VideoPlugin>> Load(const std::string& path = "");
  ~VideoPlugin();
  VideoPlugin(const VideoPlugin&) = delete;
  VideoPlugin& operator=(const VideoPlugin&) = delete;

  std::string version() const;  // FFmpeg's

  // DataLoss for what is not a clip or is torn. The frames are counted.
  absl::StatusOr<MediaInfo> Probe(absl::string_view bytes) const;

  // See `decode` in ffmpeg_plugin.h; `rgb` has indices.size() * size.height * size.width * 3
  // bytes; `timestamps_s` may be null or gets one time per index.
  absl::Status Decode(absl::string_view bytes, absl::Span<const int64_t> indices, ImageSize size,
                      absl::Span<uint8_t> rgb, std::vector<double>* timestamps_s) const;

  // One frame at a time: on_frame(i) when `rgb`, size.height * size.width * 3 bytes, holds the
  // frame of indices[i]; for clips of which all frames together are too much.
  absl::Status DecodeEach(absl::string_view bytes, absl::Span<const int64_t> indices,
                          ImageSize size, absl::Span<uint8_t> rgb,
                          absl::FunctionRef<void(int64_t i)> on_frame) const;

  // Frames [n, height, width, 3] into an MP4 (H.264) or WebM (VP8) file, yuv420p; sides even.
  struct EncodeOptions {
    MediaFormat format = MediaFormat::kMp4;
    int32_t fps = 8;
    int32_t quality = 23;  // constant rate factor, 0 best .. 51
  };
  absl::StatusOr<std::string> Encode(absl::Span<const uint8_t> frames, ImageSize size,
                                     const EncodeOptions& options) const;

 private:
  struct Library;
  explicit VideoPlugin(std::unique_ptr<Library> library);
  std::unique_ptr<Library> library_;
};

}  // namespace omni::dataloader
