#include "runtime/device/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <set>
#include <thread>
#include <vector>

namespace omni {
namespace {

struct Counted {
  explicit Counted(int64_t num_tasks) : times(num_tasks) {}
  std::vector<std::atomic<int>> times;
  static void Task(void* self, int64_t task) { static_cast<Counted*>(self)->times[task]++; }
  void ExpectEachOnce() const {
    for (size_t i = 0; i < times.size(); ++i) EXPECT_EQ(times[i].load(), 1) << i;
  }
};

class ThreadPoolTest : public ::testing::TestWithParam<int> {};

TEST_P(ThreadPoolTest, RunsEachTaskOnce) {
  ThreadPool pool(GetParam());
  EXPECT_EQ(pool.num_threads(), GetParam());
  for (const int64_t num_tasks : {0, 1, 2, 3, 17, 1000}) {
    Counted counted(num_tasks);
    pool.ParallelFor(num_tasks, Counted::Task, &counted);
    counted.ExpectEachOnce();
  }
}

// Plain memory written by tasks is seen by the caller, and by the next call's tasks.
TEST_P(ThreadPoolTest, CallsFollowOneAnother) {
  ThreadPool pool(GetParam());
  std::vector<int64_t> values(37, 0);
  for (int round = 0; round < 2000; ++round) {
    pool.ParallelFor(
        static_cast<int64_t>(values.size()),
        [](void* arg, int64_t task) { (*static_cast<std::vector<int64_t>*>(arg))[task] += task; },
        &values);
  }
  for (size_t i = 0; i < values.size(); ++i) EXPECT_EQ(values[i], 2000 * static_cast<int64_t>(i));
}

TEST_P(ThreadPoolTest, ACallFromATaskRunsInLine) {
  ThreadPool pool(GetParam());
  struct Outer {
    ThreadPool* pool;
    Counted counted{8 * 16};
    std::atomic<bool> in_line{true};
  } outer{&pool};
  pool.ParallelFor(
      8,
      [](void* arg, int64_t task) {
        struct Inner {
          Outer* outer;
          int64_t task;
          std::thread::id caller;
        } inner{static_cast<Outer*>(arg), task, std::this_thread::get_id()};
        inner.outer->pool->ParallelFor(
            16,
            [](void* raw, int64_t i) {
              auto& in = *static_cast<Inner*>(raw);
              in.outer->counted.times[in.task * 16 + i]++;
              if (std::this_thread::get_id() != in.caller) in.outer->in_line = false;
            },
            &inner);
      },
      &outer);
  outer.counted.ExpectEachOnce();
  EXPECT_TRUE(outer.in_line);
}

TEST_P(ThreadPoolTest, ThreadsMayCallAtOnce) {
  ThreadPool pool(GetParam());
  std::vector<std::thread> callers;
  std::atomic<int64_t> sum{0};
  for (int caller = 0; caller < 3; ++caller) {
    callers.emplace_back([&] {
      for (int round = 0; round < 300; ++round) {
        pool.ParallelFor(
            10, [](void* arg, int64_t task) { *static_cast<std::atomic<int64_t>*>(arg) += task; },
            &sum);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(sum.load(), 3 * 300 * 45);
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolTest, ::testing::Values(1, 2, 3, 8));

// Every thread of the pool gets a task when the tasks wait for one another.
TEST(ThreadPoolTest, AllThreadsWork) {
  ThreadPool pool(4);
  struct Rendezvous {
    std::atomic<int> arrived{0};
  } rendezvous;
  pool.ParallelFor(
      4,
      [](void* arg, int64_t) {
        auto& arrived = static_cast<Rendezvous*>(arg)->arrived;
        ++arrived;
        arrived.notify_all();
        for (int seen; (seen = arrived.load()) < 4;) arrived.wait(seen);
      },
      &rendezvous);
  EXPECT_EQ(rendezvous.arrived.load(), 4);
}

TEST(ThreadPoolTest, APoolNobodyUsedEnds) { ThreadPool pool(4); }

}  // namespace
}  // namespace omni
