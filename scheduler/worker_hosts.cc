#include "scheduler/worker_hosts.h"

#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/base/address.h"

namespace omni::scheduler {
namespace {

bool IsOnLoopback(const std::string& comm_address) {
  const auto place = ParseHostPort(comm_address);
  return place.ok() && IsLoopbackName(place->host);
}

}  // namespace

absl::Status CheckHosts(const WorkerHosts& hosts, const std::string& engine,
                        const std::string& coordinator_machine) {
  for (size_t i = 0; i < hosts.size(); ++i) {
    for (size_t j = 0; j < hosts.size(); ++j) {
      if (!hosts[i].has_value() || !hosts[j].has_value()) continue;
      const WorkerHost &to = *hosts[i], &from = *hosts[j];
      if (to.machine == from.machine) continue;
      if (engine == "shm") {
        return absl::InvalidArgumentError(absl::StrCat(
            "runtime.comm is shm, which connects the workers of one machine, but rank ", i,
            " is on ", to.name, " and rank ", j, " on ", from.name,
            "; set runtime.comm to auto or tcp"));
      }
      if (!IsOnLoopback(to.comm_address)) continue;
      // Its loopback is the coordinator's, if it is beside it.
      if (to.machine == coordinator_machine && !IsLoopbackName(from.reached)) continue;
      return absl::InvalidArgumentError(absl::StrCat(
          "rank ", i, " on ", to.name, " listens on its loopback (", to.comm_address,
          "), where rank ", j, " on ", from.name,
          " can't reach it; start it with the coordinator's name in --coordinator, or with --host "
          "and an address that other machines reach it at"));
    }
  }
  return absl::OkStatus();
}

std::string ChooseEngine(const WorkerHosts& hosts, const std::string& engine) {
  if (engine != "auto") return engine;
  for (const auto& host : hosts) {
    if (host->machine != hosts[0]->machine) return "tcp";
  }
  return "shm";
}

std::string AddressFor(const WorkerHost& from, const WorkerHost& to) {
  if (from.machine == to.machine || !IsOnLoopback(to.comm_address)) return to.comm_address;
  return JoinHostPort(from.reached, ParseHostPort(to.comm_address)->port);
}

std::string DifferentHosts(const WorkerHosts& hosts) {
  std::set<std::string> machines;
  std::vector<std::string> names;
  for (const auto& host : hosts) {
    if (host.has_value() && machines.insert(host->machine).second) names.push_back(host->name);
  }
  return names.size() > 1 ? absl::StrJoin(names, ", ") : "";
}

}  // namespace omni::scheduler
