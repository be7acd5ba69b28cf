#include "runtime/comm/sockets.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "absl/time/clock.h"
#include "runtime/base/address.h"
#include "runtime/base/open_files.h"
#include "runtime/base/status.h"

namespace omni::comm {
namespace {

constexpr int kBacklog = 1024;
// Of one attempt where a name has several addresses: the first may be one that swallows packets.
constexpr absl::Duration kOneOfSeveral = absl::Seconds(3);

bool IsUnix(const std::string& text) { return !text.empty() && text[0] == '@'; }

absl::StatusOr<SocketAddress> UnixAddress(const std::string& text) {
  sockaddr_un address = {};
  if (text.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat("socket name ", text, " is ", text.size(),
                                                   " bytes long, at most ",
                                                   sizeof(address.sun_path) - 1, " are possible"));
  }
  address.sun_family = AF_UNIX;
  // A leading zero byte in place of the '@' means the abstract namespace.
  std::memcpy(address.sun_path + 1, text.data() + 1, text.size() - 1);
  return SocketAddress(reinterpret_cast<const sockaddr*>(&address),
                       static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + text.size()));
}

absl::StatusOr<UniqueFd> ListenUnix(const std::string& text) {
  OMNI_ASSIGN_OR_RETURN(const SocketAddress address, UnixAddress(text));
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return ErrnoStatus("socket");
  if (bind(fd.get(), address.get(), address.length()) != 0) {
    if (errno == EADDRINUSE) {
      return absl::AlreadyExistsError(absl::StrCat("address ", text, " is in use"));
    }
    return ErrnoStatus(absl::StrCat("bind ", text));
  }
  if (listen(fd.get(), kBacklog) != 0) return ErrnoStatus(absl::StrCat("listen ", text));
  return fd;
}

// Waits for `events`; false at the deadline.
bool PollUntil(int fd, short events, absl::Time deadline) {
  while (true) {
    pollfd entry = {.fd = fd, .events = events, .revents = 0};
    const double left_ms = absl::ToDoubleMilliseconds(deadline - absl::Now());
    const int ready = poll(&entry, 1, static_cast<int>(std::clamp(left_ms + 1, 0.0, 1000.0)));
    if (ready > 0) return true;
    if (left_ms <= 0) return false;
  }
}

// One attempt; OK, or Unavailable if nobody answers.
absl::Status ConnectOnce(int fd, const SocketAddress& address, absl::Time deadline) {
  if (connect(fd, address.get(), address.length()) == 0) return absl::OkStatus();
  if (errno != EINPROGRESS && errno != EINTR) return ErrnoStatus("connect");
  if (!PollUntil(fd, POLLOUT, deadline)) return absl::UnavailableError("connect: no answer");
  int error = 0;
  socklen_t length = sizeof(error);
  getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
  if (error == 0) return absl::OkStatus();
  errno = error;
  return ErrnoStatus("connect");
}

}  // namespace

absl::Status ErrnoStatus(absl::string_view what) {
  const int error = errno;
  return absl::UnavailableError(
      absl::StrCat(what, ": ", std::strerror(error), OpenFilesHint(error)));
}

absl::StatusOr<UniqueFd> Listen(const std::string& text) {
  if (IsUnix(text)) return ListenUnix(text);
  OMNI_ASSIGN_OR_RETURN(const HostPort wanted, ParseHostPort(text));
  std::vector<SocketAddress> addresses = {SocketAddress::EveryV6(wanted.port),
                                          SocketAddress::EveryV4(wanted.port)};
  if (!wanted.host.empty()) {
    OMNI_ASSIGN_OR_RETURN(addresses, omni::Resolve(wanted));
  }
  absl::Status first;
  for (const SocketAddress& address : addresses) {
    auto fd = ListenOn(address);
    if (fd.ok()) return UniqueFd(*fd);
    first.Update(fd.status());
  }
  return first;
}

absl::StatusOr<std::string> ListenAddress(const UniqueFd& listener, const std::string& host) {
  const SocketAddress address = SocketAddress::Local(listener.get());
  if (address.length() == 0) return ErrnoStatus("getsockname");
  return JoinHostPort(host.empty() ? address.host() : host, address.port());
}

absl::StatusOr<UniqueFd> Connect(const std::string& text, absl::Time deadline) {
  const absl::Time start = absl::Now();
  HostPort place;
  if (!IsUnix(text)) {
    OMNI_ASSIGN_OR_RETURN(place, ParseHostPort(text));
  }
  absl::Status last;
  do {
    std::vector<SocketAddress> addresses;
    if (IsUnix(text)) {
      OMNI_ASSIGN_OR_RETURN(const SocketAddress address, UnixAddress(text));
      addresses.push_back(address);
    } else if (auto found = omni::Resolve(place); found.ok()) {
      addresses = *std::move(found);
    } else {
      last = found.status();  // the name may come, as that of a container just made
    }
    for (const SocketAddress& address : addresses) {
      UniqueFd fd(socket(address.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
      if (!fd.valid() && errno != EAFNOSUPPORT) return ErrnoStatus("socket");
      if (!fd.valid()) {
        last = ErrnoStatus("socket");
        continue;
      }
      const absl::Time until =
          addresses.size() == 1 ? deadline : std::min(deadline, absl::Now() + kOneOfSeveral);
      last = ConnectOnce(fd.get(), address, until);
      if (last.ok()) {
        if (address.family() != AF_UNIX) TuneTcp(fd.get());
        return fd;
      }
      if (addresses.size() > 1) last = Annotate(last, address.host());
    }
    absl::SleepFor(addresses.empty() ? absl::Milliseconds(200) : absl::Milliseconds(10));
  } while (absl::Now() < deadline);
  return absl::UnavailableError(absl::StrCat(
      text, ": ", last.message(), " (tried for ",
      absl::FormatDuration(absl::Trunc(absl::Now() - start, absl::Milliseconds(1))), ")"));
}

bool Admit(int fd) {
  int domain = 0;
  socklen_t length = sizeof(domain);
  getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length);
  if (domain != AF_UNIX) {
    TuneTcp(fd);
    return true;
  }
  ucred peer = {};
  length = sizeof(peer);
  return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && peer.uid == geteuid();
}

absl::StatusOr<std::pair<UniqueFd, UniqueFd>> SocketPair() {
  int fds[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) != 0) {
    return ErrnoStatus("socketpair");
  }
  return std::pair(UniqueFd(fds[0]), UniqueFd(fds[1]));
}

void TuneTcp(int fd) {
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
  setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4);
}

absl::Status WriteAll(int fd, const void* data, int64_t bytes, absl::Time deadline) {
  const auto* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t sent = send(fd, from, bytes, MSG_NOSIGNAL);
    if (sent > 0) {
      from += sent;
      bytes -= sent;
    } else if (errno == EAGAIN) {
      if (!PollUntil(fd, POLLOUT, deadline)) return absl::DeadlineExceededError("write");
    } else if (errno != EINTR) {
      return ErrnoStatus("write");
    }
  }
  return absl::OkStatus();
}

absl::Status ReadAll(int fd, void* data, int64_t bytes, absl::Time deadline) {
  auto* to = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t got = recv(fd, to, bytes, 0);
    if (got > 0) {
      to += got;
      bytes -= got;
    } else if (got == 0) {
      return absl::UnavailableError("read: the other side closed the connection");
    } else if (errno == EAGAIN) {
      if (!PollUntil(fd, POLLIN, deadline)) return absl::DeadlineExceededError("read");
    } else if (errno != EINTR) {
      return ErrnoStatus("read");
    }
  }
  return absl::OkStatus();
}

}  // namespace omni::comm
