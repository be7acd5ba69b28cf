// Sizes of media that lie beside a JSON file, kept from epoch to epoch: measuring one opens its
// file.
//
// Bounded: once the bytes are used up nothing more is kept, and nothing is thrown out. A lane goes
// through a permutation of its share, so with the least recently used thrown out a source larger
// than the bound would never find one; this way it finds the part that fits.
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

#include "dataloader/media/media_info.h"

namespace omni::dataloader {

// Of one source: about 250,000 samples of a picture each.
inline constexpr int64_t kMaxMeasuredBytes = int64_t{48} << 20;

// Threads may share one.
class MeasuredMedia {
 public:
  explicit MeasuredMedia(int64_t max_bytes) : max_bytes_(max_bytes) {}

  int32_t NewFile();  // a number for Find and Keep
  std::optional<std::vector<MediaInfo>> Find(int32_t file, int64_t sample) const;
  void Keep(int32_t file, int64_t sample, const std::vector<MediaInfo>& media);

  int64_t held_bytes() const;
  int64_t max_bytes() const { return max_bytes_; }

 private:
  static uint64_t KeyOf(int32_t file, int64_t sample) {
    return static_cast<uint64_t>(file) << 40 | static_cast<uint64_t>(sample);
  }

  const int64_t max_bytes_;
  mutable std::mutex mutex_;  // of everything below it
  int32_t num_files_ = 0;
  int64_t held_bytes_ = 0;
  std::unordered_map<uint64_t, std::vector<MediaInfo>> entries_;
};

}  // namespace omni::dataloader
