// How to wait: never for ever, never deaf, never in silence.
//
//   const WaitEnd end = WaitFor(changed, lock,
//                               {.limit = absl::Seconds(30),
//                                .stop = [&] { return link.stop_requested(); },
//                                .say = [&](absl::Duration waited) {
//                                  log->Warning("waiting for the disk since ", waited);
//                                }},
//                               [&] { return is_written; });
//
// `limit` is working time (working_clock.h): time in which this process was suspended doesn't
// count.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <functional>
#include <mutex>

#include "absl/time/time.h"
#include "runtime/base/working_clock.h"

namespace omni {

struct WaitOptions {
  absl::Duration limit = absl::InfiniteDuration();  // forever only where `stop` is set
  // Ends the wait; asked every 50 ms, under the lock. May be empty.
  std::function<bool()> stop = {};
  // Told, without the lock, after `say_after`, then after twice as long, and so on: what is waited
  // for. It must not block. May be empty.
  std::function<void(absl::Duration waited)> say = {};
  absl::Duration say_after = absl::Seconds(10);
  const WorkingClock& clock = WorkingClock::OfProcess();
};

enum class WaitEnd { kReady, kStopped, kLimit };

// Waits until `ready()`, asked under the lock whenever `changed` is notified. kReady even if a
// limit or stop came at the same time.
template <typename Ready>
WaitEnd WaitFor(std::condition_variable& changed, std::unique_lock<std::mutex>& lock,
                const WaitOptions& options, const Ready& ready) {
  constexpr absl::Duration kSlice = absl::Milliseconds(50);
  const absl::Duration start = options.clock.Now();
  absl::Duration say_at = options.say_after;
  while (!ready()) {
    if (options.stop && options.stop()) return WaitEnd::kStopped;
    const absl::Duration waited = options.clock.Now() - start;
    if (waited >= options.limit) return WaitEnd::kLimit;
    if (options.say && waited >= say_at) {
      lock.unlock();
      options.say(waited);
      lock.lock();
      say_at = 2 * waited;
      continue;
    }
    changed.wait_for(lock, absl::ToChronoNanoseconds(std::min(kSlice, options.limit - waited)));
  }
  return WaitEnd::kReady;
}

}  // namespace omni
