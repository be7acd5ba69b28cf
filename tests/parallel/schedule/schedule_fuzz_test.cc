// Whatever a builder is asked for, what it builds can run: random options, all programs verified.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "parallel/schedule/build.h"
#include "parallel/schedule/verify.h"
#include "tests/parallel/schedule/random_schedule.h"

namespace omni::parallel {
namespace {

TEST(ScheduleFuzzTest, EveryProgramVerifies) {
  std::mt19937 random(20261125);
  for (int32_t i = 0; i < 30000; ++i) {
    const ScheduleOptions options = RandomSchedule(random);
    ASSERT_TRUE(Check(options).ok()) << ToString(options) << ": " << Check(options);
    const absl::Status status = Verify(options, BuildPrograms(options));
    ASSERT_TRUE(status.ok()) << ToString(options) << ": " << status;
  }
}

}  // namespace
}  // namespace omni::parallel
