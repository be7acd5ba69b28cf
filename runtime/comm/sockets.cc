#include "runtime/comm/sockets.h"

#include <arpa/inet.h>
#include <netdb.h>
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

#include "absl/strings/numbers.h"
#include "absl/time/clock.h"
#include "runtime/base/status.h"

namespace omni::comm {
namespace {

constexpr int kBacklog = 1024;

struct Address {
  sockaddr_storage storage = {};
  socklen_t length = 0;
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
  int family() const { return storage.ss_family; }
};

absl::StatusOr<Address> UnixAddress(const std::string& text) {
  Address address;
  auto* unix_address = reinterpret_cast<sockaddr_un*>(&address.storage);
  if (text.size() >= sizeof(unix_address->sun_path)) {
    return absl::InvalidArgumentError(
        absl::StrCat("socket name ", text, " is ", text.size(), " bytes long, at most ",
                     sizeof(unix_address->sun_path) - 1, " are possible"));
  }
  unix_address->sun_family = AF_UNIX;
  // A leading zero byte in place of the '@' means the abstract namespace.
  std::memcpy(unix_address->sun_path + 1, text.data() + 1, text.size() - 1);
  address.length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + text.size());
  return address;
}

absl::StatusOr<Address> Resolve(const std::string& text) {
  if (!text.empty() && text[0] == '@') return UnixAddress(text);
  const size_t colon = text.rfind(':');
  int32_t port = 0;
  if (colon == std::string::npos || !absl::SimpleAtoi(text.substr(colon + 1), &port) || port < 0 ||
      port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("address \"", text, "\": expected host:port or [host]:port, port 0 to 65535"));
  }
  std::string host = text.substr(0, colon);
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
  if (error != 0) {
    return absl::UnavailableError(absl::StrCat("address \"", text, "\": ", gai_strerror(error)));
  }
  Address address;
  std::memcpy(&address.storage, found->ai_addr, found->ai_addrlen);
  address.length = found->ai_addrlen;
  freeaddrinfo(found);
  return address;
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
absl::Status ConnectOnce(int fd, const Address& address, absl::Time deadline) {
  if (connect(fd, address.get(), address.length) == 0) return absl::OkStatus();
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
  return absl::UnavailableError(absl::StrCat(what, ": ", std::strerror(errno)));
}

absl::StatusOr<UniqueFd> Listen(const std::string& text) {
  OMNI_ASSIGN_OR_RETURN(const Address address, Resolve(text));
  UniqueFd fd(socket(address.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return ErrnoStatus("socket");
  if (address.family() != AF_UNIX) {
    const int on = 1;
    setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  }
  if (bind(fd.get(), address.get(), address.length) != 0) {
    if (errno == EADDRINUSE) {
      return absl::AlreadyExistsError(absl::StrCat("address ", text, " is in use"));
    }
    return ErrnoStatus(absl::StrCat("bind ", text));
  }
  if (listen(fd.get(), kBacklog) != 0) return ErrnoStatus(absl::StrCat("listen ", text));
  return fd;
}

absl::StatusOr<std::string> ListenAddress(const UniqueFd& listener, const std::string& host) {
  sockaddr_storage storage = {};
  socklen_t length = sizeof(storage);
  if (getsockname(listener.get(), reinterpret_cast<sockaddr*>(&storage), &length) != 0) {
    return ErrnoStatus("getsockname");
  }
  char text[INET6_ADDRSTRLEN] = {};
  std::string name = host;
  int port = 0;
  if (storage.ss_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(storage);
    inet_ntop(AF_INET, &v4.sin_addr, text, sizeof(text));
    port = ntohs(v4.sin_port);
  } else {
    const auto& v6 = reinterpret_cast<const sockaddr_in6&>(storage);
    inet_ntop(AF_INET6, &v6.sin6_addr, text, sizeof(text));
    port = ntohs(v6.sin6_port);
  }
  if (name.empty()) name = text;
  const bool bracket = name.find(':') != std::string::npos;
  return bracket ? absl::StrCat("[", name, "]:", port) : absl::StrCat(name, ":", port);
}

absl::StatusOr<UniqueFd> Connect(const std::string& text, absl::Time deadline) {
  const absl::Time start = absl::Now();
  OMNI_ASSIGN_OR_RETURN(const Address address, Resolve(text));
  absl::Status last;
  do {
    UniqueFd fd(socket(address.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!fd.valid()) return ErrnoStatus("socket");
    last = ConnectOnce(fd.get(), address, deadline);
    if (last.ok()) {
      if (address.family() != AF_UNIX) TuneTcp(fd.get());
      return fd;
    }
    absl::SleepFor(absl::Milliseconds(10));
  } while (absl::Now() < deadline);
  return absl::UnavailableError(absl::StrCat(
      text, ": ", last.message(), " (tried for ",
      absl::FormatDuration(absl::Trunc(absl::Now() - start, absl::Milliseconds(1))), ")"));
}

UniqueFd Accept(const UniqueFd& listener) {
  UniqueFd fd(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!fd.valid()) return fd;
  int domain = 0;
  socklen_t length = sizeof(domain);
  getsockopt(fd.get(), SOL_SOCKET, SO_DOMAIN, &domain, &length);
  if (domain != AF_UNIX) {
    TuneTcp(fd.get());
    return fd;
  }
  ucred peer = {};
  length = sizeof(peer);
  if (getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0 || peer.uid != geteuid()) {
    fd.Reset();
  }
  return fd;
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
