#include "trainer/chore_line.h"

namespace omni::trainer {

ChoreLine::ChoreLine(size_t capacity, OnBlock on_block)
    : capacity_(capacity),
      work_(std::make_unique<SideWork>(
          [line = line_](const OnBlock& tick) { return Work(*line, tick); }, std::move(on_block))) {
}

absl::Status ChoreLine::Work(Line& line, const OnBlock& tick) {
  for (;;) {
    SideWork::Task chore;
    {
      std::unique_lock<std::mutex> lock(line.mutex);
      line.changed.wait(lock, [&] { return !line.chores.empty() || line.has_ended; });
      if (line.chores.empty()) return absl::OkStatus();
      chore = std::move(line.chores.front());
      line.chores.pop_front();
    }
    (void)chore(tick);  // each says by itself how it went
  }
}

bool ChoreLine::Add(SideWork::Task chore) {
  const std::lock_guard<std::mutex> lock(line_->mutex);
  const bool fits = line_->chores.size() < capacity_;
  if (!fits) line_->chores.pop_front();
  line_->chores.push_back(std::move(chore));
  line_->changed.notify_all();
  return fits;
}

void ChoreLine::Drop(bool running) {
  const std::lock_guard<std::mutex> lock(line_->mutex);
  line_->chores.clear();
  if (running) work_->Stop();
}

void ChoreLine::End() {
  const std::lock_guard<std::mutex> lock(line_->mutex);
  line_->has_ended = true;
  line_->changed.notify_all();
}

}  // namespace omni::trainer
