// On which machines a job's workers are, and by what they reach each other from there.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace omni::scheduler {

struct WorkerHost {
  std::string name;          // for people: "node1 (10.0.0.1)"
  std::string machine;       // equal where memory can be shared (MachineIdentity)
  std::string comm_address;  // "10.0.0.1:40123"
  std::string reached;       // the coordinator's host, as this worker reached it
};

// By rank; nullopt of who has not registered yet.
using WorkerHosts = std::vector<std::optional<WorkerHost>>;

// Whether workers that are there can work together over `engine` ("shm", "tcp", "auto"), as far as
// is known. InvalidArgument names two hosts and what to change.
absl::Status CheckHosts(const WorkerHosts& hosts, const std::string& engine,
                        const std::string& coordinator_machine);

// "shm" or "tcp"; for "auto" shm where all workers are on one machine. All have registered.
std::string ChooseEngine(const WorkerHosts& hosts, const std::string& engine);

// Where `from` reaches `to`. A worker beside the coordinator, which it reached over the loopback,
// has for others the address that they reach the coordinator at.
std::string AddressFor(const WorkerHost& from, const WorkerHost& to);

// "node1 (10.0.0.1), node2 (10.0.0.2)"; "" if all are on one.
std::string DifferentHosts(const WorkerHosts& hosts);

}  // namespace omni::scheduler
