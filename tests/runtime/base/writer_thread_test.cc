#include "runtime/base/writer_thread.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "absl/time/clock.h"

namespace omni {
namespace {

const WaitOptions kPatient = {.limit = absl::Minutes(2)};

// Storage or a terminal that can be held.
class Held {
 public:
  void Hold(bool held) {
    const std::lock_guard<std::mutex> lock(mutex_);
    held_ = held;
    changed_.notify_all();
  }
  void Pass() {
    std::unique_lock<std::mutex> lock(mutex_);
    ++inside_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return !held_; });
    --inside_;
  }
  void AwaitInside() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return inside_ > 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool held_ = false;
  int inside_ = 0;
};

TEST(WriterThreadTest, WritesInOrder) {
  WriterThread writer("list");
  const auto list = std::make_shared<std::vector<int>>();
  for (int i = 0; i < 1000; ++i) {
    EXPECT_TRUE(writer.Post({.bytes = 1}, [list, i] { list->push_back(i); }));
  }
  EXPECT_EQ(writer.Finish(kPatient), WaitEnd::kReady);
  ASSERT_EQ(list->size(), 1000u);
  for (int i = 0; i < 1000; ++i) EXPECT_EQ((*list)[i], i);
  EXPECT_FALSE(writer.Post({}, [] {}));  // it is over
}

TEST(WriterThreadTest, AHeldWriteHoldsUpNobodyAndWhatHasNoRoomIsCounted) {
  WriterThread writer("held");
  const auto held = std::make_shared<Held>();
  const auto written = std::make_shared<std::atomic<int>>(0);
  held->Hold(true);
  // 10 fit, of one byte each; the one under way is among them.
  for (int i = 0; i < 25; ++i) {
    EXPECT_EQ(writer.Post({.bytes = 1, .most_bytes = 10},
                          [=] {
                            held->Pass();
                            ++*written;
                          }),
              i < 10);
  }
  EXPECT_EQ(writer.num_refused(), 15);
  EXPECT_EQ(writer.num_waiting(), 10);
  EXPECT_TRUE(writer.Post({.bytes = 1, .most_bytes = 11}, [] {}));  // who posts says what is room
  held->Hold(false);
  EXPECT_EQ(writer.Finish(kPatient), WaitEnd::kReady);
  EXPECT_EQ(*written, 10);
}

TEST(WriterThreadTest, WhatIsLargerThanTheBoundPassesAlone) {
  WriterThread writer("large");
  EXPECT_TRUE(writer.Post({.bytes = 100, .most_bytes = 10}, [] {}));
  EXPECT_EQ(writer.Finish(kPatient), WaitEnd::kReady);
}

TEST(WriterThreadTest, WhoMayNotLoseWaitsAndSaysSo) {
  WriterThread writer("held");
  const auto held = std::make_shared<Held>();
  held->Hold(true);
  ASSERT_TRUE(writer.Post({.bytes = 1}, [held] { held->Pass(); }));
  EXPECT_EQ(
      writer.PostOrWait({.bytes = 1, .most_bytes = 1}, [] {}, {.limit = absl::Milliseconds(100)}),
      WaitEnd::kLimit);
  EXPECT_EQ(writer.PostOrWait({.bytes = 1, .most_bytes = 1}, [] {}, {.stop = [] { return true; }}),
            WaitEnd::kStopped);
  int said = 0;
  const auto written = std::make_shared<std::atomic<bool>>(false);
  EXPECT_EQ(writer.PostOrWait({.bytes = 1, .most_bytes = 1}, [written] { *written = true; },
                              {.limit = absl::Minutes(2),
                               .say =
                                   [&](absl::Duration) {
                                     ++said;
                                     held->Hold(false);
                                   },
                               .say_after = absl::Milliseconds(50)}),
            WaitEnd::kReady);
  EXPECT_GE(said, 1);
  EXPECT_EQ(writer.Flush(kPatient), WaitEnd::kReady);
  EXPECT_TRUE(*written);
}

