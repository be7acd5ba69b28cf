#include <webp/decode.h>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "dataloader/media/bytes.h"
#include "dataloader/media/image_codecs.h"
#include "runtime/base/status.h"

namespace omni::dataloader {
namespace {

const char* Reason(VP8StatusCode status) {
  switch (status) {
    case VP8_STATUS_OUT_OF_MEMORY:
      return "not enough memory";
    case VP8_STATUS_BITSTREAM_ERROR:
      return "broken bitstream";
    case VP8_STATUS_UNSUPPORTED_FEATURE:
      return "unsupported feature";
    case VP8_STATUS_NOT_ENOUGH_DATA:
      return "the file ends too early";
    default:
      return "can't be decoded";
  }
}

absl::StatusOr<WebPBitstreamFeatures> ReadHeader(absl::string_view bytes) {
  WebPBitstreamFeatures features;
  const VP8StatusCode status = WebPGetFeatures(Data(bytes), bytes.size(), &features);
  if (status != VP8_STATUS_OK) {
    return absl::DataLossError(absl::StrCat("corrupt WebP: ", Reason(status)));
  }
  if (features.has_animation) {
    return absl::DataLossError("WebP is animated, expected a still picture");
  }
  OMNI_RETURN_IF_ERROR(CheckImageSize("WebP", features.height, features.width));
  return features;
}

}  // namespace

absl::StatusOr<ImageSize> ProbeWebp(absl::string_view bytes) {
  OMNI_ASSIGN_OR_RETURN(const WebPBitstreamFeatures features, ReadHeader(bytes));
  return ImageSize{features.height, features.width};
}

absl::StatusOr<RgbBuffer> DecodeWebp(absl::string_view bytes, AlphaMode alpha) {
  OMNI_ASSIGN_OR_RETURN(const WebPBitstreamFeatures features, ReadHeader(bytes));
  const int64_t num_pixels = int64_t{features.height} * features.width;
  RgbBuffer image(ImageSize{features.height, features.width});
  const Scratch rgba(features.has_alpha ? 4 * num_pixels : 0);

  WebPDecoderConfig config;
  if (!WebPInitDecoderConfig(&config)) return absl::InternalError("libwebp has another version");
  config.output.is_external_memory = 1;
  config.output.colorspace = features.has_alpha ? MODE_RGBA : MODE_RGB;
  config.output.u.RGBA = {.rgba = features.has_alpha ? rgba.get() : image.data.get(),
                          .stride = features.width * (features.has_alpha ? 4 : 3),
                          .size = static_cast<size_t>(num_pixels * (features.has_alpha ? 4 : 3))};
  const VP8StatusCode status = WebPDecode(Data(bytes), bytes.size(), &config);
  if (status != VP8_STATUS_OK) {
    return absl::DataLossError(absl::StrCat("corrupt WebP: ", Reason(status)));
  }
  if (features.has_alpha) RemoveAlpha(rgba.get(), num_pixels, alpha, image.data.get());
  return image;
}

}  // namespace omni::dataloader
