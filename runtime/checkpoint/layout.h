// Names and checksums inside a checkpoint folder; shared by its writer and its reader.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"

namespace omni::checkpoint_layout {

inline constexpr int kVersion = 1;

std::string Folder(const std::string& folder, int64_t step);         // .../step-00000100
std::string PartialFolder(const std::string& folder, int64_t step);  // .../step-00000100.partial
std::string ShardName(int32_t rank);                                 // rank-00000.safetensors
std::optional<int64_t> StepOfFolder(const std::string& name);

struct Checksum {
  int64_t num_bytes = 0;
  std::string hex;  // XXH3, 64 bits
};
absl::StatusOr<Checksum> ChecksumOf(const std::string& path);

}  // namespace omni::checkpoint_layout
