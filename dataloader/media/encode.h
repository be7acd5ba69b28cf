// Writing media: for looking at samples (`data inspect`) and making data sets. Clips are encoded
// by VideoPlugin::Encode. The bytes depend only on the arguments.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "dataloader/media/image.h"
#include "dataloader/media/media_info.h"

namespace omni::dataloader {

absl::StatusOr<std::string> EncodePng(const Image& image);
absl::StatusOr<std::string> EncodeJpeg(const Image& image,
                                       int32_t quality = 90);                    // 1 .. 100, 4:2:0
absl::StatusOr<std::string> EncodeWebp(const Image& image, float quality = 90);  // 100: lossless

// Mono samples in [-1, 1] as WAV (16-bit), FLAC, OGG (Vorbis) or MP3. InvalidArgument for other
// formats or rates the codec can't have.
absl::StatusOr<std::string> EncodeAudio(absl::Span<const float> samples, int32_t sample_rate,
                                        MediaFormat format = MediaFormat::kWav);

}  // namespace omni::dataloader
