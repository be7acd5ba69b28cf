#include "tools/replay.h"

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "parallel/schedule/action_times.h"
#include "parallel/schedule/closed_forms.h"
#include "parallel/schedule/replay.h"
#include "parallel/schedule/verify.h"
#include "runtime/base/config.h"
#include "runtime/base/file.h"
#include "runtime/base/status.h"

namespace omni::tools {
namespace {

using parallel::ActionTimes;
using parallel::JointKind;
using parallel::ReplayResult;
using parallel::ScheduleKind;
using parallel::ScheduleOptions;
using parallel::StageCosts;

template <typename Kind>
absl::StatusOr<Kind> Named(const char* flag, const std::string& word,
                           const std::vector<std::pair<std::string, Kind>>& kinds) {
  std::vector<std::string> names;
  for (const auto& [name, kind] : kinds) {
    if (name == word) return kind;
    names.push_back(name);
  }
  const std::string nearest = NearestName(word, names);
  return absl::InvalidArgumentError(
      absl::StrCat(flag, ": found \"", word, "\", expected ", absl::StrJoin(names, ", "),
                   nearest.empty() ? "" : absl::StrCat("; did you mean \"", nearest, "\"?")));
}

absl::StatusOr<ScheduleOptions> OptionsOf(const ReplayCommand& command) {
  ScheduleOptions options{.ranks = command.ranks,
                          .chunks_per_rank = command.chunks_per_rank,
                          .microbatches = command.microbatches,
                          .q = command.q,
                          .groups_ahead = command.groups_ahead};
  OMNI_ASSIGN_OR_RETURN(options.schedule,
                        Named<ScheduleKind>("--schedule", command.schedule,
                                            {{"gpipe", ScheduleKind::kGPipe},
                                             {"1f1b", ScheduleKind::k1F1B},
                                             {"interleaved", ScheduleKind::kInterleaved},
                                             {"zb_h1", ScheduleKind::kZbH1},
                                             {"zb_v", ScheduleKind::kZbV}}));
  OMNI_ASSIGN_OR_RETURN(options.joint,
                        Named<JointKind>("--joint", command.joint,
                                         {{"uniform", JointKind::kUniform},
                                          {"upfront", JointKind::kUpfront},
                                          {"recompute", JointKind::kRecompute},
                                          {"first_stage", JointKind::kFirstStage},
                                          {"aggressive", JointKind::kAggressive},
                                          {"disaggregated", JointKind::kDisaggregated}}));
  if (options.chunks_per_rank == 0) {
    const bool several =
        options.schedule == ScheduleKind::kInterleaved || options.schedule == ScheduleKind::kZbV;
    options.chunks_per_rank = several ? 2 : 1;
  }
  if (command.encoders < 0 || command.frozen < 0 || command.frozen > command.encoders) {
    return absl::InvalidArgumentError(absl::StrCat("--frozen: found ", command.frozen, " of ",
                                                   command.encoders,
                                                   " encoders, expected none to all of them"));
  }
  for (int32_t i = 0; i < command.encoders; ++i) {
    options.encoders.push_back({.trains = i < command.encoders - command.frozen});
  }
  if (options.joint == JointKind::kDisaggregated) options.encoder_ranks = command.encoder_ranks;
  OMNI_RETURN_IF_ERROR(parallel::Check(options));
  return options;
}

// The costs to use if neither a table nor traces are given.
absl::StatusOr<std::optional<StageCosts>> CostsOf(const ReplayCommand& command) {
  const int sources = (command.times.empty() ? 0 : 1) + (command.traces.empty() ? 0 : 1) +
                      (command.costs.empty() ? 0 : 1);
  if (sources > 1) {
    return absl::InvalidArgumentError(
        "found several of --times, --from-trace and --costs, expected one of them");
  }
  if (sources == 1 && command.costs.empty()) return std::optional<StageCosts>();
  if (command.costs.empty()) return StageCosts{.encode = 0.5, .encode_backward = 1};
  if (command.costs.size() != 5) {
    return absl::InvalidArgumentError(
        absl::StrCat("--costs: found ", command.costs.size(),
                     " numbers, expected 5: forward, input backward, weight gradient, encode, "
                     "encoder backward"));
  }
  for (const double cost : command.costs) {
    if (!(cost >= 0 && cost < 1e9)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--costs: found ", cost, ", expected 0 to 1e9"));
    }
  }
  return StageCosts{command.costs[0], command.costs[1], command.costs[2], command.costs[3],
                    command.costs[4]};
}

std::string Counted(int64_t count, const char* one, const char* several) {
  return absl::StrCat(count, " ", count == 1 ? one : several);
}

std::string Title(const ReplayCommand& command, const ScheduleOptions& options) {
  std::string title =
      absl::StrCat(command.schedule, ", ", Counted(options.ranks, "rank", "ranks"), " with ",
                   Counted(options.chunks_per_rank, "chunk", "chunks"), ", ",
                   Counted(options.microbatches, "microbatch", "microbatches"));
  if (options.encoders.empty()) return title;
  absl::StrAppend(&title, "; ", command.joint, ", ",
                  Counted(command.encoders, "encoder", "encoders"),
                  command.frozen > 0 ? absl::StrCat(" (", command.frozen, " frozen)") : "", ", ",
                  Counted(options.num_groups(), "group", "groups"), " of ", options.group_size());
  return title;
}

std::string OrDash(std::optional<int32_t> value) {
  return value.has_value() ? absl::StrCat(*value) : "-";
}

std::string ReportOf(const ScheduleOptions& options, const ReplayResult& result,
                     const std::optional<StageCosts>& costs) {
  std::string text = absl::StrFormat("step     %.6g", result.step_time);
  if (costs.has_value()) {
    const std::optional<double> closed = parallel::ClosedFormStep(options, *costs);
    text +=
        closed.has_value() ? absl::StrFormat(" (closed form %.6g)", *closed) : " (no closed form)";
  } else {
    text += " s";
  }
  absl::StrAppendFormat(&text, "\nbubbles  %.2f %%\n\n", 100 * result.bubble_fraction());
  // Of a chunk and microbatch, and of groups, kept for their backwards.
  absl::StrAppend(&text, "rank       busy  forwards kept  at most  groups kept  at most\n");
  for (int32_t rank = 0; rank < options.ranks; ++rank) {
    absl::StrAppendFormat(&text, "%4d %10.6g  %13d  %7s  %11d  %7s\n", rank, result.busy[rank],
                          result.live_activations_max[rank],
                          OrDash(parallel::LiveActivationsBound(options, rank)),
                          result.live_groups_max[rank], OrDash(parallel::LiveGroupsBound(options)));
  }
  return text;
}

}  // namespace

absl::StatusOr<std::string> ReplaySchedule(const ReplayCommand& command) {
  OMNI_ASSIGN_OR_RETURN(const ScheduleOptions options, OptionsOf(command));
  OMNI_ASSIGN_OR_RETURN(const std::optional<StageCosts> costs, CostsOf(command));
  if (command.ranks_per_stage < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--ranks-per-stage: found ", command.ranks_per_stage, ", expected at least 1"));
  }
  const std::vector<parallel::Program> programs = parallel::BuildPrograms(options);
  OMNI_RETURN_IF_ERROR(parallel::Verify(options, programs));
  parallel::ActionTime time;
  if (costs.has_value()) {
    time = parallel::EqualTimes(options, *costs);
  } else {
    OMNI_ASSIGN_OR_RETURN(ActionTimes times,
                          command.times.empty()
                              ? ActionTimes::FromTraces(command.traces, command.ranks_per_stage)
                              : ActionTimes::LoadFile(command.times));
    OMNI_RETURN_IF_ERROR(Annotate(times.Covers(programs), command.times.empty()
                                                              ? absl::StrJoin(command.traces, ", ")
                                                              : command.times));
    time = std::move(times);
  }
  OMNI_ASSIGN_OR_RETURN(const ReplayResult result, parallel::Replay(options, programs, time));
  if (!command.trace_out.empty()) {
    OMNI_RETURN_IF_ERROR(WriteFileAtomically(command.trace_out, parallel::ToTrace(result)));
  }
  if (!command.svg_out.empty()) {
    OMNI_RETURN_IF_ERROR(WriteFileAtomically(command.svg_out, parallel::ToSvg(result)));
  }
  return absl::StrCat(Title(command, options), "\n", ReportOf(options, result, costs));
}

}  // namespace omni::tools
