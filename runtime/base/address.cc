#include "runtime/base/address.h"

#include <arpa/inet.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "runtime/base/file.h"
#include "runtime/base/open_files.h"
#include "runtime/base/status.h"

namespace omni {
namespace {

constexpr int kBacklog = 1024;

bool IsV4Mapped(const sockaddr_in6& address) { return IN6_IS_ADDR_V4MAPPED(&address.sin6_addr); }

absl::Status ListenError(const SocketAddress& address) {
  const int error = errno;
  const std::string where = absl::StrCat("can't listen on ", address.ToString());
  switch (error) {
    case EADDRINUSE:
      return absl::AlreadyExistsError(
          absl::StrCat(where, ": port ", address.port(), " is in use on ", MachineName(),
                       ", by another job perhaps; take another port, or 0 for any that is free"));
    case EADDRNOTAVAIL:
    case EAFNOSUPPORT:
      return absl::NotFoundError(
          absl::StrCat(where, ": ", address.host(), " is no address of ", MachineName()));
    case EACCES:
      return absl::PermissionDeniedError(
          absl::StrCat(where, ": ports below 1024 are for root; take a higher one"));
    default:
      return absl::UnavailableError(
          absl::StrCat(where, ": ", std::strerror(error), OpenFilesHint(error)));
  }
}

}  // namespace

absl::StatusOr<HostPort> ParseHostPort(absl::string_view text) {
  const size_t colon = text.rfind(':');
  HostPort place;
  if (colon == absl::string_view::npos || !absl::SimpleAtoi(text.substr(colon + 1), &place.port) ||
      place.port < 0 || place.port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("address \"", text, "\": expected host:port or [v6]:port, port 0 to 65535"));
  }
  absl::string_view host = text.substr(0, colon);
  if (absl::StartsWith(host, "[") && absl::EndsWith(host, "]")) {
    host = host.substr(1, host.size() - 2);
  } else if (absl::StrContains(host, ':')) {
    return absl::InvalidArgumentError(absl::StrCat("address \"", text,
                                                   "\": expected host:port or [v6]:port; an IPv6 "
                                                   "address has brackets: [",
                                                   host, "]:", place.port));
  }
  place.host = std::string(host);
  return place;
}

std::string JoinHostPort(absl::string_view host, int32_t port) {
  const bool is_bare_v6 = absl::StrContains(host, ':') && !absl::StartsWith(host, "[");
  return is_bare_v6 ? absl::StrCat("[", host, "]:", port) : absl::StrCat(host, ":", port);
}

SocketAddress::SocketAddress(const sockaddr* address, socklen_t length) : length_(length) {
  std::memcpy(&storage_, address, std::min<size_t>(length, sizeof(storage_)));
}

SocketAddress SocketAddress::Local(int fd) {
  SocketAddress address;
  address.length_ = sizeof(address.storage_);
  auto* storage = reinterpret_cast<sockaddr*>(&address.storage_);
  if (getsockname(fd, storage, &address.length_) != 0) return {};
  return address;
}

SocketAddress SocketAddress::Remote(int fd) {
  SocketAddress address;
  address.length_ = sizeof(address.storage_);
  auto* storage = reinterpret_cast<sockaddr*>(&address.storage_);
  if (getpeername(fd, storage, &address.length_) != 0) return {};
  return address;
}

SocketAddress SocketAddress::EveryV4(int32_t port) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  return {reinterpret_cast<const sockaddr*>(&address), sizeof(address)};
}

SocketAddress SocketAddress::EveryV6(int32_t port) {
  sockaddr_in6 address = {};
  address.sin6_family = AF_INET6;
  address.sin6_port = htons(static_cast<uint16_t>(port));
  return {reinterpret_cast<const sockaddr*>(&address), sizeof(address)};
}

std::string SocketAddress::host() const {
  char text[INET6_ADDRSTRLEN] = {};
  if (family() == AF_INET) {
    inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in&>(storage_).sin_addr, text,
              sizeof(text));
  } else if (family() == AF_INET6) {
    const auto& v6 = reinterpret_cast<const sockaddr_in6&>(storage_);
    if (IsV4Mapped(v6)) {
      inet_ntop(AF_INET, &v6.sin6_addr.s6_addr[12], text, sizeof(text));
      return text;
    }
    inet_ntop(AF_INET6, &v6.sin6_addr, text, sizeof(text));
    char interface[IF_NAMESIZE] = {};
    if (v6.sin6_scope_id != 0 && if_indextoname(v6.sin6_scope_id, interface) != nullptr) {
      return absl::StrCat(text, "%", interface);
    }
  }
  return text;
}

int32_t SocketAddress::port() const {
  if (family() == AF_INET) return ntohs(reinterpret_cast<const sockaddr_in&>(storage_).sin_port);
  if (family() == AF_INET6) return ntohs(reinterpret_cast<const sockaddr_in6&>(storage_).sin6_port);
  return 0;
}

