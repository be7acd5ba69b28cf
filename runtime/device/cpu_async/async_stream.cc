#include "runtime/device/cpu_async/async_stream.h"

#include <chrono>
#include <utility>

#include "absl/synchronization/notification.h"
#include "runtime/base/check.h"

namespace omni {
namespace {

class AsyncEvent : public Event {
 public:
  absl::Notification reached;
};

}  // namespace

AsyncStream::AsyncStream(uint64_t seed, uint64_t index,
                         std::function<void(AsyncStream*)> on_destroy)
    : rng_(seed, index), on_destroy_(std::move(on_destroy)), thread_([this] { Run(); }) {}

AsyncStream::~AsyncStream() {
  {
    absl::MutexLock lock(&mutex_);
    stop_ = true;
  }
  thread_.join();
  on_destroy_(this);
}

void AsyncStream::Enqueue(std::function<void()> work) {
  absl::MutexLock lock(&mutex_);
  OMNI_CHECK(!stop_);
  queue_.push_back(std::move(work));
}

std::shared_ptr<Event> AsyncStream::Record() {
  auto event = std::make_shared<AsyncEvent>();
  Enqueue([event] { event->reached.Notify(); });
  return event;
}

void AsyncStream::Wait(const std::shared_ptr<Event>& event) {
  auto awaited = std::dynamic_pointer_cast<AsyncEvent>(event);
  OMNI_CHECK(awaited != nullptr);  // an event of another kind of device
  Enqueue([awaited] { awaited->reached.WaitForNotification(); });
}

absl::Status AsyncStream::Synchronize() {
  OMNI_CHECK(std::this_thread::get_id() != thread_.get_id());  // would wait for itself
  absl::Notification reached;
  Enqueue([&reached] { reached.Notify(); });
  reached.WaitForNotification();
  return absl::OkStatus();
}

// Most pieces of work follow at once, some yield, a few come noticeably later.
void AsyncStream::Pause() {
  const uint64_t draw = rng_.NextBelow(64);
  if (draw == 0) {
    std::this_thread::sleep_for(std::chrono::microseconds(100 + rng_.NextBelow(400)));
  } else if (draw < 8) {
    std::this_thread::sleep_for(std::chrono::microseconds(1 + rng_.NextBelow(20)));
  } else if (draw < 24) {
    std::this_thread::yield();
  }
}

void AsyncStream::Run() {
  for (;;) {
    std::function<void()> work;
    {
      absl::MutexLock lock(&mutex_);
      const auto ready = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
        return stop_ || !queue_.empty();
      };
      mutex_.Await(absl::Condition(&ready));
      if (queue_.empty()) return;
      work = std::move(queue_.front());
      queue_.pop_front();
    }
    Pause();
    work();
  }
}

}  // namespace omni
