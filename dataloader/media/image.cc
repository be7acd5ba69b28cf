#include "dataloader/media/image.h"

#include <algorithm>
#include <cmath>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "dataloader/media/image_codecs.h"
#include "runtime/base/status.h"

namespace omni::dataloader {
namespace {

absl::Status NotAnImage(absl::string_view bytes) {
  return absl::DataLossError(
      absl::StrCat("found ", DescribeContent(bytes), ", expected a picture (JPEG, PNG or WebP)"));
}

}  // namespace

absl::Status CheckImageSize(const char* format, int64_t height, int64_t width) {
  if (height >= 1 && width >= 1 && height <= kMaxImageSide && width <= kMaxImageSide &&
      height * width <= kMaxImagePixels) {
    return absl::OkStatus();
  }
  return absl::DataLossError(absl::StrCat(format, " header says ", width, " x ", height,
                                          " pixels; the limit is ", kMaxImageSide, " a side and ",
                                          kMaxImagePixels, " in all"));
}

absl::StatusOr<ImageSize> ProbeImage(absl::string_view bytes) {
  switch (SniffFormat(bytes)) {
    case MediaFormat::kJpeg:
      return ProbeJpeg(bytes);
    case MediaFormat::kPng:
      return ProbePng(bytes);
    case MediaFormat::kWebp:
      return ProbeWebp(bytes);
    default:
      return NotAnImage(bytes);
  }
}

absl::StatusOr<RgbBuffer> DecodeToBuffer(absl::string_view bytes, ImageSize wanted) {
  switch (SniffFormat(bytes)) {
    case MediaFormat::kJpeg:
      return DecodeJpeg(bytes, wanted);
    case MediaFormat::kPng:
      return DecodePng(bytes);
    case MediaFormat::kWebp:
      return DecodeWebp(bytes);
    default:
      return NotAnImage(bytes);
  }
}

absl::StatusOr<Image> DecodeImage(absl::string_view bytes, ImageSize wanted) {
  OMNI_ASSIGN_OR_RETURN(const RgbBuffer buffer, DecodeToBuffer(bytes, wanted));
  return Image{buffer.size, {buffer.data.get(), buffer.data.get() + buffer.num_bytes()}};
}

void OverWhite(const uint8_t* rgba, int64_t num_pixels, uint8_t* rgb) {
  for (int64_t i = 0; i < num_pixels; ++i) {
    const uint32_t alpha = rgba[4 * i + 3];
    for (int c = 0; c < 3; ++c) {
      rgb[3 * i + c] =
          static_cast<uint8_t>((rgba[4 * i + c] * alpha + 255 * (255 - alpha) + 127) / 255);
    }
  }
}

absl::StatusOr<ImageSize> SmartResize(ImageSize size, const ResizeBudget& budget) {
  if (budget.factor < 1 || budget.min_pixels < 1 || budget.max_pixels < budget.min_pixels) {
    return absl::InvalidArgumentError(absl::StrCat("pixel budget [", budget.min_pixels, ", ",
                                                   budget.max_pixels, "] with factor ",
                                                   budget.factor, " is empty"));
  }
  const int64_t factor = budget.factor;
  if (size.height < 1 || size.width < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("picture of ", size.width, " x ", size.height, " pixels"));
  }
  const double h = size.height, w = size.width;
  if (std::max(h, w) > 200 * std::min(h, w)) {
    return absl::InvalidArgumentError(
        absl::StrCat("picture of ", size.width, " x ", size.height,
                     " pixels is more than 200 times as long as wide"));
  }
  // Python's round: halves go to the even neighbour, which is what nearbyint does.
  int64_t out_h = factor * static_cast<int64_t>(std::nearbyint(h / factor));
  int64_t out_w = factor * static_cast<int64_t>(std::nearbyint(w / factor));
  if (out_h * out_w > budget.max_pixels) {
    const double beta = std::sqrt(h * w / budget.max_pixels);
    out_h = factor * static_cast<int64_t>(std::floor(h / beta / factor));
    out_w = factor * static_cast<int64_t>(std::floor(w / beta / factor));
  } else if (out_h * out_w < budget.min_pixels) {
    const double beta = std::sqrt(budget.min_pixels / (h * w));
    out_h = factor * static_cast<int64_t>(std::ceil(h * beta / factor));
    out_w = factor * static_cast<int64_t>(std::ceil(w * beta / factor));
  }
  // Strips thinner than the factor would vanish.
  return ImageSize{static_cast<int32_t>(std::max(out_h, factor)),
                   static_cast<int32_t>(std::max(out_w, factor))};
}

}  // namespace omni::dataloader
