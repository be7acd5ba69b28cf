// Ranks for tests: as threads of the test, or as processes that can be killed and stopped.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "runtime/comm/communicator.h"
#include "runtime/comm/options.h"

namespace omni::test {

using RankFn = std::function<absl::Status(Communicator& comm, int32_t rank)>;

// Runs fn as `world_size` ranks, each a thread with a communicator of `engine` ("shm", "tcp").
// Returns the error of the rank that failed first, "rank 2: ..."; DeadlineExceeded if they have
// not all ended in time (their communicators are then aborted; a rank that ends not even then
// takes the process down).
absl::Status RunRanks(int32_t world_size, absl::string_view engine, const RankFn& fn,
                      const CommOptions& options = {.deadline = absl::Minutes(5)},
                      absl::Duration deadline = absl::Minutes(10));

// The world of ranks that are processes of this host. Over tcp they tell each other their addresses
// through a first communicator over shm.
absl::StatusOr<std::unique_ptr<Communicator>> JoinWorld(absl::string_view engine,
                                                        const std::string& name, int32_t rank,
                                                        int32_t size, const CommOptions& options);

// A rank as a process: returns its exit code. Connects by itself (JoinWorld).
using RankProgram = std::function<int(int32_t rank, int32_t size, const std::string& argument)>;

// To be called first in main: if this process was spawned as a rank, runs its program and exits.
void RunAsRankIfSpawned(const std::map<std::string, RankProgram>& programs);

// Processes of this test's own binary, started by posix_spawn. The destructor kills and reaps.
class RankProcesses {
 public:
  RankProcesses(const std::string& program, int32_t size, const std::string& argument = "");
  ~RankProcesses();
  RankProcesses(const RankProcesses&) = delete;
  RankProcesses& operator=(const RankProcesses&) = delete;

  pid_t pid(int32_t rank) const { return ranks_[rank].pid; }
  void Signal(int32_t rank, int signal);
  // The next line the rank printed, without its end; "" at the deadline or the end of output.
  std::string ReadLine(int32_t rank, absl::Duration deadline = absl::Seconds(60));
  // Exit code, or 128 + signal; -1 at the deadline.
  int Wait(int32_t rank, absl::Duration deadline = absl::Seconds(60));

 private:
  struct Rank {
    pid_t pid = -1;
    int output = -1;
    std::string buffer;
    bool reaped = false;
    int code = -1;
  };
  std::vector<Rank> ranks_;
};

// How many descriptors this process has open.
int64_t CountOpenFds();
// Whether any process of this host has a Unix socket with this in its name.
bool SocketsExist(const std::string& name);

}  // namespace omni::test