TEST(WriterThreadTest, AStuckThreadIsLeftToItself) {
  const auto held = std::make_shared<Held>();
  const auto later = std::make_shared<std::atomic<bool>>(false);
  held->Hold(true);
  {
    WriterThread writer("stuck");
    writer.Post({}, [held] { held->Pass(); });
    writer.Post({}, [later] { *later = true; });
    held->AwaitInside();
    EXPECT_GE(writer.busy_for(), absl::ZeroDuration());
    EXPECT_EQ(writer.Finish({.limit = absl::Milliseconds(50)}), WaitEnd::kLimit);
  }
  held->Hold(false);
  while (held.use_count() > 1) absl::SleepFor(absl::Milliseconds(1));  // it has let go
  EXPECT_FALSE(*later);  // what had not begun never does
}

// Many posters, a sink that stalls at random: of each poster all that was taken comes out once, in
// order; what was refused does not; what waits never exceeds the bound.
TEST(WriterThreadTest, NothingTakenIsLostWhateverTheOrder) {
  for (uint32_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    constexpr int kPosters = 4, kEach = 200;
    constexpr int64_t kMost = 64;
    WriterThread writer("random");
    const auto written = std::make_shared<std::vector<std::vector<int>>>(kPosters);
    const auto random = std::make_shared<std::mt19937>(seed);  // the writing thread's
    std::vector<std::vector<int>> taken(kPosters);
    std::vector<std::thread> posters;
    std::atomic<int64_t> refused{0};
    for (int p = 0; p < kPosters; ++p) {
      posters.emplace_back([&, p] {
        std::mt19937 draw(seed * 100 + p);
        for (int i = 0; i < kEach; ++i) {
          const WriterThread::Size size = {.bytes = static_cast<int64_t>(1 + draw() % 16),
                                           .most_bytes = kMost};
          const auto write = [written, random, p, i] {
            if ((*random)() % 50 == 0) absl::SleepFor(absl::Microseconds(300));
            (*written)[p].push_back(i);
          };
          const bool may_be_lost = draw() % 2 == 0;
          if (may_be_lost ? writer.Post(size, write)
                          : writer.PostOrWait(size, write, kPatient) == WaitEnd::kReady) {
            taken[p].push_back(i);
          } else {
            EXPECT_TRUE(may_be_lost);
            ++refused;
          }
          EXPECT_LE(writer.num_waiting(), kMost);
        }
      });
    }
    for (std::thread& poster : posters) poster.join();
    EXPECT_EQ(writer.Finish(kPatient), WaitEnd::kReady);
    EXPECT_EQ(*written, taken);
    EXPECT_EQ(writer.num_refused(), refused);
  }
}

TEST(WriteWithinTest, AFullPipeIsGivenUp) {
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  EXPECT_TRUE(WriteWithin(ends[1], "all of it", absl::Minutes(2)));
  char text[10] = {};
  EXPECT_EQ(read(ends[0], text, sizeof(text)), 9);
  EXPECT_STREQ(text, "all of it");
  EXPECT_FALSE(WriteWithin(ends[1], std::string(1 << 20, 'x'), absl::Milliseconds(100)));
}

TEST(EndProcessDeathTest, EndsWithAStuckThreadAndAHeldStdout) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "ThreadSanitizer's own end of a process waits for what is stuck";
#endif
  ::testing::GTEST_FLAG(death_test_style) = "threadsafe";
  EXPECT_EXIT(
      {
        int ends[2];
        if (pipe(ends) != 0) _exit(9);
        dup2(ends[1], STDOUT_FILENO);  // never read
        static char buffer[1 << 20];  // glibc takes the size of no buffer but a given one
        setvbuf(stdout, buffer, _IOFBF, sizeof(buffer));
        for (int i = 0; i < 200000; ++i) std::fputs("full", stdout);
        EndProcess(7);
      },
      ::testing::ExitedWithCode(7), "");
}

}  // namespace
}  // namespace omni
