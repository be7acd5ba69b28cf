#include "dataloader/media/encode.h"

#include <png.h>
#include <sndfile.h>
#include <turbojpeg.h>
#include <webp/encode.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace omni::dataloader {
namespace {

absl::Status CheckPixels(const Image& image) {
  const int64_t expected = int64_t{image.size.height} * image.size.width * 3;
  if (expected > 0 && static_cast<int64_t>(image.rgb.size()) == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("picture of ", image.size.width, " x ",
                                                 image.size.height, " pixels has ",
                                                 image.rgb.size(), " bytes"));
}

// A growing file in memory for libsndfile.
struct Sink {
  std::string bytes;
  sf_count_t position = 0;
};
sf_count_t SinkLength(void* user) { return static_cast<Sink*>(user)->bytes.size(); }
sf_count_t SinkTell(void* user) { return static_cast<Sink*>(user)->position; }
sf_count_t SinkSeek(sf_count_t offset, int whence, void* user) {
  auto* sink = static_cast<Sink*>(user);
  const sf_count_t base = whence == SEEK_SET   ? 0
                          : whence == SEEK_CUR ? sink->position
                                               : SinkLength(user);
  return sink->position = std::max<sf_count_t>(base + offset, 0);
}
sf_count_t SinkRead(void* out, sf_count_t count, void* user) {
  auto* sink = static_cast<Sink*>(user);
  count = std::clamp<sf_count_t>(count, 0, SinkLength(user) - sink->position);
  std::memcpy(out, sink->bytes.data() + sink->position, count);
  sink->position += count;
  return count;
}
sf_count_t SinkWrite(const void* in, sf_count_t count, void* user) {
  auto* sink = static_cast<Sink*>(user);
  const size_t end = sink->position + count;
  if (end > sink->bytes.size()) sink->bytes.resize(end);
  std::memcpy(sink->bytes.data() + sink->position, in, count);
  sink->position += count;
  return count;
}

int SoundFormat(MediaFormat format) {
  switch (format) {
    case MediaFormat::kWav:
      return SF_FORMAT_WAV | SF_FORMAT_PCM_16;
    case MediaFormat::kFlac:
      return SF_FORMAT_FLAC | SF_FORMAT_PCM_16;
    case MediaFormat::kOgg:
      return SF_FORMAT_OGG | SF_FORMAT_VORBIS;
    case MediaFormat::kMp3:
      return SF_FORMAT_MPEG | SF_FORMAT_MPEG_LAYER_III;
    default:
      return 0;
  }
}

// libsndfile gives every Ogg stream a random serial number. Ours is 1: written into each page,
// whose checksum (CRC-32, polynomial 04c11db7, no reflection, RFC 3533) is then computed anew.
void FixOggSerial(std::string* file) {
  constexpr size_t kSerialAt = 14, kCrcAt = 22, kSegmentsAt = 26, kHeaderBytes = 27;
  size_t page = 0;
  while (page + kHeaderBytes <= file->size() && file->compare(page, 4, "OggS") == 0) {
    const size_t num_segments = static_cast<uint8_t>((*file)[page + kSegmentsAt]);
    size_t size = kHeaderBytes + num_segments;
    if (page + size > file->size()) return;
    for (size_t i = 0; i < num_segments; ++i) {
      size += static_cast<uint8_t>((*file)[page + kHeaderBytes + i]);
    }
    if (page + size > file->size()) return;
    file->replace(page + kSerialAt, 4, std::string("\x01\0\0\0", 4));
    file->replace(page + kCrcAt, 4, std::string(4, '\0'));
    uint32_t crc = 0;
    for (size_t i = 0; i < size; ++i) {
      crc ^= static_cast<uint32_t>(static_cast<uint8_t>((*file)[page + i])) << 24;
      for (int bit = 0; bit < 8; ++bit) crc = crc << 1 ^ (crc >> 31) * 0x04c11db7u;
    }
    for (int i = 0; i < 4; ++i) (*file)[page + kCrcAt + i] = static_cast<char>(crc >> (8 * i));
    page += size;
  }
}

}  // namespace

