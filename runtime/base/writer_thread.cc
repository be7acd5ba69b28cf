#include "runtime/base/writer_thread.h"

#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstdio>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "runtime/base/process.h"

namespace omni {

struct WriterThread::State {
  std::string what;
  mutable std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::pair<int64_t, Write>> waiting;  // the front is under way
  int64_t bytes = 0;
  int64_t refused = 0;
  absl::Duration begun;  // of the front
  bool closed = false;   // nothing new
  bool over = false;     // no further write begins

  bool HasRoom(const Size& size) const {
    return !closed && (waiting.empty() || bytes + size.bytes <= size.most_bytes);
  }
  void Push(int64_t size, Write write) {
    if (waiting.empty()) begun = WorkingClock::OfProcess().Now();
    waiting.emplace_back(size, std::move(write));
    bytes += size;
    changed.notify_all();
  }
};

void WriterThread::Run(State& state) {
  std::unique_lock<std::mutex> lock(state.mutex);
  while (true) {
    state.changed.wait(lock, [&] { return state.over || !state.waiting.empty() || state.closed; });
    if (state.over || state.waiting.empty()) return;
    Write write = std::move(state.waiting.front().second);
    lock.unlock();
    write();
    write = nullptr;  // what it owned goes before others hear that it is done
    lock.lock();
    state.bytes -= state.waiting.front().first;
    state.waiting.pop_front();
    state.begun = WorkingClock::OfProcess().Now();
    state.changed.notify_all();
  }
}

WriterThread::WriterThread(std::string what) : state_(std::make_shared<State>()) {
  state_->what = std::move(what);
  std::thread([state = state_] {
    NameThread(std::string(absl::StripPrefix(state->what, "the ")));
    Run(*state);
  }).detach();
}

WriterThread::~WriterThread() { Abandon(); }

bool WriterThread::Post(const Size& size, Write write) {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  if (!state_->HasRoom(size)) {
    ++state_->refused;
    return false;
  }
  state_->Push(size.bytes, std::move(write));
  return true;
}

WaitEnd WriterThread::PostOrWait(const Size& size, Write write, const WaitOptions& wait) {
  std::unique_lock<std::mutex> lock(state_->mutex);
  const WaitEnd end =
      WaitFor(state_->changed, lock, wait, [&] { return state_->closed || state_->HasRoom(size); });
  if (end != WaitEnd::kReady) return end;
  if (state_->closed) return WaitEnd::kLimit;
  state_->Push(size.bytes, std::move(write));
  return WaitEnd::kReady;
}

WaitEnd WriterThread::Flush(const WaitOptions& wait) {
  std::unique_lock<std::mutex> lock(state_->mutex);
  return WaitFor(state_->changed, lock, wait,
                 [&] { return state_->waiting.empty() || state_->over; });
}

WaitEnd WriterThread::Finish(const WaitOptions& wait) {
  {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    state_->closed = true;
    state_->changed.notify_all();
  }
  const WaitEnd end = Flush(wait);
  Abandon();
  return end;
}

void WriterThread::Abandon() {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  state_->closed = state_->over = true;
  state_->changed.notify_all();
}

const std::string& WriterThread::what() const { return state_->what; }
int64_t WriterThread::num_waiting() const {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  return static_cast<int64_t>(state_->waiting.size());
}
int64_t WriterThread::num_refused() const {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  return state_->refused;
}
absl::Duration WriterThread::busy_for() const {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  if (state_->waiting.empty()) return absl::ZeroDuration();
  return WorkingClock::OfProcess().Now() - state_->begun;
}
bool WriterThread::is_over() const {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  return state_->over;
}

bool WriteWithin(int fd, std::string text, absl::Duration limit) {
  const auto is_whole = std::make_shared<std::atomic<bool>>(false);
  WriterThread writer("file descriptor");
  writer.Post({}, [fd, text = std::move(text), is_whole] {
    size_t done = 0;
    while (done < text.size()) {
      const ssize_t count = write(fd, text.data() + done, text.size() - done);
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) return;
      done += static_cast<size_t>(count);
    }
    *is_whole = true;
  });
  return writer.Finish({.limit = limit}) == WaitEnd::kReady && *is_whole;
}

struct BlockingSection::State {
  std::mutex mutex;
  std::condition_variable changed;
  bool is_over = false;
};

BlockingSection::BlockingSection(const std::string& what, absl::Duration limit)
    : state_(std::make_shared<State>()) {
  std::thread([state = state_, what, limit] {
    const auto say = [&](const std::string& text) {
      WriteWithin(STDERR_FILENO, absl::StrCat("omnitrain: ", what, ": ", text, "\n"),
                  absl::Seconds(2));
    };
    const auto brief = [](absl::Duration duration) {
      return absl::FormatDuration(absl::Trunc(duration, absl::Seconds(1)));
    };
    std::unique_lock<std::mutex> lock(state->mutex);
    const WaitEnd end = WaitFor(state->changed, lock,
                                {.limit = limit,
                                 .say =
                                     [&](absl::Duration waited) {
                                       say(absl::StrCat("waiting for it since ", brief(waited)));
                                     }},
                                [&] { return state->is_over; });
    if (end == WaitEnd::kReady) return;
    say(absl::StrCat("no answer within ", brief(limit)));
    EndProcess(1);
  }).detach();
}

BlockingSection::~BlockingSection() {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  state_->is_over = true;
  state_->changed.notify_all();
}

void EndProcess(int exit_code) {
  WriterThread writer("stdout");
  writer.Post({}, [] { std::fflush(stdout); });
  writer.Finish({.limit = absl::Seconds(2)});
  _exit(exit_code);
}

}  // namespace omni
