// The coordinator: gives workers their rank, the plan and the recipe, introduces them to each
// other, listens to their heartbeats, and tells the rest when one is lost.
//
// It knows no tensors. What it hears it hands to the callbacks, which run one at a time, without
// its lock, and must not block: heartbeats are answered whatever terminals and disks do.
//
// Silence is measured on a working clock (runtime/base/working_clock.h): a coordinator that was
// suspended has heard nobody, and declares nobody lost for it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/base/working_clock.h"
#include "scheduler/plan.h"

namespace omni::scheduler {

// Raised whenever a message changes meaning; both sides must have the same.
inline constexpr int32_t kProtocolVersion = 3;

// How long workers may take to come, and a coordinator that is connected to keep silent (it may be
// suspended), where the heartbeat's deadline is `deadline`: ten times as long, at most 15 minutes
// more.
inline absl::Duration PatienceFor(absl::Duration deadline) {
  return deadline + std::min(9 * deadline, absl::Minutes(15));
}

struct CoordinatorOptions {
  std::string address = "127.0.0.1:0";  // see PlaceToListen; port 0: any free one
  JobPlan plan;
  std::string recipe_yaml;
  std::string run_dir;
  // For rank 0, so that it is read once: the state of the checkpoint the job goes on from. One of
  // more than 1 MiB is not sent, and rank 0 reads it again.
  int64_t saved_step = -1;
  std::string saved_state;
  // No heartbeat for this long, and the worker is lost. Workers beat four times as often. One
  // whose connection ends without a goodbye is lost a second later.
  absl::Duration heartbeat_deadline = absl::Seconds(10);
  // From the start until all workers have registered.
  absl::Duration join_limit = absl::InfiniteDuration();
  const WorkingClock& clock = WorkingClock::OfProcess();
};

struct StepRecord {
  int32_t rank;
  int64_t step;
  std::map<std::string, double> values;
};

struct CoordinatorCallbacks {
  // False: there is no room for it; the worker keeps it and tries again. None is lost.
  std::function<bool(const StepRecord&)> on_step;
  std::function<void(int32_t rank, const std::string& kind, const std::string& text)> on_notice;
  std::function<void(int32_t registered, int32_t wanted)> on_register;
};

class Coordinator {
 public:
  // Errors as ListenOn if the address can't be listened on, with "coordinator address ...".
  static absl::StatusOr<std::unique_ptr<Coordinator>> Create(const CoordinatorOptions& options,
                                                             CoordinatorCallbacks callbacks);
  ~Coordinator();

  const std::string& address() const;       // as workers reach it, with the real port
  const std::string& address_note() const;  // where options.address was not taken as it stands

  // Workers end after the step they are in, saved; before the first step at once. Those that have
  // not come are waited for no longer: the job is over.
  void RequestStop();
  // Workers end now; `reason` is what they and Wait report. With `is_consequence` only if nothing
  // else is known, or becomes known shortly.
  void Fail(const std::string& reason, bool is_consequence = false);

  // Blocks until every worker said goodbye or the job failed. OK if all ended well; otherwise
  // the first failure, naming the rank. FailedPrecondition etc. as the worker reported it;
  // Aborted if a worker was lost. A worker that says Aborted fell with another: the job's failure
  // is that other's, if it is heard of within two seconds. DeadlineExceeded if workers did not come
  // within the join limit.
  absl::Status Wait();
  // After a failure: until the workers that are left have heard of it and said goodbye, at most so
  // long.
  void AwaitGoodbyes(absl::Duration limit);

 private:
  class Impl;
  explicit Coordinator(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace omni::scheduler
