// A worker's end of the control plane: registers, then keeps beating in the background.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "scheduler/plan.h"

namespace omni::scheduler {

struct JoinOptions {
  std::string coordinator;                      // "host:port"
  int32_t wanted_rank = -1;                     // -1: any
  std::string comm_address;                     // where peers reach this worker; "" with shm
  absl::Duration deadline = absl::Seconds(30);  // for the coordinator to answer at all
};

class CoordinatorClient {
 public:
  // Registers. InvalidArgument for what is no "host:port"; Unavailable, naming the address and how
  // long was tried, if nobody answers; FailedPrecondition if the coordinator is of another version
  // or has all its workers.
  static absl::StatusOr<std::unique_ptr<CoordinatorClient>> Join(const JoinOptions& options);
  ~CoordinatorClient();  // stops beating

  int32_t rank() const;
  const JobPlan& plan() const;
  const std::string& recipe_yaml() const;
  const std::string& run_dir() const;
  const std::string& job_id() const;

  // Waits for all workers; their communicator addresses by rank. DeadlineExceeded names how many
  // came; Aborted if the job failed meanwhile. Beating starts here.
  absl::StatusOr<std::vector<std::string>> Rendezvous(absl::Duration deadline);

  // What the next heartbeats say.
  void SetProgress(int64_t step, const std::string& phase);

  bool stop_requested() const;
  // Not OK once the coordinator declared the job failed or did not answer for its deadline.
  absl::Status job_status() const;

  // Best effort: a report that is lost costs a line of a log, not the step.
  void ReportStep(int64_t step, const std::map<std::string, double>& values);
  void Notice(const std::string& kind, const std::string& text);
  bool Goodbye(const absl::Status& status);  // false if it was not heard

 private:
  class Impl;
  explicit CoordinatorClient(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace omni::scheduler
