// What a media file is and how large, told from its first bytes.
//
// The content decides, never the file name: a PNG called cat.jpg is read as the PNG it is. Sizes
// are measured (an image's header, a sound's sample count, a clip's frames counted by its
// demuxer), because the batch's layout is agreed on them before anything is decoded.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace omni::dataloader {

class VideoPlugin;

// Values are stored in index files: extend, never renumber.
enum class MediaKind : uint8_t { kImage = 0, kAudio = 1, kVideo = 2 };

enum class MediaFormat : uint8_t {
  kUnknown = 0,
  kJpeg = 1,
  kPng = 2,
  kWebp = 3,
  kWav = 16,
  kFlac = 17,
  kOgg = 18,
  kMp3 = 19,
  kMp4 = 32,
  kWebm = 33,
};

const char* Name(MediaKind kind);      // "image"
const char* Name(MediaFormat format);  // "JPEG"

struct MediaInfo {
  MediaKind kind = MediaKind::kImage;
  MediaFormat format = MediaFormat::kUnknown;
  int32_t height = 0, width = 0;  // images and video, pixels
  int64_t num_samples = 0;        // audio: per channel
  int32_t sample_rate = 0;        // audio: Hz
  int64_t num_frames = 0;         // video
  double fps = 0;                 // video: mean frames per second
  double duration_s = 0;          // audio and video

  bool operator==(const MediaInfo&) const = default;
};

// The format the first bytes say, kUnknown if none. 32 bytes are enough.
MediaFormat SniffFormat(absl::string_view bytes);
MediaKind KindOf(MediaFormat format);  // of kUnknown: kImage

// "JPEG", or for unknown content what was found: "a zip archive", "bytes 00 01 02 03".
std::string DescribeContent(absl::string_view bytes);

// Measures one media file from all its bytes. Images and sounds have only their headers read
// (an MP3 is walked); a clip is demuxed, not decoded, through `video`; with a null `video` the
// plugin is looked for. DataLoss, saying what was found: not a format we read, another kind than
// `expected`, empty, torn, or beyond the limits of image.h.
absl::StatusOr<MediaInfo> ProbeMedia(MediaKind expected, absl::string_view bytes,
                                     const VideoPlugin* video = nullptr);

}  // namespace omni::dataloader
