// Goes through one rank's program (VerifyRank in verify_parts.h), keeping what has been done.
// Internal to it; bodies in verify_rank.cc, verify_works.cc (compute) and verify_posts.cc
// (transfers).
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "parallel/schedule/verify_parts.h"

namespace omni::parallel {

class RankVerifier {
 public:
  RankVerifier(const ScheduleOptions& options, const EncodingRanks& encoding,
               const VerifyLimits& limits, int32_t rank, const Program& program);
  absl::Status Run();

 private:
  struct ChunkState {
    bool forward = false, input = false, weight = false;  // done
    bool hidden = false, hidden_grad = false;             // received
    bool sent = false, sent_grad = false;                 // what its forward and backward give
  };
  struct Share {  // of an (encoder, group)
    bool encoded = false, kept = false, backward = false;
    bool sent = false, grads_received = false;
  };

  template <typename... Parts>
  absl::Status Error(const Parts&... why) const {
    return ActionError(rank_, index_, program_[index_], absl::StrCat(why...));
  }
  template <typename... Parts>
  absl::Status Never(const Action& action, const Parts&... why) const {
    return absl::FailedPreconditionError(
        absl::StrCat("rank ", rank_, ": ", ToString(action), " never comes", why...));
  }

  bool Encodes(int32_t encoder, int32_t group) const {
    return encoding_.Encodes(rank_, encoder, group);
  }
  ChunkState& ChunkAt(int32_t chunk, int32_t microbatch) {
    return chunks_[int64_t{local_[chunk]} * microbatches_ + microbatch];
  }
  Share& ShareAt(const Action& action) {
    return shares_[int64_t{action.encoder} * num_groups_ + action.microbatch];
  }

  absl::Status Step(const Action& action);
  // Errors unless the action is where and of what there is.
  absl::Status NothingElse(const Action& action) const;
  absl::Status InStep() const;
  absl::Status KnownMicrobatch(const Action& action) const;
  absl::Status KnownChunk(int32_t chunk) const;
  absl::Status HeldChunk(int32_t chunk) const;
  absl::Status KnownGroup(const Action& action) const;
  // Compute.
  absl::Status OfChunk(const Action& action);
  absl::Status EndActivation(const Action& action);
  absl::Status ForwardHasInput(const Action& action, const ChunkState& state);
  absl::Status HasRows(const Action& action);
  absl::Status BackwardHasInput(const Action& action, const ChunkState& state);
  absl::Status OfEncoder(const Action& action);
  absl::Status LiveEncodings(int32_t count) const;
  // Transfers.
  absl::Status Transfer(const Action& action);
  absl::Status Slot(const Action& action);
  absl::Status TransferHidden(const Action& action);
  absl::Status TransferRows(const Action& action);
  absl::Status Peer(const Action& action, int32_t expected) const;
  // The end of the step.
  absl::Status Reduce(const Action& action);
  absl::Status End(int32_t place);
  absl::Status Complete() const;

  const ScheduleOptions& options_;
  const EncodingRanks& encoding_;
  const int32_t rank_, first_, microbatches_, num_chunks_, num_groups_, num_encoders_;
  const int32_t activations_max_, encodings_max_;
  const Program& program_;
  const std::vector<int32_t> held_;  // chunks
  std::vector<int32_t> local_;       // [chunks]: index into held_, or -1
  std::vector<int32_t> holders_;     // [chunks]: ranks
  std::vector<ChunkState> chunks_;   // [held_][microbatches]
  std::vector<bool> chunk_reduced_;
  std::vector<int32_t> backwards_left_;  // [held_]
  std::vector<Share> shares_;            // [encoders][groups]
  std::vector<bool> encoder_reduced_;
  int32_t encoder_expected_ = 0;
  // On the rank with chunk 0.
  std::vector<uint8_t> row_peers_;     // [encoders][groups][ranks]: bit 0 rows, bit 1 gradients
  std::vector<int32_t> rows_missing_;  // [groups]
  std::vector<int32_t> group_left_;    // [groups]: backwards of chunk 0

  int64_t index_ = 0;  // of the action
  int32_t slot_ = -1;
  bool in_slot_ = false, slot_stands_ = false;
  int32_t activations_ = 0, encodings_ = 0;
  int32_t ends_ = 0;  // of agree, update, gather, how many have come
};

}  // namespace omni::parallel
