// Where the ops of a decoder run: with whom this rank shares sequences, and, for one microbatch,
// who holds which of its rows.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "parallel/group.h"
#include "parallel/pack.h"
#include "parallel/sequence_shards.h"

namespace omni::parallel {

struct DecoderGroups {
  Group ring, ulysses, tensor;
  Group sequence;  // ring x ulysses x tensor: all who share this rank's microbatches in its stage
  Group expert;

  SequenceDegrees degrees() const {
    return {.ring = ring.size(), .ulysses = ulysses.size(), .tensor = tensor.size()};
  }
};

// One microbatch as this rank sees it. Host values; made once a step and microbatch.
class SequenceContext {
 public:
  // Alone: every row of the pack.
  explicit SequenceContext(const TokenPack& pack) : SequenceContext(pack, {}, 0) {}
  // `pack` must outlive the context.
  SequenceContext(const TokenPack& pack, const DecoderGroups& groups, int32_t ring_threshold);
  SequenceContext(SequenceContext&&) = default;
  SequenceContext(const SequenceContext&) = delete;

  // Whether what is cheap to compute again (attention, the product of gate and up) is not kept for
  // the backward. False unless set.
  void set_recomputes_parts(bool recomputes) { recomputes_parts_ = recomputes; }
  bool recomputes_parts() const { return recomputes_parts_; }

  const TokenPack& pack() const { return *pack_; }
  const DecoderGroups& groups() const { return groups_; }
  const SequenceShards& shards() const { return shards_; }

  // Tokens of the pack, in held order: of this rank's rows, and of the rows its tensor group holds
  // together (which is what its column-parallel maps see).
  absl::Span<const int32_t> own_tokens() const { return own_; }
  absl::Span<const int32_t> tensor_tokens() const { return tensor_; }
  absl::Span<const int64_t> tensor_counts() const { return tensor_counts_; }

  int64_t num_rows() const { return static_cast<int64_t>(own_.size()); }
  // Index of this rank in the sequence group.
  int32_t index() const { return index_; }

  // [axes, tensor_tokens] of the pack's positions, axis by axis.
  std::vector<float> TensorPositions(int64_t num_axes) const;
  // [tensor_tokens] of the pack's.
  std::vector<int32_t> TensorIds() const;
  std::vector<int32_t> TensorTargets() const;
  // How many of this rank's rows lie before each lane's end: [L + 1]; cu_lanes of the pack, or of
  // one lane if it has none. And the lanes' whole lengths [L].
  std::vector<int32_t> OwnLanes() const;
  std::vector<int64_t> LaneLengths() const;

 private:
  const TokenPack* pack_;
  DecoderGroups groups_;
  SequenceShards shards_;
  int32_t index_ = 0;
  bool recomputes_parts_ = false;
  absl::Span<const int32_t> own_, tensor_;
  std::vector<int64_t> tensor_counts_;
};

}  // namespace omni::parallel
