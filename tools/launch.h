// Worker processes of this machine, started by `omnitrain train`.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "scheduler/coordinator.h"

namespace omni::tools {

class WorkerProcesses {
 public:
  // Spawns (never forks and goes on) `num_workers` copies of this program as `omnitrain worker`.
  // They die with this process, however it ends.
  static absl::StatusOr<WorkerProcesses> Start(const std::string& coordinator_address,
                                               int32_t num_workers);
  WorkerProcesses(WorkerProcesses&&) = default;
  ~WorkerProcesses();  // kills what is left, and waits for it for 5 seconds

  // Reaps exited workers. One that was killed or crashed fails the job, named with its rank and
  // signal; call it now and then until AllExited.
  void Poll(scheduler::Coordinator& coordinator);
  bool AllExited() const;
  void Signal(int signal) const;  // all that are left
  // Waits until all have exited, at most this long.
  bool WaitAll(scheduler::Coordinator& coordinator, absl::Duration limit);

 private:
  WorkerProcesses() = default;
  struct Process {
    pid_t pid;
    int32_t rank;
    bool exited = false;
  };
  std::vector<Process> processes_;
};

}  // namespace omni::tools
