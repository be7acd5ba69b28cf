// Names and checksums inside a checkpoint folder; shared by its writer and its reader.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/base/file.h"

struct XXH3_state_s;

namespace omni::checkpoint_layout {

// What a manifest says of itself: 2 if it has ranges of several runs (RunsOf), else 1. Both are
// read.
inline constexpr int kVersion = 1, kVersionWithRuns = 2;

// Elements [begin + i stride, begin + i stride + count) of a tensor, for i in [0, runs): columns of
// a matrix, stored one run behind the other. In a manifest "stride" and "runs" are left out where
// runs is 1.
struct Runs {
  int64_t begin = 0, count = 0, stride = 0, runs = 1;

  int64_t num_elements() const { return count * runs; }
  // Where element `index` of the tensor is stored, and how many follow it there and in the tensor;
  // {-1, 0} if it is not.
  std::pair<int64_t, int64_t> Find(int64_t index) const;
  // Adds [next, next + next_count), if it goes on as the runs so far do.
  bool Extend(int64_t next, int64_t next_count);
};

std::string Folder(const std::string& folder, int64_t step);         // .../step-00000100
std::string PartialFolder(const std::string& folder, int64_t step);  // .../step-00000100.partial
std::string ShardName(int32_t rank);                                 // rank-00000.safetensors
std::optional<int64_t> StepOfFolder(const std::string& name);

struct Checksum {
  int64_t num_bytes = 0;
  std::string hex;  // XXH3, 64 bits
};
// Over bytes that come one after the other.
class Checksummer {
 public:
  Checksummer();
  void Add(absl::string_view bytes);
  Checksum Sum() const;

 private:
  std::unique_ptr<XXH3_state_s, void (*)(XXH3_state_s*)> state_;
  int64_t num_bytes_ = 0;
};

// Errors of ReadBlocks.
absl::StatusOr<Checksum> ChecksumOf(const std::string& path, const OnBlock& on_block = {});
// DataLoss, naming the file and both, if they are not equal.
absl::Status Compare(const std::string& path, const Checksum& found, const Checksum& manifest);

}  // namespace omni::checkpoint_layout