void SocketAddress::set_port(int32_t port) {
  const uint16_t ordered = htons(static_cast<uint16_t>(port));
  if (family() == AF_INET) reinterpret_cast<sockaddr_in&>(storage_).sin_port = ordered;
  if (family() == AF_INET6) reinterpret_cast<sockaddr_in6&>(storage_).sin6_port = ordered;
}

bool SocketAddress::is_loopback() const {
  return absl::StartsWith(host(), "127.") || host() == "::1";
}

bool SocketAddress::is_every() const { return host() == "0.0.0.0" || host() == "::"; }

absl::StatusOr<std::vector<SocketAddress>> Resolve(const HostPort& place) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int error =
      getaddrinfo(place.host.c_str(), std::to_string(place.port).c_str(), &hints, &found);
  const std::string text = JoinHostPort(place.host, place.port);
  if (error != 0) {
    return absl::UnavailableError(
        absl::StrCat("address \"", text,
                     "\": ", error == EAI_SYSTEM ? std::strerror(errno) : gai_strerror(error)));
  }
  std::vector<SocketAddress> addresses;
  for (const addrinfo* item = found; item != nullptr; item = item->ai_next) {
    if (item->ai_family != AF_INET && item->ai_family != AF_INET6) continue;
    addresses.emplace_back(item->ai_addr, item->ai_addrlen);
  }
  freeaddrinfo(found);
  if (addresses.empty()) {
    return absl::UnavailableError(absl::StrCat("address \"", text, "\": no IP address"));
  }
  return addresses;
}

bool IsLoopbackName(absl::string_view host) {
  const std::string name = absl::AsciiStrToLower(host);
  in_addr v4;
  if (inet_pton(AF_INET, name.c_str(), &v4) == 1) return absl::StartsWith(name, "127.");
  return name == "::1" || name == "[::1]" || name == "localhost" || name == "ip6-localhost" ||
         absl::EndsWith(name, ".localhost") || absl::StartsWith(name, "localhost.");
}

bool IsEveryAddress(absl::string_view host) {
  return host.empty() || host == "*" || host == "0.0.0.0" || host == "::" || host == "[::]";
}

absl::StatusOr<ListenPlace> PlaceToListen(const HostPort& wanted, const Resolver& resolve) {
  ListenPlace place{.addresses = {}, .reach = wanted.host, .is_every = false, .note = ""};
  if (IsEveryAddress(wanted.host)) {
    place.reach = MachineName();
    place.is_every = true;
  } else {
    OMNI_ASSIGN_OR_RETURN(place.addresses, resolve(wanted));
    const auto loopback =
        std::find_if(place.addresses.begin(), place.addresses.end(),
                     [](const SocketAddress& address) { return address.is_loopback(); });
    if (!IsLoopbackName(wanted.host) && loopback != place.addresses.end()) {
      place.is_every = true;
      place.note = absl::StrCat(wanted.host, " is ", loopback->host(),
                                " on this machine (/etc/hosts), where no other reaches it: "
                                "listening on every address");
    }
  }
  if (place.is_every) {
    place.addresses = {SocketAddress::EveryV6(wanted.port), SocketAddress::EveryV4(wanted.port)};
  }
  return place;
}

absl::StatusOr<int> ListenOn(const SocketAddress& address) {
  UniqueFd fd(socket(address.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return ListenError(address);
  const int on = 1, off = 0;
  setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (address.family() == AF_INET6) {
    const int* only = address.is_every() ? &off : &on;
    setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, only, sizeof(*only));
  }
  if (bind(fd.get(), address.get(), address.length()) != 0) return ListenError(address);
  if (listen(fd.get(), kBacklog) != 0) return ListenError(address);
  return fd.Release();
}

absl::StatusOr<std::vector<UniqueFd>> ListenAt(ListenPlace* place) {
  std::vector<UniqueFd> listeners;
  int32_t port = place->addresses.front().port();
  absl::Status first;
  for (SocketAddress& at : place->addresses) {
    // "Every IPv6 address" has IPv4 in it; IPv4 alone is for machines without IPv6.
    if (place->is_every && !listeners.empty()) break;
    at.set_port(port);
    const auto fd = ListenOn(at);
    first.Update(fd.status());
    // A name may have addresses of interfaces that are down; a port that is taken is an error.
    if (absl::IsAlreadyExists(fd.status())) return fd.status();
    if (!fd.ok()) continue;
    listeners.emplace_back(*fd);
    port = SocketAddress::Local(*fd).port();
  }
  if (listeners.empty()) return first;
  for (SocketAddress& at : place->addresses) at.set_port(port);
  return listeners;
}

std::string MachineName() {
  char name[256] = {};
  return gethostname(name, sizeof(name) - 1) == 0 && name[0] != '\0' ? name : "localhost";
}

std::string MachineIdentity() {
  const auto boot = ReadFile("/proc/sys/kernel/random/boot_id");
  char network[64] = {};
  if (readlink("/proc/self/ns/net", network, sizeof(network) - 1) < 0) network[0] = '\0';
  if (!boot.ok() || network[0] == '\0') return absl::StrCat("name:", MachineName());
  return absl::StrCat(absl::StripAsciiWhitespace(*boot), " ", network);
}

}  // namespace omni
