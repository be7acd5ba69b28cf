// JPEG through the TurboJPEG API. Strips of 28 rows through libjpeg's, packed while they are in
// cache, would gain 1 to 4 % of a megapixel (Zen 5): patches.cc asks for its lines early instead.
#include <turbojpeg.h>

#include <string>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "dataloader/media/bytes.h"
#include "dataloader/media/image_codecs.h"
#include "runtime/base/status.h"

namespace omni::dataloader {
namespace {

struct Decompressor {
  Decompressor() : handle(tjInitDecompress()) {}
  ~Decompressor() {
    if (handle != nullptr) tjDestroy(handle);
  }
  Decompressor(const Decompressor&) = delete;
  Decompressor& operator=(const Decompressor&) = delete;
  std::string error() const { return tjGetErrorStr2(handle); }

  tjhandle handle;
};

struct JpegHeader {
  int width = 0, height = 0, subsampling = 0, colorspace = 0;
};

absl::StatusOr<JpegHeader> ReadHeader(const Decompressor& jpeg, absl::string_view bytes) {
  JpegHeader header;
  if (jpeg.handle == nullptr) return absl::InternalError("TurboJPEG does not start");
  if (tjDecompressHeader3(jpeg.handle, Data(bytes), bytes.size(), &header.width, &header.height,
                          &header.subsampling, &header.colorspace) != 0 &&
      tjGetErrorCode(jpeg.handle) != TJERR_WARNING) {
    return absl::DataLossError(absl::StrCat("corrupt JPEG: ", jpeg.error()));
  }
  if (header.width <= 0 || header.height <= 0) {
    return absl::DataLossError("corrupt JPEG: there is no picture in it");
  }
  OMNI_RETURN_IF_ERROR(CheckImageSize("JPEG", header.height, header.width));
  return header;
}

// The smallest of 1/8, 1/4, 1/2 and 1 that still covers `wanted`; the DCT of other eighths has
// no vector code and costs more than it saves.
tjscalingfactor ChooseScale(const JpegHeader& header, ImageSize wanted) {
  if (wanted.height > 0 && wanted.width > 0) {
    for (const int denominator : {8, 4, 2}) {
      const tjscalingfactor scale{1, denominator};
      if (TJSCALED(header.height, scale) >= wanted.height &&
          TJSCALED(header.width, scale) >= wanted.width) {
        return scale;
      }
    }
  }
  return {1, 1};
}

// libjpeg goes on after damage and calls it a warning. Stray bytes between markers harm nothing;
// everything else (bad codes, a file that ends early) has cost picture content.
bool IsHarmless(absl::string_view warning) {
  return absl::StrContains(warning, "extraneous bytes before marker") ||
         absl::StrContains(warning, "Unknown Adobe color transform") ||
         absl::StrContains(warning, "JFIF major revision");
}

}  // namespace

absl::StatusOr<ImageSize> ProbeJpeg(absl::string_view bytes) {
  const Decompressor jpeg;
  OMNI_ASSIGN_OR_RETURN(const JpegHeader header, ReadHeader(jpeg, bytes));
  return ImageSize{header.height, header.width};
}

absl::StatusOr<RgbBuffer> DecodeJpeg(absl::string_view bytes, ImageSize wanted) {
  const Decompressor jpeg;
  OMNI_ASSIGN_OR_RETURN(const JpegHeader header, ReadHeader(jpeg, bytes));
  const tjscalingfactor scale = ChooseScale(header, wanted);
  const ImageSize size{TJSCALED(header.height, scale), TJSCALED(header.width, scale)};
  const bool is_cmyk = header.colorspace == TJCS_CMYK || header.colorspace == TJCS_YCCK;

  RgbBuffer image(size);
  const Scratch cmyk(is_cmyk ? int64_t{size.height} * size.width * 4 : 0);
  if (tjDecompress2(jpeg.handle, Data(bytes), bytes.size(), is_cmyk ? cmyk.get() : image.data.get(),
                    size.width, 0, size.height, is_cmyk ? TJPF_CMYK : TJPF_RGB,
                    TJFLAG_LIMITSCANS) != 0) {
    const std::string error = jpeg.error();
    if (tjGetErrorCode(jpeg.handle) != TJERR_WARNING || !IsHarmless(error)) {
      return absl::DataLossError(absl::StrCat("corrupt JPEG: ", error));
    }
  }
  if (is_cmyk) {  // Adobe writes it inverted: 255 is no ink
    const int64_t num_pixels = int64_t{size.height} * size.width;
    for (int64_t i = 0; i < num_pixels; ++i) {
      for (int c = 0; c < 3; ++c) {
        image.data[3 * i + c] = static_cast<uint8_t>(cmyk[4 * i + c] * cmyk[4 * i + 3] / 255);
      }
    }
  }
  return image;
}

}  // namespace omni::dataloader
