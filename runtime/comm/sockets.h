// Sockets as this folder needs them: connecting and accepting with deadlines,
// and short messages that may carry a descriptor (SCM_RIGHTS, Unix sockets only).
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "runtime/base/unique_fd.h"

namespace omni::comm {

// Every socket made here is close-on-exec and non-blocking.

// "what: strerror(errno)" as Unavailable; where descriptors are lacking, with the limit to raise.
absl::Status ErrnoStatus(absl::string_view what);

// Addresses are "host:port" or "[v6]:port" for TCP (runtime/base/address.h; without a host: every
// address), "@name" for Unix sockets of the abstract namespace, which exist only as long as a
// process holds them. Errors as ListenOn.
absl::StatusOr<UniqueFd> Listen(const std::string& address);
// The address a listener is reached at, with the port the kernel chose; `host` replaces the
// host if it is not empty.
absl::StatusOr<std::string> ListenAddress(const UniqueFd& listener, const std::string& host);

// Keeps trying all addresses of the name while nobody listens, or while there is none, until the
// deadline: Unavailable, with address and how long was tried. InvalidArgument for an address that
// can't be read.
absl::StatusOr<UniqueFd> Connect(const std::string& address, absl::Time deadline);

// Tunes a connection that was accepted. False if it is from another user (Unix sockets).
bool Admit(int fd);

// Two connected Unix sockets.
absl::StatusOr<std::pair<UniqueFd, UniqueFd>> SocketPair();

// No delay, keep-alive, reno: on machines whose default is bbr, loopback gains up to 1.6x.
void TuneTcp(int fd);

// Blocks until all is written or read, or the deadline: DeadlineExceeded, or Unavailable when
// the other side is gone.
absl::Status WriteAll(int fd, const void* data, int64_t bytes, absl::Time deadline);
absl::Status ReadAll(int fd, void* data, int64_t bytes, absl::Time deadline);

}  // namespace omni::comm
