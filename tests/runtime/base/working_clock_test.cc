#include "runtime/base/working_clock.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "runtime/base/wait.h"
#include "tests/support/manual_clock.h"

namespace omni {
namespace {

constexpr absl::Duration kTick = WorkingClock::kTick;
constexpr absl::Duration kMost = WorkingClock::kMostPerTick;

TEST(WorkedTimeTest, TicksThatComeInTimeCountInFull) {
  const absl::Duration begin = absl::Hours(7);
  WorkedTime worked(begin);
  for (int i = 1; i <= 100; ++i) worked.Tick(begin + i * kTick);
  EXPECT_EQ(worked.At(begin + 100 * kTick), 100 * kTick);
  EXPECT_EQ(worked.At(begin + 100 * kTick + absl::Milliseconds(7)),
            100 * kTick + absl::Milliseconds(7));
}

TEST(WorkedTimeTest, AGapCountsForLittleAndTakesNothingBack) {
  WorkedTime worked(absl::ZeroDuration());
  worked.Tick(kTick);
  const absl::Duration resumed = kTick + absl::Hours(9);
  EXPECT_EQ(worked.At(resumed), kTick + kMost);  // read before the first tick after the gap
  worked.Tick(resumed);
  EXPECT_EQ(worked.At(resumed), kTick + kMost);
  worked.Tick(resumed + kTick);
  EXPECT_EQ(worked.At(resumed + kTick), 2 * kTick + kMost);
}

TEST(WorkedTimeTest, ItNeverGoesBack) {
  uint64_t state = 12345;
  const auto draw = [&](uint64_t below) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (state >> 33) % below;
  };
  WorkedTime worked(absl::ZeroDuration());
  absl::Duration reading, last;
  for (int i = 0; i < 10000; ++i) {
    reading += absl::Milliseconds(draw(draw(10) == 0 ? 5000 : 60));
    if (draw(2) == 0) worked.Tick(reading);
    ASSERT_GE(worked.At(reading), last);
    ASSERT_LE(worked.At(reading), reading);
    last = worked.At(reading);
  }
}

TEST(WorkingClockTest, ItGoesOn) {
  const WorkingClock& clock = WorkingClock::OfProcess();
  const absl::Duration start = clock.Now();
  while (clock.Now() - start < absl::Seconds(1)) absl::SleepFor(absl::Milliseconds(1));
}

// What the child below read of its clock and of the machine's, in milliseconds.
struct Readings {
  int64_t worked_ms, passed_ms;
};

// Not a test: a program of its own, which the next one starts.
TEST(WorkingClockTest, DISABLED_Child) {
  const int in = std::stoi(std::getenv("OMNI_CLOCK_IN")),
            out = std::stoi(std::getenv("OMNI_CLOCK_OUT"));
  alarm(300);
  const WorkingClock& clock = WorkingClock::OfProcess();
  const absl::Duration worked = clock.Now();
  const auto passed = std::chrono::steady_clock::now();
  char byte = 1;
  ASSERT_EQ(write(out, &byte, 1), 1);
  ASSERT_EQ(read(in, &byte, 1), 1);
  const Readings readings = {absl::ToInt64Milliseconds(clock.Now() - worked),
                             std::chrono::duration_cast<std::chrono::milliseconds>(
                                 std::chrono::steady_clock::now() - passed)
                                 .count()};
  ASSERT_EQ(write(out, &readings, sizeof(readings)), static_cast<ssize_t>(sizeof(readings)));
}

TEST(WorkingClockTest, TimeInWhichTheProcessWasStoppedDoesNotCount) {
  int out[2], in[2];
  ASSERT_EQ(pipe(out), 0);
  ASSERT_EQ(pipe(in), 0);
  setenv("OMNI_CLOCK_IN", std::to_string(in[0]).c_str(), 1);
  setenv("OMNI_CLOCK_OUT", std::to_string(out[1]).c_str(), 1);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    execl("/proc/self/exe", "base_test", "--gtest_filter=WorkingClockTest.DISABLED_Child",
          "--gtest_also_run_disabled_tests", nullptr);
    _exit(127);
  }
  close(out[1]);
  char byte = 0;
  ASSERT_EQ(read(out[0], &byte, 1), 1);
  ASSERT_EQ(kill(child, SIGSTOP), 0);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, WUNTRACED), child);
  const absl::Time stopped = absl::Now();
  absl::SleepFor(absl::Seconds(3));
  const int64_t stopped_ms = absl::ToInt64Milliseconds(absl::Now() - stopped);
  ASSERT_EQ(kill(child, SIGCONT), 0);
  ASSERT_EQ(write(in[1], &byte, 1), 1);
  Readings readings{};
  ASSERT_EQ(read(out[0], &readings, sizeof(readings)), static_cast<ssize_t>(sizeof(readings)));
  waitpid(child, &status, 0);
  EXPECT_GE(readings.passed_ms, stopped_ms);
  // All but what the stop may count.
  EXPECT_LE(readings.worked_ms,
            readings.passed_ms - stopped_ms + absl::ToInt64Milliseconds(kMost) + 1);
  for (const int fd : {out[0], in[0], in[1]}) close(fd);
}

