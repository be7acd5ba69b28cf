#include "dataloader/payload_buffers.h"

#include <algorithm>
#include <bit>
#include <utility>

namespace omni::dataloader {
namespace {

// With room to spare, so that packs of a little more fit: at most a quarter.
int64_t Rounded(int64_t num_bytes) {
  const int64_t step = std::max<int64_t>(
      4096, static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(num_bytes))) / 4);
  return (num_bytes + step - 1) / step * step;
}

int64_t CapacityOf(const std::vector<uint8_t>& buffer) {
  return static_cast<int64_t>(buffer.capacity());
}

}  // namespace

std::vector<uint8_t> PayloadBuffers::Take(int64_t num_bytes) {
  std::vector<uint8_t> buffer;
  if (num_bytes == 0) return buffer;
  {
    const std::lock_guard lock(mutex_);
    // The smallest that is large enough; else the largest, which then grows.
    auto best = kept_.end();
    for (auto it = kept_.begin(); it != kept_.end(); ++it) {
      if (best == kept_.end()) {
        best = it;
      } else if (CapacityOf(*best) < num_bytes) {
        if (it->capacity() > best->capacity()) best = it;
      } else if (CapacityOf(*it) >= num_bytes && it->capacity() < best->capacity()) {
        best = it;
      }
    }
    if (best != kept_.end()) {
      buffer = std::move(*best);
      kept_bytes_ -= CapacityOf(buffer);
      std::swap(*best, kept_.back());
      kept_.pop_back();
    }
  }
  buffer.clear();  // nothing is copied when it grows
  if (CapacityOf(buffer) < num_bytes) {
    std::vector<uint8_t>().swap(buffer);  // nor are both there at once
    buffer.reserve(Rounded(num_bytes));
  }
  buffer.resize(num_bytes);
  return buffer;
}

void PayloadBuffers::Give(std::vector<uint8_t> buffer) {
  if (buffer.capacity() == 0) return;
  const std::lock_guard lock(mutex_);
  if (kept_bytes_ + CapacityOf(buffer) > max_kept_bytes_) return;
  kept_bytes_ += CapacityOf(buffer);
  kept_.push_back(std::move(buffer));
}

void PayloadBuffers::Limit(int64_t step_bytes) {
  const std::lock_guard lock(mutex_);
  // Capacities are those of the largest packs so far: more than what any one step has.
  max_kept_bytes_ = std::max(max_kept_bytes_, 2 * step_bytes + (64 << 10));
}

int64_t PayloadBuffers::kept_bytes() const {
  const std::lock_guard lock(mutex_);
  return kept_bytes_;
}

}  // namespace omni::dataloader
