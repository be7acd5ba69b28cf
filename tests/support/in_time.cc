#include "tests/support/in_time.h"

#include <gtest/gtest.h>

#include <cstdio>

namespace omni::test {

void ExpectInTime(const std::function<std::string()>& attempt) {
  constexpr int kAttempts = 3;
  for (int i = 1; i <= kAttempts; ++i) {
    const std::string late = attempt();
    if (late.empty() || ::testing::Test::HasFatalFailure()) return;
    if (i == kAttempts) {
      ADD_FAILURE() << "too late " << kAttempts << " times, last: " << late;
    } else {
      std::printf("[   LATE   ] %s; once more\n", late.c_str());
      std::fflush(stdout);
    }
  }
}

}  // namespace omni::test
