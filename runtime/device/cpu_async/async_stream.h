// A stream of the cpu_async device: a queue and a thread that empties it in order.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "runtime/base/rng.h"
#include "runtime/device/stream.h"

namespace omni {

class AsyncStream : public Stream {
 public:
  // The pauses are a function of (seed, index) and of the work's place in the queue.
  // `on_destroy` is told the stream is gone, after its queue is empty.
  AsyncStream(uint64_t seed, uint64_t index, std::function<void(AsyncStream*)> on_destroy);
  ~AsyncStream() override;  // runs what is still queued

  void Enqueue(std::function<void()> work) override;
  std::shared_ptr<Event> Record() override;
  void Wait(const std::shared_ptr<Event>& event) override;
  absl::Status Synchronize() override;

 private:
  void Run();
  void Pause();

  CounterRng rng_;  // the stream thread's alone
  std::function<void(AsyncStream*)> on_destroy_;
  absl::Mutex mutex_;
  std::deque<std::function<void()>> queue_ ABSL_GUARDED_BY(mutex_);
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace omni
