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

absl::Status CheckResize(ImageSize size, const ResizeBudget& budget) {
  if (budget.factor < 1 || budget.min_pixels < 1 || budget.max_pixels < budget.min_pixels) {
    return absl::InvalidArgumentError(absl::StrCat("pixel budget [", budget.min_pixels, ", ",
                                                   budget.max_pixels, "] with factor ",
                                                   budget.factor, " is empty"));
  }
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
  return absl::OkStatus();
}

// Python's round: halves go to the even neighbour, which is what nearbyint does.
int64_t RoundTo(double length, int64_t factor) {
  return factor * static_cast<int64_t>(std::nearbyint(length / static_cast<double>(factor)));
}

// `rounded` pixels are there with both sides rounded to the factor; if they are beyond the budget,
// the sides are scaled from the `exact` number and cut, or filled up, to the factor.
ImageSize Fit(ImageSize size, int64_t rounded, double exact, const ResizeBudget& budget) {
  const double h = size.height, w = size.width;
  const int64_t factor = budget.factor;
  int64_t out_h = RoundTo(h, factor), out_w = RoundTo(w, factor);
  if (rounded > budget.max_pixels) {
    const double beta = std::sqrt(exact / static_cast<double>(budget.max_pixels));
    out_h = factor * static_cast<int64_t>(std::floor(h / beta / factor));
    out_w = factor * static_cast<int64_t>(std::floor(w / beta / factor));
  } else if (rounded < budget.min_pixels) {
    const double beta = std::sqrt(static_cast<double>(budget.min_pixels) / exact);
    out_h = factor * static_cast<int64_t>(std::ceil(h * beta / factor));
    out_w = factor * static_cast<int64_t>(std::ceil(w * beta / factor));
  }
  // Strips thinner than the factor would vanish.
  return {static_cast<int32_t>(std::max(out_h, factor)),
          static_cast<int32_t>(std::max(out_w, factor))};
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

absl::StatusOr<RgbBuffer> DecodeToBuffer(absl::string_view bytes, ImageSize wanted,
                                         AlphaMode alpha) {
  switch (SniffFormat(bytes)) {
    case MediaFormat::kJpeg:
      return DecodeJpeg(bytes, wanted);
    case MediaFormat::kPng:
      return DecodePng(bytes, alpha);
    case MediaFormat::kWebp:
      return DecodeWebp(bytes, alpha);
    default:
      return NotAnImage(bytes);
  }
}

absl::StatusOr<Image> DecodeImage(absl::string_view bytes, ImageSize wanted, AlphaMode alpha) {
  OMNI_ASSIGN_OR_RETURN(const RgbBuffer buffer, DecodeToBuffer(bytes, wanted, alpha));
  return Image{buffer.size, {buffer.data.get(), buffer.data.get() + buffer.num_bytes()}};
}

void RemoveAlpha(const uint8_t* rgba, int64_t num_pixels, AlphaMode mode, uint8_t* rgb) {
  for (int64_t i = 0; i < num_pixels; ++i) {
    // 255 is opaque.
    const uint32_t alpha = mode == AlphaMode::kDrop ? 255 : rgba[4 * i + 3];
    for (int c = 0; c < 3; ++c) {
      rgb[3 * i + c] =
          static_cast<uint8_t>((rgba[4 * i + c] * alpha + 255 * (255 - alpha) + 127) / 255);
    }
  }
}

absl::StatusOr<ImageSize> SmartResize(ImageSize size, const ResizeBudget& budget) {
  OMNI_RETURN_IF_ERROR(CheckResize(size, budget));
  const double h = size.height, w = size.width;
  const int64_t area = RoundTo(h, budget.factor) * RoundTo(w, budget.factor);
  return Fit(size, area, h * w, budget);
}

absl::StatusOr<ImageSize> SmartResizeClip(int64_t num_frames, int32_t temporal_patch,
                                          ImageSize size, const ResizeBudget& budget) {
  OMNI_RETURN_IF_ERROR(CheckResize(size, budget));
  if (num_frames < temporal_patch) {
    return absl::InvalidArgumentError(
        absl::StrCat("clip of ", num_frames, " frames, expected ", temporal_patch, " at least"));
  }
  if (std::min(size.height, size.width) < budget.factor) {
    return absl::InvalidArgumentError(absl::StrCat("clip of ", size.width, " x ", size.height,
                                                   " pixels, expected ", budget.factor,
                                                   " a side at least"));
  }
  const double frames = static_cast<double>(num_frames), h = size.height, w = size.width;
  const int64_t volume =
      RoundTo(frames, temporal_patch) * RoundTo(h, budget.factor) * RoundTo(w, budget.factor);
  return Fit(size, volume, frames * h * w, budget);
}

}  // namespace omni::dataloader
