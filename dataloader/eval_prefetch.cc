#include "dataloader/eval_prefetch.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/base/process.h"
#include "runtime/base/wait.h"

namespace omni::dataloader {
namespace {

constexpr size_t kAhead = 2;
constexpr absl::Duration kLastWait = absl::Seconds(5);

}  // namespace

EvalPrefetch::EvalPrefetch(std::unique_ptr<EvalLoader> loader) {
  state_->loader = std::move(loader);
  thread_ = std::thread([state = state_] {
    NameThread("data eval");
    Work(*state);
  });
}

bool EvalPrefetch::Stop() {
  std::unique_lock<std::mutex> lock(state_->mutex);
  state_->stop = true;
  state_->changed.notify_all();
  return WaitFor(state_->changed, lock, {.limit = kLastWait}, [&] { return state_->is_over; }) ==
         WaitEnd::kReady;
}

std::vector<FaultEvent> EvalPrefetch::Faults() {
  return Stop() ? state_->loader->faults() : std::vector<FaultEvent>();
}

EvalPrefetch::~EvalPrefetch() {
  if (Stop()) {
    thread_.join();
  } else {
    thread_.detach();
  }
}

void EvalPrefetch::Work(State& state) {
  absl::Status status;
  for (;;) {
    auto next = state.loader->Next();
    status = next.status();
    if (!next.ok() || !next->has_value()) break;
    std::unique_lock<std::mutex> lock(state.mutex);
    state.changed.wait(lock, [&] { return state.stop || state.ready.size() < kAhead; });
    if (state.stop) break;
    state.ready.push_back(**std::move(next));
    state.changed.notify_all();
  }
  const std::lock_guard<std::mutex> lock(state.mutex);
  state.has_ended = true;
  state.status = status;
  state.is_over = true;
  state.changed.notify_all();
}

absl::StatusOr<std::optional<Microbatch>> EvalPrefetch::Next(absl::Duration limit,
                                                             Progress* progress,
                                                             const std::function<bool()>& stop) {
  Stillness still(state_->loader->progress());
  std::unique_lock<std::mutex> lock(state_->mutex);
  for (;;) {
    if (!state_->ready.empty()) {
      std::optional<Microbatch> next(std::move(state_->ready.front()));
      state_->ready.pop_front();
      state_->changed.notify_all();
      return next;
    }
    if (state_->has_ended) {
      if (!state_->status.ok()) return state_->status;
      return std::optional<Microbatch>();
    }
    if (stop && stop()) {
      return absl::CancelledError("stopped while waiting for samples of the evaluation");
    }
    constexpr absl::Duration kLook = absl::Milliseconds(50);
    state_->changed.wait_for(lock, absl::ToChronoNanoseconds(std::min(kLook, limit)));
    if (still.Grew() && progress != nullptr) progress->Tick();
    if (still.Last() < limit) continue;
    return absl::DeadlineExceededError(
        absl::StrCat("the next samples of the evaluation are not ready; none got ready for ",
                     absl::FormatDuration(limit),
                     "; in work: ", absl::StrJoin(state_->loader->in_work(), ", ")));
  }
}

}  // namespace omni::dataloader
