#include "parallel/schedule/build.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "parallel/schedule/work.h"
#include "runtime/base/check.h"

namespace omni::parallel {
namespace {

absl::Status AtLeast(const char* option, int64_t found, int64_t least) {
  if (found >= least) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("schedule: ", option, " is ", found, ", expected at least ", least));
}

absl::Status CheckChunks(const ScheduleOptions& options) {
  const int32_t found = options.chunks_per_rank;
  const auto needs = [&](const char* schedule, const char* expected) {
    return absl::InvalidArgumentError(absl::StrCat("schedule ", schedule, ": chunks_per_rank is ",
                                                   found, ", expected ", expected));
  };
  switch (options.schedule) {
    case ScheduleKind::kInterleaved:
      return found >= 2 ? absl::OkStatus() : needs("interleaved", "at least 2");
    case ScheduleKind::kZbV:
      return found == 2 ? absl::OkStatus() : needs("zb_v", "2");
    case ScheduleKind::kGPipe:
      return found == 1 ? absl::OkStatus() : needs("gpipe", "1");
    case ScheduleKind::k1F1B:
      return found == 1 ? absl::OkStatus() : needs("1f1b", "1; interleaved takes more");
    case ScheduleKind::kZbH1:
      return found == 1 ? absl::OkStatus() : needs("zb_h1", "1; zb_v has 2");
  }
  return absl::InternalError("unknown schedule");
}

}  // namespace

int32_t ScheduleOptions::RankOf(int32_t chunk) const {
  const int32_t holders = decoder_ranks();
  return schedule == ScheduleKind::kZbV ? std::min(chunk, 2 * holders - 1 - chunk)
                                        : chunk % holders;
}

std::vector<int32_t> ScheduleOptions::ChunksOf(int32_t rank) const {
  std::vector<int32_t> chunks;
  for (int32_t chunk = 0; chunk < num_chunks(); ++chunk) {
    if (RankOf(chunk) == rank) chunks.push_back(chunk);
  }
  return chunks;
}

absl::Status Check(const ScheduleOptions& options) {
  for (const auto& status :
       {AtLeast("ranks", options.ranks, 1), AtLeast("microbatches", options.microbatches, 1),
        AtLeast("q", options.q, 1), AtLeast("groups_ahead", options.groups_ahead, 1),
        CheckChunks(options)}) {
    if (!status.ok()) return status;
  }
  if (options.joint == JointKind::kDisaggregated &&
      (options.encoder_ranks < 1 || options.encoder_ranks >= options.ranks)) {
    return absl::InvalidArgumentError(
        absl::StrCat("schedule: encoder_ranks is ", options.encoder_ranks, " of ", options.ranks,
                     " ranks, expected at least 1 and fewer than all"));
  }
  // Ranks, chunks and encoders are 16 bits in an Action.
  constexpr int64_t kMost = std::numeric_limits<int16_t>::max();
  const auto at_most = [](const char* what, int64_t found, int64_t most) {
    return found <= most ? absl::OkStatus()
                         : absl::InvalidArgumentError(absl::StrCat("schedule: ", found, " ", what,
                                                                   ", expected at most ", most));
  };
  const int64_t chunks = int64_t{options.ranks} * options.chunks_per_rank;
  for (const auto& status :
       {at_most("ranks", options.ranks, kMost), at_most("chunks", chunks, kMost),
        at_most("encoders", static_cast<int64_t>(options.encoders.size()), kMost),
        at_most("microbatches x chunks", chunks * options.microbatches, int64_t{1} << 28),
        at_most("microbatches in a group", int64_t{options.q} * options.ranks, int64_t{1} << 28)}) {
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

Program BuildProgram(const ScheduleOptions& options, int32_t rank) {
  OMNI_CHECK_OK(Check(options));
  OMNI_CHECK(rank >= 0 && rank < options.ranks);
  const WorkOrder order = JointOrder(options);
  return WeaveTransfers(options, order, TimeWorks(options, order), rank);
}

std::vector<Program> BuildPrograms(const ScheduleOptions& options) {
  OMNI_CHECK_OK(Check(options));
  const WorkOrder order = JointOrder(options);
  const WorkTimes times = TimeWorks(options, order);
  std::vector<Program> programs;
  for (int32_t rank = 0; rank < options.ranks; ++rank) {
    programs.push_back(WeaveTransfers(options, order, times, rank));
  }
  return programs;
}

}  // namespace omni::parallel
