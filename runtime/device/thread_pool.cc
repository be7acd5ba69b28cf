#include "runtime/device/thread_pool.h"

#include <immintrin.h>

#include <atomic>
#include <thread>
#include <vector>

#include "runtime/base/check.h"
#include "runtime/base/process.h"

namespace omni {
namespace {

// A kernel follows the last one within microseconds, so threads look for work a little before
// they sleep; not longer, for other ranks may share these cores.
constexpr int kSpins = 2000;

thread_local bool inside_task = false;

}  // namespace

struct ThreadPool::Impl {
  struct Job {
    void (*body)(void*, int64_t);
    void* arg;
    int64_t num_tasks;
  };
  static constexpr uint32_t kOpen = 1u << 31;  // a job may be joined; below it: threads inside

  int32_t num_threads;
  Job job{};  // written only while nobody is inside
  std::atomic<int64_t> next_task{0};
  std::atomic<uint32_t> generation{0};  // a new job; futex word
  std::atomic<uint32_t> inside{0};      // futex word
  std::atomic<bool> in_use{false};      // by a call of ParallelFor
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;

  void Work() {
    inside_task = true;
    for (;;) {
      const int64_t task = next_task.fetch_add(1, std::memory_order_relaxed);
      if (task >= job.num_tasks) break;
      job.body(job.arg, task);
    }
    inside_task = false;
  }

  void Help() {
    NameThread("compute");
    uint32_t seen = 0;
    for (;;) {
      for (int spin = 0; spin < kSpins && generation.load(std::memory_order_acquire) == seen;
           ++spin) {
        _mm_pause();
      }
      generation.wait(seen, std::memory_order_acquire);
      seen = generation.load(std::memory_order_acquire);
      if (stop.load(std::memory_order_relaxed)) return;
      // Who wakes too late finds the job closed, and nobody has waited for it.
      if ((inside.fetch_add(1, std::memory_order_acq_rel) & kOpen) != 0) Work();
      if (inside.fetch_sub(1, std::memory_order_acq_rel) == 1) inside.notify_one();
    }
  }
};

ThreadPool::ThreadPool(int32_t num_threads) : impl_(std::make_unique<Impl>()) {
  OMNI_CHECK_GE(num_threads, 1);
  impl_->num_threads = num_threads;
  for (int32_t i = 1; i < num_threads; ++i) impl_->threads.emplace_back([this] { impl_->Help(); });
}

ThreadPool::~ThreadPool() {
  impl_->stop.store(true, std::memory_order_relaxed);
  impl_->generation.fetch_add(1, std::memory_order_release);
  impl_->generation.notify_all();
  for (std::thread& thread : impl_->threads) thread.join();
}

int32_t ThreadPool::num_threads() const { return impl_->num_threads; }

void ThreadPool::ParallelFor(int64_t num_tasks, void (*body)(void*, int64_t), void* arg) {
  Impl& pool = *impl_;
  if (pool.threads.empty() || num_tasks <= 1 || inside_task ||
      pool.in_use.exchange(true, std::memory_order_acquire)) {
    for (int64_t task = 0; task < num_tasks; ++task) body(arg, task);
    return;
  }
  pool.job = {body, arg, num_tasks};
  pool.next_task.store(0, std::memory_order_relaxed);
  pool.inside.fetch_or(Impl::kOpen, std::memory_order_release);
  pool.generation.fetch_add(1, std::memory_order_release);
  pool.generation.notify_all();
  pool.Work();
  pool.inside.fetch_and(~Impl::kOpen, std::memory_order_acq_rel);
  for (int spin = 0; spin < kSpins && pool.inside.load(std::memory_order_acquire) != 0; ++spin) {
    _mm_pause();
  }
  for (uint32_t inside; (inside = pool.inside.load(std::memory_order_acquire)) != 0;) {
    pool.inside.wait(inside, std::memory_order_acquire);
  }
  pool.in_use.store(false, std::memory_order_release);
}

}  // namespace omni