absl::StatusOr<std::string> EncodePng(const Image& image) {
  OMNI_RETURN_IF_ERROR(CheckPixels(image));
  png_image png{};
  png.version = PNG_IMAGE_VERSION;
  png.width = image.size.width;
  png.height = image.size.height;
  png.format = PNG_FORMAT_RGB;
  png_alloc_size_t size = PNG_IMAGE_PNG_SIZE_MAX(png);
  std::string bytes(size, '\0');
  if (!png_image_write_to_memory(&png, bytes.data(), &size, 0, image.rgb.data(), 0, nullptr)) {
    return absl::InternalError(absl::StrCat("libpng: ", png.message));
  }
  bytes.resize(size);
  return bytes;
}

absl::StatusOr<std::string> EncodeJpeg(const Image& image, int32_t quality) {
  OMNI_RETURN_IF_ERROR(CheckPixels(image));
  if (quality < 1 || quality > 100) {
    return absl::InvalidArgumentError(
        absl::StrCat("JPEG quality ", quality, " is not in [1, 100]"));
  }
  tjhandle jpeg = tjInitCompress();
  unsigned char* buffer = nullptr;
  unsigned long size = 0;
  const int code = tjCompress2(jpeg, image.rgb.data(), image.size.width, 0, image.size.height,
                               TJPF_RGB, &buffer, &size, TJSAMP_420, quality, TJFLAG_ACCURATEDCT);
  std::string bytes;
  absl::Status status;
  if (code == 0) {
    bytes.assign(reinterpret_cast<const char*>(buffer), size);
  } else {
    status = absl::InvalidArgumentError(absl::StrCat("TurboJPEG: ", tjGetErrorStr2(jpeg)));
  }
  tjFree(buffer);
  tjDestroy(jpeg);
  if (!status.ok()) return status;
  return bytes;
}

absl::StatusOr<std::string> EncodeWebp(const Image& image, float quality) {
  OMNI_RETURN_IF_ERROR(CheckPixels(image));
  uint8_t* buffer = nullptr;
  const int stride = image.size.width * 3;
  const size_t size = quality >= 100 ? WebPEncodeLosslessRGB(image.rgb.data(), image.size.width,
                                                             image.size.height, stride, &buffer)
                                     : WebPEncodeRGB(image.rgb.data(), image.size.width,
                                                     image.size.height, stride, quality, &buffer);
  if (size == 0) {
    return absl::InvalidArgumentError(absl::StrCat("libwebp can't write ", image.size.width, " x ",
                                                   image.size.height, " pixels"));
  }
  std::string bytes(reinterpret_cast<const char*>(buffer), size);
  WebPFree(buffer);
  return bytes;
}

absl::StatusOr<std::string> EncodeAudio(absl::Span<const float> samples, int32_t sample_rate,
                                        MediaFormat format) {
  SF_INFO info{};
  info.samplerate = sample_rate;
  info.channels = 1;
  info.format = SoundFormat(format);
  if (info.format == 0 || sample_rate < 1 || !sf_format_check(&info)) {
    return absl::InvalidArgumentError(
        absl::StrCat("can't write ", Name(format), " at ", sample_rate, " Hz"));
  }
  Sink sink;
  SF_VIRTUAL_IO io{.get_filelen = SinkLength,
                   .seek = SinkSeek,
                   .read = SinkRead,
                   .write = SinkWrite,
                   .tell = SinkTell};
  SNDFILE* file = sf_open_virtual(&io, SFM_WRITE, &info, &sink);
  if (file == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("can't write ", Name(format), " at ",
                                                   sample_rate, " Hz: ", sf_strerror(nullptr)));
  }
  sf_command(file, SFC_SET_CLIPPING, nullptr, SF_TRUE);
  // A long block at once overflows the stack in libsndfile's Vorbis writer.
  constexpr size_t kBlock = 4096;
  bool ok = true;
  for (size_t at = 0; ok && at < samples.size(); at += kBlock) {
    const sf_count_t count = std::min(kBlock, samples.size() - at);
    ok = sf_writef_float(file, samples.data() + at, count) == count;
  }
  const std::string error = ok ? "" : sf_strerror(file);
  sf_close(file);
  if (!ok) return absl::InternalError(absl::StrCat("libsndfile: ", error));
  if (format == MediaFormat::kOgg) FixOggSerial(&sink.bytes);
  return std::move(sink.bytes);
}

}  // namespace omni::dataloader
