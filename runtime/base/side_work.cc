#include "runtime/base/side_work.h"

#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/process.h"
#include "runtime/base/status.h"
#include "runtime/base/wait.h"

namespace omni {
namespace {

// A block of a slow disk takes less; one that stalls takes no more of this process' time.
constexpr absl::Duration kLastWait = absl::Seconds(5);

}  // namespace

SideWork::SideWork(Task task, OnBlock also) {
  thread_ = std::thread([state = state_, task = std::move(task), also = std::move(also)] {
    NameThread("side work");
    const OnBlock tick = [&](absl::string_view path, absl::string_view block) {
      if (also) OMNI_RETURN_IF_ERROR(also(path, block));
      state->progress.Tick();
      return state->stop ? absl::CancelledError(absl::StrCat(path, ": stopped")) : absl::OkStatus();
    };
    const absl::Status status = task(tick);
    const std::lock_guard<std::mutex> lock(state->mutex);
    state->status = status;
    state->is_over = true;
    state->ended.notify_all();
  });
}

SideWork::~SideWork() {
  Stop();
  if (Await(kLastWait)) {
    thread_.join();
  } else {
    thread_.detach();
  }
}

bool SideWork::is_over() const {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  return state_->is_over;
}

absl::Status SideWork::status() const {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  OMNI_CHECK(state_->is_over);
  return state_->status;
}

void SideWork::Stop() { state_->stop = true; }

bool SideWork::Await(absl::Duration limit) const {
  std::unique_lock<std::mutex> lock(state_->mutex);
  return WaitFor(state_->ended, lock, {.limit = limit}, [&] { return state_->is_over; }) ==
         WaitEnd::kReady;
}

}  // namespace omni
