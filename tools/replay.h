// `omnitrain replay`: a schedule on a clock instead of a machine.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace omni::tools {

struct ReplayCommand {
  std::string schedule = "1f1b";  // as in a recipe's `parallel` section
  std::string joint = "uniform";  // likewise, or aggressive, disaggregated
  int32_t ranks = 4;
  int32_t chunks_per_rank = 0;  // 0: the fewest the schedule has
  int32_t microbatches = 8;
  int32_t encoders = 1;
  int32_t frozen = 0;  // the last so many of them
  int32_t q = 1;
  int32_t groups_ahead = 1;
  int32_t encoder_ranks = 1;  // disaggregated

  // Where times come from: a table (parallel/schedule/action_times.h), recorded traces, or these
  // costs of a microbatch: forward, input backward and weight gradient of a stage, encode and
  // encoder backward of one encoder on one rank.
  std::string times;
  std::vector<std::string> traces;
  int32_t ranks_per_stage = 1;  // of the recorded run
  std::vector<double> costs;    // {}: 1, 1, 1, 0.5, 1

  std::string trace_out, svg_out;  // "": none
};

// Builds, verifies and replays; writes the files asked for. A report: step time, bubbles, and of
// each rank its busy time and what it keeps at most, beside the closed forms where there are any.
// InvalidArgument naming the flag; errors of Check, of the tables and of the files.
absl::StatusOr<std::string> ReplaySchedule(const ReplayCommand& command);

}  // namespace omni::tools
