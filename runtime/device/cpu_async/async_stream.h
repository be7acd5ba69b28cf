// A stream of the cpu_async device: a queue and a thread that empties it in order.
//
// Locks and events are the standard library's: ThreadSanitizer, for which this device exists,
// does not see those of a prebuilt Abseil and would report every hand-over as a race.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "runtime/base/rng.h"
#include "runtime/device/stream.h"

namespace omni {

class AsyncStream : public Stream {
 public:
  // The pauses are a function of (seed, index) and of the work's place in the queue.
  // `on_destroy` is told the stream is gone, after its queue is empty.
  AsyncStream(uint64_t seed, uint64_t index, std::function<void(AsyncStream*)> on_destroy);
  ~AsyncStream() override;  // runs what is still queued

  void RunOnHost(std::function<void()> work) override;
  std::shared_ptr<Event> Record() override;
  void Wait(const std::shared_ptr<Event>& event) override;
  absl::Status Synchronize() override;

 private:
  void Run();
  void Pause();

  CounterRng rng_;  // the stream thread's alone
  std::function<void(AsyncStream*)> on_destroy_;
  std::mutex mutex_;  // of the two below
  std::deque<std::function<void()>> queue_;
  bool stop_ = false;
  std::condition_variable changed_;
  std::thread thread_;
};

}  // namespace omni
