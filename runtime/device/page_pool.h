// One region of device memory, reserved once, handed out in runs of pages.
//
// Every tensor of a step lives here, so after the first step the process asks the system for
// nothing, and the high-water mark can be held against what the plan reserved. Runs are found
// best-fit and merge with their free neighbours when returned.
//
// The pool orders nothing: a run returned while a stream still uses it may be handed out again
// at once, which is right when the next user enqueues on the same stream
// (Device::memory_stream says which, and what other streams owe). On cpu_async, freed pages are
// overwritten with a NaN pattern (in stream order), so a use after free shows.
//
// Not thread-safe: one pool belongs to one rank's issuing thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <utility>

#include "absl/status/statusor.h"

namespace omni {

inline constexpr int64_t kPageBytes = 4096;

struct PageRun {
  std::byte* data = nullptr;
  int64_t num_bytes = 0;  // a multiple of kPageBytes
};

class PagePool {
 public:
  struct Stats {
    int64_t reserved_bytes = 0;    // size of the region
    int64_t used_bytes = 0;        // handed out now
    int64_t high_water_bytes = 0;  // most ever handed out at once
    int64_t num_allocations = 0;   // since the start
  };

  // Reserves (does not touch) `reserved_bytes`. ResourceExhausted if the system refuses.
  static absl::StatusOr<std::unique_ptr<PagePool>> Create(int64_t reserved_bytes);
  // Of memory somebody else has reserved, which the host may not touch.
  static std::unique_ptr<PagePool> Over(std::byte* base, int64_t num_bytes,
                                        std::function<void()> release);
  ~PagePool();
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  // A run of at least `num_bytes`. Exceeding the reservation is ResourceExhausted, with what
  // was asked, used and reserved.
  absl::StatusOr<PageRun> Allocate(int64_t num_bytes);
  void Free(PageRun run);
  // Counts memory that lies elsewhere (elastic_memory.h) against the reservation, as Allocate does,
  // and no more.
  absl::Status Charge(int64_t num_bytes);
  void Refund(int64_t num_bytes);
  bool is_host_memory() const { return !release_; }
  // Told of every run that Allocate gives.
  void set_on_allocate(std::function<void(PageRun)> on_allocate) {
    on_allocate_ = std::move(on_allocate);
  }
  // Told of every run that Free takes back, before anybody else can get it.
  void set_on_free(std::function<void(PageRun)> on_free) { on_free_ = std::move(on_free); }

  const Stats& stats() const { return stats_; }
  void ResetHighWater() { stats_.high_water_bytes = stats_.used_bytes; }

 private:
  PagePool(std::byte* base, int64_t num_bytes, std::function<void()> release);
  absl::Status NoRoomFor(int64_t bytes) const;
  std::byte* const base_;
  const std::function<void()> release_;                 // empty: it is the host's own
  std::map<int64_t, int64_t> free_by_offset_;           // offset -> bytes
  std::set<std::pair<int64_t, int64_t>> free_by_size_;  // (bytes, offset)
  std::function<void(PageRun)> on_allocate_, on_free_;
  Stats stats_;
};

}  // namespace omni
