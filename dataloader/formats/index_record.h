// One sample of an index file as bytes, little endian:
//   int64 json offset, int64 json size, uint32 key bytes, uint32 number of media, the key, then
//   per medium: int64 offset, size, samples or frames; double fps, duration; int32 height, width,
//   sample rate; uint8 kind, format, two of padding.
#pragma once

#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "dataloader/formats/tar_index.h"

namespace omni::dataloader {

void AppendRecord(const IndexedSample& sample, std::string* out);
std::optional<IndexedSample> ParseRecord(absl::string_view bytes);  // nothing: broken

}  // namespace omni::dataloader
