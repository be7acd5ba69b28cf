// This rank's communicators: split off the job's once, in one order on all ranks.
//
// Every kind of work has channels of its own, so that what one kind waits for never holds up
// another: gradients are reduced while a stage computes.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "parallel/data_layout.h"
#include "parallel/group.h"
#include "parallel/parallel_config.h"
#include "parallel/placement_groups.h"
#include "parallel/sequence_context.h"
#include "runtime/comm/communicator.h"

namespace omni::trainer {

class RankGroups {
 public:
  // Collective over `world`, which may be null for a rank alone, and outlives the result. `heads`:
  // of each encoder, which decide how far its sequence groups go by heads (largest common divisor);
  // the rest is a ring. All communicators read after what `stream` was given.
  static absl::StatusOr<std::unique_ptr<RankGroups>> Create(Communicator* world,
                                                            const parallel::Layout& layout,
                                                            const std::vector<int32_t>& heads,
                                                            Stream& stream);

  struct EncoderGroups {
    parallel::Group ulysses, ring;      // of the sequence group
    parallel::Group rows, row_grads;    // all ranks of the domain (parallel/data_layout.h)
    std::vector<int32_t> domain_ranks;  // of the job, ascending: ranks of `rows`

    int32_t RankOf(int32_t job_rank) const;  // among them
  };

  const parallel::DecoderGroups& decoder() const { return decoder_; }
  const std::vector<EncoderGroups>& encoders() const { return encoders_; }
  // Over the pipeline ranks at this rank's place in its stage; by pipeline rank.
  const parallel::Group& hidden() const { return hidden_; }
  const parallel::Group& hidden_grads() const { return hidden_grads_; }
  // Who sums which gradients.
  const parallel::PlacementGroups& placement() const { return placement_; }

  // OK, or why one of them is dead.
  absl::Status status() const;
  void Abort(absl::string_view reason);

 private:
  RankGroups() = default;
  // The group among `groups` that this rank is in; alone where groups are of one rank.
  absl::Status Split(Communicator* world, const std::vector<std::vector<int32_t>>& groups,
                     const std::string& channel, Stream& stream, parallel::Group* group);

  std::vector<std::unique_ptr<Communicator>> owned_;
  parallel::DecoderGroups decoder_;
  std::vector<EncoderGroups> encoders_;
  parallel::Group hidden_, hidden_grads_;
  parallel::PlacementGroups placement_;
};

}  // namespace omni::trainer
