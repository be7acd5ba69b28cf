// One decoder for each picture format; image.h chooses among them by content.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "dataloader/media/image.h"
#include "dataloader/media/scratch.h"

namespace omni::dataloader {

// DataLoss unless the size is within the limits of image.h.
absl::Status CheckImageSize(const char* format, int64_t height, int64_t width);

// [height, width, 3] bytes, not cleared, with kSlackBytes behind them that may be read (not
// used): vector loads need no special case at the end.
struct RgbBuffer {
  static constexpr int64_t kSlackBytes = 32;
  explicit RgbBuffer(ImageSize s) : size(s), data(int64_t{s.height} * s.width * 3 + kSlackBytes) {}

  int64_t num_bytes() const { return int64_t{size.height} * size.width * 3; }

  ImageSize size;
  Scratch data;
};

// DecodeImage without the copy.
absl::StatusOr<RgbBuffer> DecodeToBuffer(absl::string_view bytes, ImageSize wanted,
                                         AlphaMode alpha);

// ResizeBicubic; `source` has the slack, `out` is [size.height, size.width, 3].
void ResizeRgb(const RgbBuffer& source, ImageSize size, ResizeMode mode, uint8_t* out);

// rgba [n, 4] into rgb [n, 3].
void RemoveAlpha(const uint8_t* rgba, int64_t num_pixels, AlphaMode alpha, uint8_t* rgb);

absl::StatusOr<ImageSize> ProbeJpeg(absl::string_view bytes);
absl::StatusOr<RgbBuffer> DecodeJpeg(absl::string_view bytes, ImageSize wanted);
absl::StatusOr<ImageSize> ProbePng(absl::string_view bytes);
absl::StatusOr<RgbBuffer> DecodePng(absl::string_view bytes, AlphaMode alpha);
absl::StatusOr<ImageSize> ProbeWebp(absl::string_view bytes);
absl::StatusOr<RgbBuffer> DecodeWebp(absl::string_view bytes, AlphaMode alpha);

}  // namespace omni::dataloader
