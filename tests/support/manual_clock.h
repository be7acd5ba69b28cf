// A working clock whose hands a test turns.
#pragma once

#include <mutex>

#include "runtime/base/working_clock.h"

namespace omni::test {

class ManualClock : public WorkingClock {
 public:
  absl::Duration Now() const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return now_;
  }
  void Advance(absl::Duration by) {
    const std::lock_guard<std::mutex> lock(mutex_);
    now_ += by;
  }

 private:
  mutable std::mutex mutex_;
  absl::Duration now_ = absl::Hours(1);
};

}  // namespace omni::test