class WaitForTest : public ::testing::Test {
 protected:
  test::ManualClock clock_;
  std::mutex mutex_;
  std::condition_variable changed_;
};

TEST_F(WaitForTest, IsReadyAtOnceOrWhenNotified) {
  std::unique_lock<std::mutex> lock(mutex_);
  bool ready = false;
  EXPECT_EQ(WaitFor(changed_, lock, {.limit = absl::ZeroDuration()}, [] { return true; }),
            WaitEnd::kReady);
  std::thread other([&] {
    const std::lock_guard<std::mutex> guard(mutex_);
    ready = true;
    changed_.notify_all();
  });
  EXPECT_EQ(WaitFor(changed_, lock, {.clock = clock_}, [&] { return ready; }), WaitEnd::kReady);
  lock.unlock();
  other.join();
}

TEST_F(WaitForTest, TheLimitIsOfTheWorkingClock) {
  std::atomic<bool> done{false};
  std::thread waiting([&] {
    std::unique_lock<std::mutex> lock(mutex_);
    EXPECT_EQ(WaitFor(changed_, lock, {.limit = absl::Seconds(30), .clock = clock_},
                      [] { return false; }),
              WaitEnd::kLimit);
    done = true;
  });
  absl::SleepFor(absl::Milliseconds(200));  // 0 on its clock
  EXPECT_FALSE(done);
  while (!done) {
    clock_.Advance(absl::Seconds(10));
    absl::SleepFor(absl::Milliseconds(5));
  }
  waiting.join();
}

TEST_F(WaitForTest, AStopEndsIt) {
  std::unique_lock<std::mutex> lock(mutex_);
  int asked = 0;
  EXPECT_EQ(WaitFor(changed_, lock, {.stop = [&] { return ++asked == 3; }, .clock = clock_},
                    [] { return false; }),
            WaitEnd::kStopped);
}

TEST_F(WaitForTest, ItSaysWhatItWaitsForEverMoreRarely) {
  std::unique_lock<std::mutex> lock(mutex_);
  std::vector<absl::Duration> said;
  EXPECT_EQ(WaitFor(changed_, lock,
                    {.limit = absl::Seconds(100),
                     .stop =
                         [&] {
                           clock_.Advance(absl::Seconds(5));
                           changed_.notify_all();
                           return false;
                         },
                     .say =
                         [&](absl::Duration waited) {
                           EXPECT_TRUE(mutex_.try_lock());
                           mutex_.unlock();
                           said.push_back(waited);
                         },
                     .clock = clock_},
                    [] { return false; }),
            WaitEnd::kLimit);
  ASSERT_EQ(said.size(), 4u);  // after 10, 20, 40 and 80 seconds or just later
  EXPECT_EQ(said[0], absl::Seconds(10));
  for (size_t i = 1; i < said.size(); ++i) EXPECT_GE(said[i], 2 * said[i - 1]);
}

}  // namespace
}  // namespace omni
