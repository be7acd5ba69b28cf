#include "dataloader/formats/measured_media.h"

namespace omni::dataloader {
namespace {

constexpr int64_t kNodeBytes = 72;  // of the map, beside the vector's contents, about

}  // namespace

int32_t MeasuredMedia::NewFile() {
  const std::lock_guard lock(mutex_);
  return num_files_++;
}

std::optional<std::vector<MediaInfo>> MeasuredMedia::Find(int32_t file, int64_t sample) const {
  const std::lock_guard lock(mutex_);
  const auto found = entries_.find(KeyOf(file, sample));
  if (found == entries_.end()) return std::nullopt;
  return found->second;
}

void MeasuredMedia::Keep(int32_t file, int64_t sample, const std::vector<MediaInfo>& media) {
  const auto bytes = kNodeBytes + static_cast<int64_t>(media.size() * sizeof(MediaInfo));
  const std::lock_guard lock(mutex_);
  if (held_bytes_ + bytes > max_bytes_) return;
  if (entries_.try_emplace(KeyOf(file, sample), media).second) held_bytes_ += bytes;
}

int64_t MeasuredMedia::held_bytes() const {
  const std::lock_guard lock(mutex_);
  return held_bytes_;
}

}  // namespace omni::dataloader
