// What of a job's Layout its data depend on: who reads which lanes, and who may encode what.
//
// Lanes belong to replicas of the decoder: lane l is packed sequence l / replicas of replica
// l mod replicas. All ranks of a replica read the same microbatches.
//
// Encoders run on all ranks. Those of a stage, data > ring > ulysses > tensor, are cut into
// sequence groups of `sequence` consecutive ranks. The replicas that such groups join form a
// *domain*: its ranks, on every stage, encode what its replicas read, and nothing else.
//
//   2 replicas of 2 ranks a stage, 2 stages: stage 0 has ranks 0 1 | 2 3, stage 1 has 4 5 | 6 7
//     sequence 1, 2: domains {0 1 4 5}, {2 3 6 7}      sequence 4: one of all
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/encoder_shards.h"
#include "parallel/parallel_config.h"
#include "parallel/schedule/build.h"
#include "parallel/sequence_shards.h"

namespace omni::parallel {

struct DataLayout {
  struct Encoder {
    std::string name;
    int32_t sequence = 1;  // ranks of a sequence group
    int64_t threshold = kThresholdAuto;
    SampleUnit unit = {};  // of its InputGeometry; without one its samples are never split
  };
  int32_t stages = 1;  // of the pipeline; chunk 0 is on the first
  int32_t replicas = 1;
  SequenceDegrees sequence;  // the ranks of a replica's stage
  int32_t ring_threshold = 0;
  int32_t group_size = 1;  // microbatches encoded together
  JointKind joint = JointKind::kUniform;
  std::vector<Encoder> encoders;  // in the order of the layout: indices of Programs

  // `units`: of the layout's encoders, as their InputGeometry has them; empty: none are split.
  static DataLayout Of(const Layout& layout, const std::vector<SampleUnit>& units = {});
  // `world` replicas of one rank each, microbatches encoded one by one, nothing split.
  static DataLayout DataParallel(int32_t world);

  int32_t stage_ranks() const { return replicas * sequence.num_ranks(); }
  int32_t num_ranks() const { return stages * stage_ranks(); }
  int32_t Stage(int32_t rank) const { return rank / stage_ranks(); }
  int32_t Replica(int32_t rank) const { return rank % stage_ranks() / sequence.num_ranks(); }
  int32_t SequenceIndex(int32_t rank) const { return rank % sequence.num_ranks(); }
  int32_t RankAt(int32_t stage, int32_t replica, int32_t sequence_index) const {
    return stage * stage_ranks() + replica * sequence.num_ranks() + sequence_index;
  }
  // Replicas of a domain of this encoder; domain d has [d n, (d + 1) n).
  int32_t DomainReplicas(int32_t encoder) const;
};

}  // namespace omni::parallel
