#include "runtime/comm/route.h"

#include <algorithm>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/comm/sockets.h"

namespace omni::comm {

absl::StatusOr<Route> RouteTo(const std::string& coordinator, absl::Time deadline) {
  OMNI_ASSIGN_OR_RETURN(const UniqueFd fd, Connect(coordinator, deadline));
  return Route{.coordinator = SocketAddress::Remote(fd.get()),
               .local = SocketAddress::Local(fd.get())};
}

absl::StatusOr<OwnAddress> ChooseOwnAddress(const Route& route, const std::string& coordinator,
                                            const std::string& given, const Resolver& resolve) {
  const bool has_brackets = absl::StartsWith(given, "[") && absl::EndsWith(given, "]");
  const std::string host = has_brackets ? given.substr(1, given.size() - 2) : given;
  const std::string local = route.local.host();
  const bool is_remote = !route.local.is_loopback();
  OwnAddress by_route{.listen = local, .advertise = local, .metrics = local, .note = ""};
  OMNI_ASSIGN_OR_RETURN(const HostPort named, ParseHostPort(coordinator));
  // Whoever was told a name may be elsewhere; who was told the loopback is here.
  if (!is_remote && !IsLoopbackName(named.host)) by_route.listen = by_route.metrics = "";
  if (host.empty()) return by_route;
  if (IsEveryAddress(host)) {
    by_route.listen = by_route.metrics = "";
    return by_route;
  }
  auto addresses = resolve({.host = host, .port = 0});
  if (!addresses.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--host ", host, ": ", addresses.status().message(),
                     "; without --host the route to the coordinator says it: ", local));
  }
  const auto loopback =
      std::find_if(addresses->begin(), addresses->end(),
                   [](const SocketAddress& address) { return address.is_loopback(); });
  if (loopback != addresses->end()) {
    if (IsLoopbackName(host)) {
      if (!is_remote) return OwnAddress{loopback->host(), loopback->host(), host, ""};
      return absl::InvalidArgumentError(absl::StrCat(
          "--host ", host, " is this machine's loopback, which the coordinator at ", coordinator,
          " (", route.coordinator.host(), ") and the other workers can't reach; leave --host out, ",
          "or give the address they reach this machine at: ", local));
    }
    by_route.metrics = host;  // by its name, on every address (PlaceToListen)
    if (!is_remote) {
      by_route.listen = "";
      return by_route;
    }
    by_route.note = absl::StrCat("--host ", host, " is ", loopback->host(),
                                 " on this machine (/etc/hosts), which the coordinator at ",
                                 coordinator, " (", route.coordinator.host(),
                                 ") can't reach; using ", local, ", where the route to it begins");
    return by_route;
  }
  const auto same_family = std::find_if(
      addresses->begin(), addresses->end(),
      [&](const SocketAddress& address) { return address.family() == route.local.family(); });
  const std::string chosen =
      (same_family != addresses->end() ? *same_family : addresses->front()).host();
  return OwnAddress{.listen = chosen, .advertise = chosen, .metrics = host, .note = ""};
}

}  // namespace omni::comm
