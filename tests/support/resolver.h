// A /etc/hosts as Debian makes it, on a machine called node1, instead of this machine's.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/base/address.h"

namespace omni::test {

inline Resolver DebianNode1() {
  return [](const HostPort& place) -> absl::StatusOr<std::vector<SocketAddress>> {
    static const std::map<std::string, std::vector<std::string>> kHosts = {
        {"localhost", {"::1", "127.0.0.1"}},
        {"node1", {"127.0.1.1"}},
        {"node1-v6", {"fd00::1", "::1"}},
        {"node2", {"10.0.0.2"}},
        {"node2-v6", {"fd00::2"}},
        {"head", {"10.0.0.9", "fd00::9"}},
        {"unknown", {}}};
    std::vector<std::string> numbers = {place.host};
    if (const auto found = kHosts.find(place.host); found != kHosts.end()) numbers = found->second;
    std::vector<SocketAddress> addresses;
    for (const std::string& number : numbers) {
      addresses.push_back(Resolve({.host = number, .port = place.port})->front());
    }
    if (addresses.empty()) return absl::UnavailableError(absl::StrCat("no ", place.host));
    return addresses;
  };
}

}  // namespace omni::test
