// One thread that does for others what may block: terminals, files, remote calls.
//
// Threads that must stay alive (training, heartbeats, anything that holds a lock others need) only
// hand over what is to be written, in order:
//
//   WriterThread terminal("the terminal");
//   terminal.Post({.bytes = line.size(), .most_bytes = 1 << 16}, [line] { Print(line); });
//
// A write that never ends (a terminal held by Ctrl-S, a pipe nobody reads, a server that is gone)
// holds up those behind it and nobody else. What waits is bounded by whoever posts: what may be
// lost is refused, and counted, when there is no room; what may not, PostOrWait waits for.
//
// At the end Finish waits as long as its limit says. A thread that is still stuck then is left to
// itself: so a write owns all it uses (shared_ptr), and the process leaves by EndProcess, which
// waits for no thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "runtime/base/wait.h"

namespace omni {

class WriterThread {
 public:
  struct Size {
    int64_t bytes = 0;                       // what this write weighs
    int64_t most_bytes = int64_t{64} << 20;  // with it, all that wait weigh at most so much
  };
  using Write = std::function<void()>;

  // `what`: for messages, "the terminal".
  explicit WriterThread(std::string what);
  ~WriterThread();  // as Abandon

  // From any thread; never blocks. False if there is no room or it is over (Finish, Abandon). With
  // nothing waiting there is always room.
  bool Post(const Size& size, Write write);
  // Waits for room as `wait` says. kLimit also after Finish or Abandon.
  WaitEnd PostOrWait(const Size& size, Write write, const WaitOptions& wait);

  // Waits until all that was posted has been written. kReady: it has.
  WaitEnd Flush(const WaitOptions& wait);
  // Likewise; nothing can be posted from now on. Whatever the end, the thread is left to itself
  // then: kReady if it is over, else its current write may go on and no other begins.
  WaitEnd Finish(const WaitOptions& wait);
  void Abandon();

  const std::string& what() const;
  int64_t num_waiting() const;  // the write under way included
  int64_t num_refused() const;  // by Post
  // How long the write under way has been; 0 without one. Working time.
  absl::Duration busy_for() const;
  // True once abandoned: for writes that try again and again.
  bool is_over() const;

 private:
  struct State;
  static void Run(State& state);
  std::shared_ptr<State> state_;  // the thread's as well
};

// Writes all of `text` to a file descriptor by a thread of its own: false if that has not ended
// well within `limit`, which leaves the thread to itself.
bool WriteWithin(int fd, std::string text, absl::Duration limit);

// While it lives, its thread is in calls that may never return, such as reading files of a server
// that is gone. Says so on stderr after 10 seconds, then after twice as long, and so on; past
// `limit` it ends the process with one line.
class BlockingSection {
 public:
  // `what`: "run directory runs/x".
  explicit BlockingSection(const std::string& what,
                           absl::Duration limit = absl::InfiniteDuration());
  ~BlockingSection();

 private:
  struct State;
  std::shared_ptr<State> state_;
};

// What main ends with: flushes stdout, for 2 seconds at most, and ends the process without waiting
// for any thread or destroying what they may use.
[[noreturn]] void EndProcess(int exit_code);

}  // namespace omni
