// Connections that have come but have not yet said who they are.
//
// Anybody may connect to a port: scanners, health checks, browsers, a client of another program.
// Who belongs here sends a greeting at once. Until it has arrived a connection costs one descriptor
// of a bounded number, and not for long; only after it does the owner hear of the connection. When
// no descriptor is left, who has waited longest is closed; if that is nobody, nothing is accepted
// for a moment, instead of asking again and again.
//
// Used by one thread, around its own poll:
//
//   door.AddTo(&polled);
//   poll(polled.data(), polled.size(), door.TimeoutMs());
//   for (UniqueFd& fd : door.Serve(polled)) ...   // its greeting can be read without waiting
#pragma once

#include <poll.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "runtime/base/unique_fd.h"

namespace omni {

class Doorstep {
 public:
  struct Options {
    std::string greeting = {};   // what every greeting begins with
    int64_t greeting_bytes = 0;  // its length; 0: that of `greeting`
    // Then the one that came first is closed. At most a quarter of the open files there may be.
    int32_t most_waiting = 256;
    absl::Duration patience = absl::Seconds(20);
    absl::Duration back_off = absl::Milliseconds(100);  // without descriptors
    // accept4 of a listener; -1 and errno. Another one in tests.
    std::function<int(int listener)> accept = {};
  };

  Doorstep(std::vector<UniqueFd> listeners, Options options);

  void AddTo(std::vector<pollfd>* polled);
  // Until somebody has waited too long or accepting may be tried again; -1: no limit.
  int TimeoutMs() const;
  // `polled` as AddTo left it, after poll. Connections that have greeted, non-blocking.
  std::vector<UniqueFd> Serve(const std::vector<pollfd>& polled);

  int32_t num_waiting() const { return static_cast<int32_t>(waiting_.size()); }
  int64_t num_turned_away() const { return num_turned_away_; }  // strangers, and who was too slow
  // Why nothing can be accepted at present, with the limit that is to be raised; "" when it can.
  const std::string& problem() const { return problem_; }

 private:
  struct Waiting {
    UniqueFd fd;
    absl::Time since;
    bool is_half = false;  // a part of its greeting is there
  };

  void AcceptFrom(int listener);
  // True once its greeting is there; who is no use is closed.
  bool HasGreeted(Waiting* waiting);

  const std::vector<UniqueFd> listeners_;
  const Options options_;
  std::deque<Waiting> waiting_;  // the oldest first
  size_t first_polled_ = 0;      // where AddTo began
  bool polls_listeners_ = true;
  absl::Time accepts_again_ = absl::InfinitePast();
  std::string problem_;
  int64_t num_turned_away_ = 0;
};

}  // namespace omni
