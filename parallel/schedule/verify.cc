#include "parallel/schedule/verify.h"

#include "absl/strings/str_cat.h"
#include "parallel/schedule/verify_parts.h"

namespace omni::parallel {

std::string Where(int32_t rank, int64_t index, const Action& action) {
  return absl::StrCat("rank ", rank, ", action ", index, " (", ToString(action), ")");
}

absl::Status ActionError(int32_t rank, int64_t index, const Action& action, absl::string_view why) {
  return absl::FailedPreconditionError(absl::StrCat(Where(rank, index, action), ": ", why));
}

absl::Status Verify(const ScheduleOptions& options, const std::vector<Program>& programs,
                    const VerifyLimits& limits) {
  if (absl::Status status = Check(options); !status.ok()) return status;
  const auto ranks = static_cast<size_t>(options.ranks);
  for (const auto& [what, found] :
       {std::pair("programs", programs.size()),
        std::pair("limits of activations",
                  limits.live_activations.empty() ? ranks : limits.live_activations.size()),
        std::pair("limits of encodings",
                  limits.live_encodings.empty() ? ranks : limits.live_encodings.size())}) {
    if (found == ranks) continue;
    return absl::FailedPreconditionError(
        absl::StrCat("a pipeline of ", ranks, " ranks has ", found, " ", what));
  }
  const EncodingRanks encoding(options, programs);
  for (int32_t rank = 0; rank < options.ranks; ++rank) {
    absl::Status status = VerifyRank(options, encoding, limits, rank, programs[rank]);
    if (!status.ok()) return status;
  }
  TransferTable table;
  absl::Status status = MatchTransfers(options, programs, &table);
  for (const bool merged : {false, true}) {
    if (status.ok()) status = VerifyRendezvous(options, programs, table, merged);
  }
  return status;
}

}  // namespace omni::parallel
