#include "runtime/base/doorstep.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "runtime/base/open_files.h"

namespace omni {
namespace {

// Half a greeting makes a socket readable for good, so it is looked at now and then.
constexpr absl::Duration kRestOfGreeting = absl::Milliseconds(20);

int AcceptFour(int listener) {
  return accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
}

Doorstep::Options Completed(Doorstep::Options options) {
  if (!options.accept) options.accept = AcceptFour;
  if (options.greeting_bytes == 0) {
    options.greeting_bytes = static_cast<int64_t>(options.greeting.size());
  }
  // The rest is for files and for those who belong here.
  const auto quarter = static_cast<int32_t>(std::max<int64_t>(1, OpenFilesLimit() / 4));
  options.most_waiting = std::min(options.most_waiting, quarter);
  return options;
}

}  // namespace

Doorstep::Doorstep(std::vector<UniqueFd> listeners, Options options)
    : listeners_(std::move(listeners)), options_(Completed(std::move(options))) {}

void Doorstep::AddTo(std::vector<pollfd>* polled) {
  first_polled_ = polled->size();
  polls_listeners_ = absl::Now() >= accepts_again_;
  for (const UniqueFd& listener : listeners_) {
    const int fd = polls_listeners_ ? listener.get() : -1;  // -1 is ignored
    polled->push_back({.fd = fd, .events = POLLIN, .revents = 0});
  }
  for (const Waiting& waiting : waiting_) {
    const int fd = waiting.is_half ? -1 : waiting.fd.get();
    polled->push_back({.fd = fd, .events = POLLIN, .revents = 0});
  }
}

int Doorstep::TimeoutMs() const {
  absl::Time next = absl::InfiniteFuture();
  if (!polls_listeners_) next = accepts_again_;
  if (!waiting_.empty()) next = std::min(next, waiting_.front().since + options_.patience);
  const bool has_halves = std::any_of(waiting_.begin(), waiting_.end(),
                                      [](const Waiting& waiting) { return waiting.is_half; });
  if (has_halves) next = std::min(next, absl::Now() + kRestOfGreeting);
  if (next == absl::InfiniteFuture()) return -1;
  const absl::Duration left = std::max(next - absl::Now(), absl::ZeroDuration());
  return 1 + static_cast<int>(std::min(left, absl::Hours(1)) / absl::Milliseconds(1));
}

std::vector<UniqueFd> Doorstep::Serve(const std::vector<pollfd>& polled) {
  std::vector<UniqueFd> greeted;
  std::deque<Waiting> still;
  const absl::Time now = absl::Now();
  size_t next = first_polled_ + listeners_.size();
  for (Waiting& waiting : waiting_) {
    const bool is_ready = polled[next++].revents != 0 || waiting.is_half;
    if (is_ready && HasGreeted(&waiting)) {
      greeted.push_back(std::move(waiting.fd));
    } else if (waiting.fd.valid() && now - waiting.since <= options_.patience) {
      still.push_back(std::move(waiting));
    } else {
      ++num_turned_away_;
    }
  }
  waiting_ = std::move(still);
  for (size_t i = 0; i < listeners_.size(); ++i) {
    if (polled[first_polled_ + i].revents != 0) AcceptFrom(listeners_[i].get());
  }
  return greeted;
}

void Doorstep::AcceptFrom(int listener) {
  // Not for ever: who is known has news meanwhile.
  for (int32_t i = 0; i < options_.most_waiting; ++i) {
    UniqueFd fd(options_.accept(listener));
    if (!fd.valid()) {
      const int error = errno;
      if (error == EINTR || error == ECONNABORTED) continue;
      if (error == EAGAIN || error == EWOULDBLOCK) {
        problem_.clear();
        return;
      }
      // EMFILE, ENFILE, ENOBUFS, ENOMEM: the connection stays where it is, and so would its event.
      // Who has waited longest without a word makes room.
      if (!waiting_.empty()) {
        waiting_.pop_front();
        ++num_turned_away_;
        continue;
      }
      problem_ = absl::StrCat("no connection can be accepted: ", std::strerror(error),
                              OpenFilesHint(error));
      accepts_again_ = absl::Now() + options_.back_off;
      return;
    }
    problem_.clear();
    if (num_waiting() >= options_.most_waiting) {
      waiting_.pop_front();
      ++num_turned_away_;
    }
    waiting_.push_back({.fd = std::move(fd), .since = absl::Now()});
  }
}

bool Doorstep::HasGreeted(Waiting* waiting) {
  std::string bytes(options_.greeting_bytes, '\0');
  const ssize_t got = recv(waiting->fd.get(), bytes.data(), bytes.size(), MSG_PEEK | MSG_DONTWAIT);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return false;
  const absl::string_view seen(bytes.data(), std::max<ssize_t>(got, 0));
  const size_t shared = std::min(seen.size(), options_.greeting.size());
  const bool is_stranger =
      seen.substr(0, shared) != absl::string_view(options_.greeting).substr(0, shared);
  if (got <= 0 || is_stranger) {
    waiting->fd.Reset();
    return false;
  }
  if (got == options_.greeting_bytes) return true;
  pollfd entry = {.fd = waiting->fd.get(), .events = POLLRDHUP, .revents = 0};
  const bool is_closed = poll(&entry, 1, 0) > 0 && entry.revents != 0;
  if (is_closed) waiting->fd.Reset();
  waiting->is_half = !is_closed;
  return false;
}

}  // namespace omni
