// Work beside the step that may block in the kernel for good: writing to storage that stalls,
// removing a folder on it.
//
//   SideWork work([&](const OnBlock& tick) { return WriteEverything(tick); });
//   ... look at work.is_over(), work.progress() ...
//   status = work.status();
//
// The task calls `tick` after each block of a file. Asked to stop, it gets Cancelled from it. A
// task that does not come back even so is left behind with its thread: so it owns all it touches.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "absl/status/status.h"
#include "runtime/base/file.h"
#include "runtime/base/progress.h"

namespace omni {

class SideWork {
 public:
  using Task = std::function<absl::Status(const OnBlock& tick)>;

  // `also` is called by each tick, before it counts; may be empty.
  explicit SideWork(Task task, OnBlock also = {});
  // Stops it, and waits a little for its end.
  ~SideWork();
  SideWork(const SideWork&) = delete;
  SideWork& operator=(const SideWork&) = delete;

  // Grows with each tick.
  const Progress& progress() const { return state_->progress; }
  bool is_over() const;
  // What the task returned. Only once it is over.
  absl::Status status() const;
  void Stop();
  // False if it is not over after that.
  bool Await(absl::Duration limit) const;

 private:
  struct State {  // shared with the thread, which may outlive this
    Progress progress;
    std::atomic<bool> stop{false};
    mutable std::mutex mutex;
    mutable std::condition_variable ended;
    bool is_over = false;
    absl::Status status;
  };
  const std::shared_ptr<State> state_ = std::make_shared<State>();
  std::thread thread_;
};

}  // namespace omni
