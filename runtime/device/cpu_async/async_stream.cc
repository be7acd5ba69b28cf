#include "runtime/device/cpu_async/async_stream.h"

#include <chrono>
#include <utility>

#include "runtime/base/check.h"

namespace omni {
namespace {

class AsyncEvent : public Event {
 public:
  void Reach() {
    const std::lock_guard lock(mutex_);
    reached_ = true;
    changed_.notify_all();  // with the lock held: whoever waits may own the event's last reference
  }
  void Await() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return reached_; });
  }
  bool is_reached() const override {
    const std::lock_guard lock(mutex_);
    return reached_;
  }

 private:
  mutable std::mutex mutex_;
  bool reached_ = false;
  std::condition_variable changed_;
};

}  // namespace

AsyncStream::AsyncStream(uint64_t seed, uint64_t index,
                         std::function<void(AsyncStream*)> on_destroy)
    : rng_(seed, index), on_destroy_(std::move(on_destroy)), thread_([this] { Run(); }) {}

AsyncStream::~AsyncStream() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_one();
  thread_.join();
  on_destroy_(this);
}

void AsyncStream::RunOnHost(std::function<void()> work) {
  {
    const std::lock_guard lock(mutex_);
    OMNI_CHECK(!stop_);
    queue_.push_back(std::move(work));
  }
  changed_.notify_one();
}

std::shared_ptr<Event> AsyncStream::Record() {
  auto event = std::make_shared<AsyncEvent>();
  RunOnHost([event] { event->Reach(); });
  return event;
}

void AsyncStream::Wait(const std::shared_ptr<Event>& event) {
  auto awaited = std::dynamic_pointer_cast<AsyncEvent>(event);
  OMNI_CHECK(awaited != nullptr);  // an event of another kind of device
  RunOnHost([awaited] { awaited->Await(); });
}

absl::Status AsyncStream::Synchronize() {
  OMNI_CHECK(std::this_thread::get_id() != thread_.get_id());  // would wait for itself
  AsyncEvent reached;
  RunOnHost([&reached] { reached.Reach(); });
  reached.Await();
  return absl::OkStatus();
}

// Most pieces of work follow at once, some a little later, a few noticeably later. Sleeping and not
// yielding: a thread that yields on a busy machine waits for everybody else's time slices.
void AsyncStream::Pause() {
  const uint64_t draw = rng_.NextBelow(64);
  if (draw == 0) {
    std::this_thread::sleep_for(std::chrono::microseconds(100 + rng_.NextBelow(400)));
  } else if (draw < 16) {
    std::this_thread::sleep_for(std::chrono::microseconds(1 + rng_.NextBelow(20)));
  }
}

void AsyncStream::Run() {
  for (;;) {
    std::function<void()> work;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return stop_ || !queue_.empty(); });
      if (queue_.empty()) return;
      work = std::move(queue_.front());
      queue_.pop_front();
    }
    Pause();
    work();
  }
}

}  // namespace omni
