#include "dataloader/media/media_info.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "dataloader/media/image.h"
#include "dataloader/media/sound_file.h"
#include "dataloader/media/video.h"
#include "runtime/base/status.h"

namespace omni::dataloader {
namespace {

uint8_t ByteAt(absl::string_view bytes, size_t i) {
  return i < bytes.size() ? static_cast<uint8_t>(bytes[i]) : 0;
}

// An MPEG audio frame header: eleven ones, then a version, layer, bitrate and rate that exist.
bool IsMpegAudioFrame(absl::string_view bytes) {
  const uint8_t b1 = ByteAt(bytes, 1), b2 = ByteAt(bytes, 2);
  return ByteAt(bytes, 0) == 0xff && (b1 & 0xe0) == 0xe0 && ((b1 >> 3) & 3) != 1 &&
         ((b1 >> 1) & 3) != 0 && (b2 >> 4) != 15 && ((b2 >> 2) & 3) != 3;
}

}  // namespace

const char* Name(MediaKind kind) {
  switch (kind) {
    case MediaKind::kImage:
      return "image";
    case MediaKind::kAudio:
      return "audio";
    case MediaKind::kVideo:
      return "video";
  }
  return "?";
}

const char* Name(MediaFormat format) {
  switch (format) {
    case MediaFormat::kUnknown:
      return "unknown";
    case MediaFormat::kJpeg:
      return "JPEG";
    case MediaFormat::kPng:
      return "PNG";
    case MediaFormat::kWebp:
      return "WebP";
    case MediaFormat::kWav:
      return "WAV";
    case MediaFormat::kFlac:
      return "FLAC";
    case MediaFormat::kOgg:
      return "OGG";
    case MediaFormat::kMp3:
      return "MP3";
    case MediaFormat::kMp4:
      return "MP4";
    case MediaFormat::kWebm:
      return "WebM";
  }
  return "?";
}

MediaFormat SniffFormat(absl::string_view bytes) {
  if (absl::StartsWith(bytes, "\xff\xd8\xff")) return MediaFormat::kJpeg;
  if (absl::StartsWith(bytes, "\x89PNG\r\n\x1a\n")) return MediaFormat::kPng;
  if (absl::StartsWith(bytes, "RIFF") || absl::StartsWith(bytes, "RF64")) {
    const absl::string_view type = bytes.substr(std::min<size_t>(8, bytes.size()), 4);
    if (type == "WEBP") return MediaFormat::kWebp;
    if (type == "WAVE") return MediaFormat::kWav;
    return MediaFormat::kUnknown;
  }
  if (absl::StartsWith(bytes, "fLaC")) return MediaFormat::kFlac;
  if (absl::StartsWith(bytes, "OggS")) return MediaFormat::kOgg;
  if (absl::StartsWith(bytes, "ID3")) return MediaFormat::kMp3;
  if (bytes.size() >= 8 && bytes.substr(4, 4) == "ftyp") return MediaFormat::kMp4;
  if (absl::StartsWith(bytes, "\x1a\x45\xdf\xa3")) return MediaFormat::kWebm;
  if (IsMpegAudioFrame(bytes)) return MediaFormat::kMp3;
  return MediaFormat::kUnknown;
}

MediaKind KindOf(MediaFormat format) {
  if (format >= MediaFormat::kMp4) return MediaKind::kVideo;
  if (format >= MediaFormat::kWav) return MediaKind::kAudio;
  return MediaKind::kImage;
}

std::string DescribeContent(absl::string_view bytes) {
  if (bytes.empty()) return "an empty file";
  const MediaFormat format = SniffFormat(bytes);
  if (format != MediaFormat::kUnknown) return Name(format);
  static constexpr struct {
    absl::string_view magic;
    const char* what;
  } kOthers[] = {
      {"GIF8", "a GIF picture"},
      {"BM", "a BMP picture"},
      {"II*", "a TIFF picture"},
      {"MM\0*", "a TIFF picture"},
      {"PK\3\4", "a zip archive"},
      {"\x1f\x8b", "gzip data"},
      {"%PDF", "a PDF document"},
      {"\x28\xb5\x2f\xfd", "zstd data"},
      {"<", "markup text (XML or HTML)"},
      {"{", "JSON text"},
      {"version https://git-lfs", "a Git LFS pointer"},
      {"FLV", "an FLV clip"},
      {"RIFF", "another RIFF file"},
  };
  for (const auto& other : kOthers) {
    if (absl::StartsWith(bytes, other.magic)) return other.what;
  }
  return absl::StrCat("unknown content starting with bytes ",
                      absl::BytesToHexString(bytes.substr(0, 8)));
}

absl::StatusOr<MediaInfo> ProbeMedia(MediaKind expected, absl::string_view bytes,
                                     const VideoPlugin* video) {
  const MediaFormat format = SniffFormat(bytes);
  if (format == MediaFormat::kUnknown || KindOf(format) != expected) {
    const char* formats = expected == MediaKind::kImage   ? "JPEG, PNG or WebP"
                          : expected == MediaKind::kAudio ? "WAV, FLAC, OGG or MP3"
                                                          : "MP4 or WebM";
    return absl::DataLossError(absl::StrCat("found ", DescribeContent(bytes), ", expected ",
                                            Name(expected), " (", formats, ")"));
  }
  MediaInfo info{.kind = expected, .format = format};
  switch (expected) {
    case MediaKind::kImage: {
      OMNI_ASSIGN_OR_RETURN(const ImageSize size, ProbeImage(bytes));
      info.height = size.height;
      info.width = size.width;
      return info;
    }
    case MediaKind::kAudio: {
      OMNI_ASSIGN_OR_RETURN(const SoundFile sound, SoundFile::Open(bytes));
      info.num_samples = sound.num_samples();
      info.sample_rate = sound.sample_rate();
      info.duration_s = static_cast<double>(info.num_samples) / info.sample_rate;
      return info;
    }
    case MediaKind::kVideo: {
      std::shared_ptr<const VideoPlugin> loaded;
      if (video == nullptr) {
        OMNI_ASSIGN_OR_RETURN(loaded, VideoPlugin::Load());
        video = loaded.get();
      }
      OMNI_ASSIGN_OR_RETURN(MediaInfo measured, video->Probe(bytes));
      measured.format = format;
      return measured;
    }
  }
  return info;
}

}  // namespace omni::dataloader
