#include "trainer/metrics_host.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/address.h"

namespace omni::trainer {
namespace {

std::string Bracketed(const std::string& host) {
  const bool bare_v6 = absl::StrContains(host, ':') && !absl::StartsWith(host, "[");
  return bare_v6 ? absl::StrCat("[", host, "]") : host;
}

}  // namespace

MetricsHost MetricsHostFor(const std::string& wanted, const std::string& own) {
  const std::string own_host = own.empty() ? "0.0.0.0" : Bracketed(own);  // gRPC takes ":29400"
  const std::string listen = wanted.empty() ? own_host : Bracketed(wanted);
  if (!IsEveryAddress(listen)) return {listen, listen};
  const bool own_is_a_name = !IsEveryAddress(own_host) && !IsLoopbackName(own_host);
  return {listen, own_is_a_name ? own_host : MachineName()};
}

}  // namespace omni::trainer
