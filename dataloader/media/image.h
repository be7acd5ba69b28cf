// Pictures: JPEG, PNG and WebP into RGB bytes, and resizing as torchvision does it.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "dataloader/media/media_info.h"

namespace omni::dataloader {

struct ImageSize {
  int32_t height = 0, width = 0;
  bool operator==(const ImageSize&) const = default;
};

// 8-bit RGB, rows top to bottom: [height, width, 3].
struct Image {
  ImageSize size;
  std::vector<uint8_t> rgb;
};

// A header may say 100000 x 100000: nothing larger than this is decoded.
inline constexpr int64_t kMaxImagePixels = int64_t{1} << 27;
inline constexpr int32_t kMaxImageSide = 65500;

// Reads the header only. DataLoss as ProbeMedia.
absl::StatusOr<ImageSize> ProbeImage(absl::string_view bytes);

enum class AlphaMode : uint8_t {
  kWhite,  // the picture is laid over white, as Qwen's own loader (qwen_vl_utils) does
  kDrop,   // what is under it shows, as in the image processors of transformers
};

// Decodes to RGB: grey is spread, CMYK converted, 16 bits cut to 8 (Pillow, and so transformers,
// makes everything but black of 16 bits of grey white).
// EXIF orientation is not applied, by decision: the image processors of transformers and
// LLaMA-Factory's loader take the pixels as stored, too. (transformers.image_utils.load_image does
// turn pictures: a data set that counts on it is to be turned beforehand, with Pillow's
// ImageOps.exif_transpose.) If `wanted` is not 0 x 0 a JPEG may come out smaller than its header
// says, by a scaled inverse DCT (x/8), but with both sides at least `wanted`; call it when a resize
// to `wanted` follows. DataLoss for corrupt, truncated or oversized content.
absl::StatusOr<Image> DecodeImage(absl::string_view bytes, ImageSize wanted = {},
                                  AlphaMode alpha = AlphaMode::kWhite);

// Qwen2-VL's smart_resize: both sides multiples of `factor`, the area within [min_pixels,
// max_pixels], the aspect ratio kept as well as that allows. InvalidArgument if a side is < 1
// or the aspect ratio is beyond 200.
struct ResizeBudget {
  int32_t factor = 28;
  int64_t min_pixels = 56 * 56;
  int64_t max_pixels = 28 * 28 * 1280;
};
absl::StatusOr<ImageSize> SmartResize(ImageSize size, const ResizeBudget& budget);

// Qwen3-VL's smart_resize of a clip: the budget is of all its `num_frames` frames together, which
// count as whole grids of `temporal_patch` (halves to even). InvalidArgument also if there are
// fewer frames than that or a side is below the factor.
absl::StatusOr<ImageSize> SmartResizeClip(int64_t num_frames, int32_t temporal_patch,
                                          ImageSize size, const ResizeBudget& budget);

// How a picture, or a frame of a clip, comes to its size.
enum class ResizeMode : uint8_t {
  // The decoder reduces first where it can (JPEG by 2, 4 or 8; clips FFmpeg does altogether), then
  // ResizeBicubic in the cheaper order of its passes.
  kFast,
  // Decoded whole; the bytes that the families' processors make (transformers' fast ones).
  kTorchvision,
};

// Bicubic (a = -0.5) with antialiasing: support grows with the reduction. By kTorchvision the bytes
// are those of torchvision's resize of uint8 tensors; by kFast they differ by at most 1 from
// Pillow's Image.resize(BICUBIC). The two differ only where the height is reduced much more than
// the width.
Image ResizeBicubic(const Image& image, ImageSize size, ResizeMode mode = ResizeMode::kFast);

}  // namespace omni::dataloader
