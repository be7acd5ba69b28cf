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

// Seconds (or any unit) an action of a pipeline rank takes. For kSend: from when both ends are
// posted to arrival; kRecv is not asked.
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

// A rank does its actions in order, each for its time. Posting a transfer takes none; it arrives
// its time after both ends have posted it (rendezvous), not before those ahead of it in its channel
// between the two ranks. A forward waits for its hidden states, or on chunk 0 for the rows of its
// group; a backward for the gradients of what it passed on; an encoder's for those of its rows.
// kAgree waits for all ranks. A group, or (chunk, microbatch), lives from the beginning of its
// forward to the end of its backward, both halves; a group that was encoded without keeping
// only while it goes back; one of an encoder that does not train never.
//
// InvalidArgument if there are not as many programs as ranks. FailedPrecondition, naming rank and
// action, if the programs stop, a transfer meets another or nothing, or an action names what
// `options` lack (none of it happens to programs that pass Verify).
absl::StatusOr<ReplayResult> Replay(const ScheduleOptions& options,
                                    const std::vector<Program>& programs, const ActionTime& time);

// The timeline as a Chrome/Perfetto trace: a process for each rank with one track of actions, named
// ToString(action), category "action", and beside it what was on its way to the rank ("transfer").
// A unit of time is a second.
std::string ToTrace(const ReplayResult& result);

// The timeline drawn: a row for each rank, rows of encoders as lines to chunk 0's rank and back.
// The same text for the same result, whatever the machine.
std::string ToSvg(const ReplayResult& result);

}  // namespace omni::parallel
