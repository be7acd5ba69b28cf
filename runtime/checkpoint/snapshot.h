// A copy of what is saved, as of the moment a save begins: steps go on while it is written.
//
// It is memory of its own, outside the page pool, for as long as a save is under way: mapped when
// the save begins, given back to the system slice by slice as it reaches the disk. What nobody
// changes meanwhile (TensorRange::is_constant) is not copied but written from where it is.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "runtime/checkpoint/tensor_source.h"

namespace omni {

class Snapshot {
 public:
  Snapshot() = default;
  ~Snapshot() { Release(); }
  Snapshot(const Snapshot&) = delete;
  Snapshot& operator=(const Snapshot&) = delete;

  // Bytes that Take would copy.
  static int64_t BytesOf(absl::Span<const TensorRange> ranges);

  // Copies, in place of what it held. ResourceExhausted, with the bytes, if the system refuses.
  // `copy_out` is for what is not in host memory, constant or not; its errors.
  absl::Status Take(absl::Span<const TensorRange> ranges, const CopyOut& copy_out = {});
  // As they were given, with data that stays.
  const std::vector<TensorRange>& ranges() const { return ranges_; }

  // Everything up to and with this range is written: whole pages of it go back to the system.
  void ReleaseThrough(size_t range);
  void Release();  // all

  int64_t held_bytes() const { return held_bytes_.load(std::memory_order_relaxed); }

 private:
  std::vector<TensorRange> ranges_;
  std::vector<int64_t> ends_;  // by range, in the mapping
  std::byte* data_ = nullptr;
  int64_t num_bytes_ = 0, released_ = 0;  // of the mapping; from its start
  std::atomic<int64_t> held_bytes_{0};    // read by other threads, for metrics
};

}  // namespace omni
