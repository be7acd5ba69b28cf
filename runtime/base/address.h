// Addresses of machines: the one place where "host:port" is read, resolved, printed and judged.
//
// A name is not an address. Debian's /etc/hosts says `127.0.1.1 node1`, so on node1 its own name is
// an address of the loopback, which no other machine reaches. What others are to use comes from the
// route to them (runtime/comm/route.h); what a process listens on comes from PlaceToListen.
//
//   "node1:29400"   "10.0.0.7:29400"   "[fd00::7]:29400"   ":29400" (every address)
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/base/unique_fd.h"

namespace omni {

struct HostPort {
  std::string host;  // without brackets; "": every address
  int32_t port = 0;
};
// InvalidArgument for anything else: `address "x": expected host:port or [v6]:port, ...`.
absl::StatusOr<HostPort> ParseHostPort(absl::string_view text);
// Puts brackets around a bare IPv6 address.
std::string JoinHostPort(absl::string_view host, int32_t port);

// An IPv4 or IPv6 address with a port.
class SocketAddress {
 public:
  SocketAddress() = default;
  SocketAddress(const sockaddr* address, socklen_t length);
  // Of the two ends of a connection or of a listener; port 0 and no host if it has none.
  static SocketAddress Local(int fd);
  static SocketAddress Remote(int fd);
  static SocketAddress EveryV4(int32_t port);
  static SocketAddress EveryV6(int32_t port);  // and of IPv4, as sockets are made here

  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage_); }
  socklen_t length() const { return length_; }
  int family() const { return storage_.ss_family; }
  std::string host() const;  // "10.0.0.7", "fd00::7"; an IPv4 address inside IPv6 as IPv4
  int32_t port() const;
  void set_port(int32_t port);
  bool is_loopback() const;
  bool is_every() const;
  std::string ToString() const { return JoinHostPort(host(), port()); }

 private:
  sockaddr_storage storage_ = {};
  socklen_t length_ = 0;
};

// All addresses of a name, the one to try first coming first. Unavailable, with the resolver's
// reason, if there is none.
using Resolver = std::function<absl::StatusOr<std::vector<SocketAddress>>(const HostPort&)>;
absl::StatusOr<std::vector<SocketAddress>> Resolve(const HostPort& place);

// Says "this machine": an address of the loopback or "localhost". Any other name that leads to the
// loopback is the machine's own name.
bool IsLoopbackName(absl::string_view host);
// "", "*", "0.0.0.0" and "::".
bool IsEveryAddress(absl::string_view host);

struct ListenPlace {
  std::vector<SocketAddress> addresses;  // at least one
  std::string reach;                     // host to tell others
  bool is_every = false;
  std::string note;  // for the person, where the name was not taken as it stands; else ""
};
// Where to listen for others who were told `wanted`. A name that leads to the loopback, but is not
// "localhost", is listened for on every address: others have another address for it.
absl::StatusOr<ListenPlace> PlaceToListen(const HostPort& wanted,
                                          const Resolver& resolve = Resolve);

// A socket that listens, close-on-exec and non-blocking; every IPv6 address includes IPv4.
//   AlreadyExists      the port is in use; says so and what to do
//   NotFound           the address is none of this machine's
//   PermissionDenied   ports below 1024
//   Unavailable        anything else
absl::StatusOr<int> ListenOn(const SocketAddress& address);
// On all addresses of the place that are up, at least one, with one port, which is put into them.
absl::StatusOr<std::vector<UniqueFd>> ListenAt(ListenPlace* place);

std::string MachineName();
// Equal for processes that can share memory by shm: one kernel, one network namespace.
std::string MachineIdentity();

}  // namespace omni
