// Threads that share the tasks of one kernel at a time. The calling thread works too, so a
// pool of one thread starts none.
#pragma once

#include <cstdint>
#include <memory>

namespace omni {

class ThreadPool {
 public:
  explicit ThreadPool(int32_t num_threads);  // >= 1, the caller included
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int32_t num_threads() const;

  // Runs body(arg, task) for each task in [0, num_tasks); returns when all are done. A call from
  // inside a task, or while another thread's call is under way, runs its tasks in line.
  void ParallelFor(int64_t num_tasks, void (*body)(void* arg, int64_t task), void* arg);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace omni
