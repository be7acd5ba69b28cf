// Chores one after another on a thread of their own: what has to be done some time, and nobody
// waits for but at the end. A chore may stall on storage for good: it owns all it touches
// (SideWork).
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <utility>

#include "runtime/base/side_work.h"

namespace omni::trainer {

class ChoreLine {
 public:
  // At most `capacity` chores wait for their turn.
  explicit ChoreLine(size_t capacity, OnBlock on_block = {});
  ~ChoreLine() {
    Drop(/*running=*/true);
    End();
  }

  // At the end of the line. False if the oldest that waited had to make room for it.
  bool Add(SideWork::Task chore);
  // Lets go of those that wait; of `running`, too, at its next block.
  void Drop(bool running);
  // No more will come: is_over() once all are done.
  void End();
  bool is_over() const { return work_->is_over(); }
  const Progress& progress() const { return work_->progress(); }

 private:
  struct Line {  // shared with the thread
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<SideWork::Task> chores;
    bool has_ended = false;
  };
  static absl::Status Work(Line& line, const OnBlock& tick);

  const size_t capacity_;
  const std::shared_ptr<Line> line_ = std::make_shared<Line>();
  std::unique_ptr<SideWork> work_;
};

}  // namespace omni::trainer
