// The parts of Verify (verify.h). Internal to it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "parallel/schedule/build.h"
#include "parallel/schedule/program.h"
#include "parallel/schedule/verify.h"

namespace omni::parallel {

// FailedPrecondition: "rank 1, action 12 (forward chunk 1 microbatch 0): needs ...".
absl::Status ActionError(int32_t rank, int64_t index, const Action& action, absl::string_view why);
std::string Where(int32_t rank, int64_t index, const Action& action);

// Which ranks encode a group: by rule or, where each group has one rank of its own, as found.
class EncodingRanks {
 public:
  EncodingRanks(const ScheduleOptions& options, const std::vector<Program>& programs);
  bool Encodes(int32_t rank, int32_t encoder, int32_t group) const;

 private:
  const ScheduleOptions& options_;
  std::vector<int32_t> found_;  // kAggressive: [encoders][groups]
};

// One rank's program by itself: every action that belongs there once, after what it needs, the
// transfers it needs among them; the order of the end; limits.
absl::Status VerifyRank(const ScheduleOptions& options, const EncodingRanks& encoding,
                        const VerifyLimits& limits, int32_t rank, const Program& program);

// The transfers of all ranks, each with its counterpart. All programs have passed VerifyRank.
struct TransferTable {
  struct End {
    int32_t rank = 0;
    int32_t action = 0;       // index into the program
    int32_t counterpart = 0;  // index of an End
    int32_t slot = 0;         // counts what is posted together on the rank
  };
  std::vector<End> ends;        // by rank, in program order
  std::vector<int32_t> begins;  // [ranks + 1]
};
absl::Status MatchTransfers(const ScheduleOptions& options, const std::vector<Program>& programs,
                            TransferTable* table);

// Runs the programs with transfers that complete only when both sides have posted them and all that
// is before them in a queue is complete; what is posted together is at the head of a queue
// together. `merged`: one queue for all transfers of a rank, else one for each channel and peer.
absl::Status VerifyRendezvous(const ScheduleOptions& options, const std::vector<Program>& programs,
                              const TransferTable& table, bool merged);

}  // namespace omni::parallel
