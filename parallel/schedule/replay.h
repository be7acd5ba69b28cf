// Runs Programs on a clock instead of a machine: how long a step takes, where the bubbles are, how
// much lives at once.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/schedule/build.h"
#include "parallel/schedule/program.h"

namespace omni::parallel {

// Seconds (or any unit) an action of a pipeline rank takes. For kSend: from posting to arrival.
using ActionTime = std::function<double(int32_t rank, const Action& action)>;

struct TimedAction {
  Action action;
  double begin = 0, end = 0;  // of transfers: posted, arrived
};

struct ReplayResult {
  double step_time = 0;
  std::vector<double> busy;                        // [ranks]: time in compute
  std::vector<std::vector<TimedAction>> timeline;  // [ranks], in program order
  std::vector<int32_t> live_activations_max;       // [ranks]: (chunk, microbatch) kept for backward
  std::vector<int32_t> live_groups_max;            // [ranks]: groups of encodings kept, any encoder

  double bubble_fraction() const;  // idle time over ranks x step_time
};

// FailedPrecondition if the programs stop (they would not if they passed Verify).
absl::StatusOr<ReplayResult> Replay(const ScheduleOptions& options,
                                    const std::vector<Program>& programs, const ActionTime& time);

// The timeline as a Chrome/Perfetto trace, and as a drawing for documents.
std::string ToTrace(const ReplayResult& result);
std::string ToSvg(const ReplayResult& result);

}  // namespace omni::parallel
