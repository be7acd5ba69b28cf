#include "runtime/base/working_clock.h"

#include <pthread.h>
#include <signal.h>

#include <chrono>
#include <memory>
#include <mutex>
#include <thread>

#include "absl/time/clock.h"
#include "runtime/base/process.h"

namespace omni {
namespace {

absl::Duration Monotonic() {
  return absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
}

class TickingClock final : public WorkingClock {
 public:
  // The thread lives as long as the process: nobody may have to wait for it at the end.
  void Start() {
    // Signals are for the threads that wait for them.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    std::thread([this] {
      NameThread("clock");
      while (true) {
        absl::SleepFor(kTick);
        const std::lock_guard<std::mutex> lock(mutex_);
        worked_.Tick(Monotonic());
      }
    }).detach();
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  // The reading is taken under the lock: so it is never older than the last tick.
  absl::Duration Now() const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return worked_.At(Monotonic());
  }

 private:
  mutable std::mutex mutex_;
  WorkedTime worked_{Monotonic()};
};

}  // namespace

const WorkingClock& WorkingClock::OfProcess() {
  // Never destroyed: threads may read it while the process ends.
  static const TickingClock& clock = []() -> const TickingClock& {
    TickingClock* ticking = std::make_unique<TickingClock>().release();
    ticking->Start();
    return *ticking;
  }();
  return clock;
}

}  // namespace omni
