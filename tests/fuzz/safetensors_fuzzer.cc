// Any bytes as a safetensors file: an error, or entries that tile the data and match their shapes.
#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "runtime/base/check.h"
#include "runtime/checkpoint/safetensors.h"

namespace omni {

void FuzzSafetensors(absl::string_view bytes, int64_t file_bytes) {
  const absl::StatusOr<SafetensorsHeader> header = ParseSafetensorsHeader(bytes, file_bytes);
  if (!header.ok()) {
    OMNI_CHECK(!header.status().message().empty());
    return;
  }
  OMNI_CHECK(header->data_offset >= 8 && header->data_offset <= file_bytes);
  std::vector<std::pair<int64_t, int64_t>> ranges;
  for (const auto& [name, entry] : header->tensors) {
    int64_t expected = SizeOf(entry.dtype);
    for (const int64_t size : entry.shape) {
      OMNI_CHECK(size >= 0);
      OMNI_CHECK(!__builtin_mul_overflow(expected, size, &expected));
    }
    OMNI_CHECK_EQ(entry.end - entry.begin, expected);
    ranges.emplace_back(entry.begin, entry.end);
  }
  std::sort(ranges.begin(), ranges.end());
  int64_t end = 0;
  for (const auto& [first, last] : ranges) {
    OMNI_CHECK_EQ(first, end);
    end = last;
  }
  OMNI_CHECK_EQ(end, file_bytes - header->data_offset);
}

}  // namespace omni

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  omni::FuzzSafetensors(bytes, static_cast<int64_t>(size));
  // A prefix that holds the header of a longer file.
  omni::FuzzSafetensors(bytes, static_cast<int64_t>(size) + 24);
  return 0;
}
