// Time in which this process ran, for deadlines.
//
// A process may be suspended: Ctrl-Z, SIGSTOP, `scontrol suspend`, `docker pause` and any other
// freezer of a cgroup, a laptop's lid, the pause of a virtual machine. What others did not do in
// that time says nothing about them, so it counts towards no deadline:
//
//   const WorkingClock& clock = WorkingClock::OfProcess();
//   const absl::Duration start = clock.Now();
//   if (clock.Now() - start > limit) return absl::DeadlineExceededError(...);
//
// A thread ticks every kTick. Between two ticks at most kMostPerTick are counted, however long they
// were apart on CLOCK_MONOTONIC. So:
//   * a suspension counts as at most kMostPerTick, and takes none of what was counted before;
//   * on a machine so busy that the ticking thread gets no processor for longer than kMostPerTick,
//     deadlines become longer, never shorter;
//   * otherwise the clock is as precise as CLOCK_MONOTONIC, and setting the machine's time of day
//     moves nothing.
// Each process has its own: two that were suspended together go on together, and a process that was
// not suspended still sees how long another is silent.
//
// There is one such clock in a process, like the machine's own: whether the process runs is a fact
// of the process and not of its parts. Who waits takes a `const WorkingClock&` where tests should
// turn the hands (tests/support/manual_clock.h).
#pragma once

#include <algorithm>

#include "absl/time/time.h"

namespace omni {

class WorkingClock {
 public:
  static constexpr absl::Duration kTick = absl::Milliseconds(50);
  static constexpr absl::Duration kMostPerTick = absl::Milliseconds(500);

  virtual ~WorkingClock() = default;
  // Time worked since some moment in the past. Never decreases. From any thread; well below a
  // microsecond.
  virtual absl::Duration Now() const = 0;

  // Ticks from the first call to the end of the process.
  static const WorkingClock& OfProcess();
};

// The arithmetic: of readings of a clock that never goes back, what counts. Not thread-safe.
class WorkedTime {
 public:
  explicit WorkedTime(absl::Duration first_reading) : last_tick_(first_reading) {}

  void Tick(absl::Duration reading) {
    worked_ = At(reading);
    last_tick_ = reading;
  }
  // At a reading not before the last tick.
  absl::Duration At(absl::Duration reading) const {
    return worked_ + std::min(reading - last_tick_, WorkingClock::kMostPerTick);
  }

 private:
  absl::Duration worked_;
  absl::Duration last_tick_;
};

}  // namespace omni
