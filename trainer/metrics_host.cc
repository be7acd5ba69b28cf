#include "trainer/metrics_host.h"

#include <unistd.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace omni::trainer {
namespace {

std::string Bracketed(const std::string& host) {
  const bool bare_v6 = absl::StrContains(host, ':') && !absl::StartsWith(host, "[");
  return bare_v6 ? absl::StrCat("[", host, "]") : host;
}

bool IsEveryAddress(const std::string& host) { return host == "0.0.0.0" || host == "[::]"; }

bool IsLoopback(const std::string& host) {
  return absl::StartsWith(host, "127.") || host == "[::1]" || host == "localhost";
}

std::string MachineName() {
  char name[256] = {};
  return gethostname(name, sizeof(name) - 1) == 0 ? name : "localhost";
}

}  // namespace

MetricsHost MetricsHostFor(const std::string& wanted, const std::string& own) {
  const std::string own_host = own.empty() ? "0.0.0.0" : Bracketed(own);  // gRPC takes ":29400"
  const std::string listen = wanted.empty() ? own_host : Bracketed(wanted);
  if (!IsEveryAddress(listen)) return {listen, listen};
  const bool own_is_a_name = !IsEveryAddress(own_host) && !IsLoopback(own_host);
  return {listen, own_is_a_name ? own_host : MachineName()};
}

}  // namespace omni::trainer
