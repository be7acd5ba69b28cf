// Builders of Programs: who does what when in a pipeline, with or without encoders in it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/schedule/program.h"

namespace omni::parallel {

enum class ScheduleKind : uint8_t {
  kGPipe,        // all forwards, then all backwards (Huang et al. 2019)
  k1F1B,         // Narayanan et al. 2019
  kInterleaved,  // Narayanan et al. 2021: chunk c on rank c mod ranks
  kZbH1,         // zero bubble, memory of 1F1B (Qi et al. 2024, arXiv 2401.10241)
  kZbV           // two chunks a rank, there and back: chunk c on rank min(c, 2 ranks - 1 - c)
};

enum class JointKind : uint8_t {
  kUniform,       // groups dealt over all ranks, encoded on demand, groups_ahead early
  kUpfront,       // all encoders first, their backwards last
  kRecompute,     // as upfront, but nothing kept: encoded again at the end
  kFirstStage,    // the rank with chunk 0 encodes everything, right before it is needed
  kAggressive,    // for simulation: bubbles filled greedily (Optimus)
  kDisaggregated  // for simulation: the last encoder_ranks ranks encode, the others have the
                  // decoder
};

// What of one encoder matters to a schedule.
struct ScheduledEncoder {
  bool trains = true;  // false: it has no backward, and no row gradients travel
};

struct ScheduleOptions {
  ScheduleKind schedule = ScheduleKind::k1F1B;
  int32_t ranks = 1;
  int32_t chunks_per_rank = 1;  // kInterleaved: >= 2; kZbV: 2; else 1
  int32_t microbatches = 1;     // any number >= 1, not only multiples of ranks

  JointKind joint = JointKind::kUniform;
  std::vector<ScheduledEncoder> encoders;
  int32_t q = 1;              // see group_size()
  int32_t groups_ahead = 1;   // kUniform: a group is encoded this many groups before it is needed
  int32_t encoder_ranks = 0;  // kDisaggregated
  // Rows and their gradients may travel in rounds, between which the rank that encodes stands
  // still: it packs rows as it sends them and unpacks gradients as they come, each for itself.
  bool row_rounds = false;

  // Pipeline ranks [0, decoder_ranks) hold the decoder's chunks.
  int32_t decoder_ranks() const {
    return joint == JointKind::kDisaggregated ? ranks - encoder_ranks : ranks;
  }
  int32_t num_chunks() const { return decoder_ranks() * chunks_per_rank; }
  // Microbatches of a group: q for every rank that shares it.
  int32_t group_size() const {
    switch (joint) {
      case JointKind::kFirstStage:  // whole on one rank
      case JointKind::kAggressive:
        return q;
      case JointKind::kDisaggregated:
        return q * encoder_ranks;
      default:
        return q * ranks;
    }
  }
  int32_t num_groups() const { return (microbatches + group_size() - 1) / group_size(); }
  int32_t GroupOf(int32_t microbatch) const { return microbatch / group_size(); }
  // The first and the last microbatch of a group.
  int32_t FirstOf(int32_t group) const { return group * group_size(); }
  int32_t LastOf(int32_t group) const { return std::min(microbatches, FirstOf(group + 1)) - 1; }
  // The pipeline rank that holds a chunk of the decoder.
  int32_t RankOf(int32_t chunk) const;
  // Chunks of a rank, ascending.
  std::vector<int32_t> ChunksOf(int32_t rank) const;
};
// InvalidArgument naming the option, what was found and what fits.
absl::Status Check(const ScheduleOptions& options);

// The program of one pipeline rank: pure, so every rank may build any other's. `options` must pass
// Check.
//
// kReduceGradients of a chunk comes when its gradients are complete, of the first and the last
// chunk (whose ranks may share a tied embedding) not before the rank's last transfer. Then kAgree,
// kReduceGradients of the trained encoders (which all ranks hold), kUpdate, kGatherParameters: so
// collectives of any set of ranks come in one order.
Program BuildProgram(const ScheduleOptions& options, int32_t rank);
// Of all ranks: the pipeline is laid out once.
std::vector<Program> BuildPrograms(const ScheduleOptions& options);

}  // namespace omni::parallel
