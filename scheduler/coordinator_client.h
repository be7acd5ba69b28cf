// A worker's end of the control plane: registers, then keeps beating in the background.
//
// The thread that trains never waits here: what it reports is sent by a thread of its own, in
// order, and tried again until the coordinator has taken it; Goodbye comes after all of it.
//
// Limits are of working time (runtime/base/working_clock.h). A coordinator that can't be reached
// for its heartbeat's deadline is lost. One that is connected and silent may be suspended: training
// goes on without it for PatienceFor(deadline) (coordinator.h), and is told so by `warn`.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/base/working_clock.h"
#include "scheduler/plan.h"

namespace omni::scheduler {

struct JoinOptions {
  std::string coordinator;   // "host:port"
  int32_t wanted_rank = -1;  // -1: any
  std::string comm_address;  // where peers reach this worker
  std::string host;          // this machine, for people; "": its name
  std::string reached;       // numeric "host:port" that `coordinator` was reached at; "": unknown
  absl::Duration deadline = absl::Seconds(30);  // for the coordinator to answer at all
  // Reports that wait for the coordinator; with more, ReportStep waits.
  int64_t report_bytes_max = int64_t{16} << 20;
  const WorkingClock& clock = WorkingClock::OfProcess();
};

// InvalidArgument for what no worker can connect to: no "host:port", no host, port 0.
absl::Status CheckCoordinatorAddress(const std::string& address);

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
  // CoordinatorOptions; "" on other ranks than 0.
  int64_t saved_step() const;
  const std::string& saved_state() const;

  // Waits for all workers; their communicator addresses by rank, as this one reaches them. From
  // then on plan() says "shm" or "tcp" where it said "auto". DeadlineExceeded names how many came;
  // Aborted if the job failed meanwhile. Beating starts here.
  absl::StatusOr<std::vector<std::string>> Rendezvous(absl::Duration deadline);

  // What the next heartbeats say.
  void SetProgress(int64_t step, const std::string& phase);

  bool stop_requested() const;
  // Not OK once the coordinator declared the job failed, is lost, or has taken no report for so
  // long that there was no room for the next.
  absl::Status job_status() const;
  // Where to say what is waited for: from any thread, must not block.
  void set_warn(std::function<void(const std::string&)> warn);

  // Returns at once, save where reports wait that weigh report_bytes_max: then it waits until the
  // coordinator takes some, for PatienceFor(deadline) at most, and job_status says so.
  void ReportStep(int64_t step, const std::map<std::string, double>& values);
  void Notice(const std::string& kind, const std::string& text);
  // After all reports and notices; the last call but the destructor. False if it was not heard. If
  // the coordinator did not take all reports, the worker has failed, whatever `status`.
  // `stopped_early`: it ends well, as asked, before its first step.
  bool Goodbye(const absl::Status& status, bool stopped_early = false);

 private:
  class Impl;
  explicit CoordinatorClient(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace omni::scheduler
