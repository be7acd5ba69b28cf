// How far a rank has come: a count that grows whenever a piece of its work ends (a kernel, a task
// of one, a sample, a block of a file, bytes that moved between ranks).
//
// Who waits for a rank watches the count. As long as it grows the rank is slow, and is waited for;
// when it has stood still for the limit of the wait (limits.h) the rank is dead. Nobody calls
// anybody to publish it: the links between ranks read it when they are asked (comm/peer_links.h).
//
// A count belongs to what others wait for. Work on a thread beside the step has a count of its own,
// else a checkpoint being written would hide a step that hangs. A thread that waits for such work
// ticks its own count while the other one grows: so progress follows the waits.
#pragma once

#include <atomic>
#include <cstdint>

#include "absl/time/time.h"
#include "runtime/base/working_clock.h"

namespace omni {

class Progress {
 public:
  // From any thread; some nanoseconds.
  void Tick() { count_.fetch_add(1, std::memory_order_relaxed); }
  int64_t count() const { return count_.load(std::memory_order_relaxed); }

 private:
  alignas(64) std::atomic<int64_t> count_{0};
};

// For how long a count has stood still, as far as one observer has seen. One thread at a time.
class Stillness {
 public:
  explicit Stillness(const Progress& of, const WorkingClock& clock = WorkingClock::OfProcess())
      : of_(&of), clock_(&clock), seen_(of.count()), since_(clock.Now()) {}

  // True if it has grown since the last look, which it remembers.
  bool Grew() {
    const int64_t count = of_->count();
    if (count == seen_) return false;
    seen_ = count;
    since_ = clock_->Now();
    return true;
  }
  absl::Duration Last() {
    Grew();
    return clock_->Now() - since_;
  }

 private:
  const Progress* of_;
  const WorkingClock* clock_;
  int64_t seen_;
  absl::Duration since_;
};

}  // namespace omni
