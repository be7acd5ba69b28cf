#include "parallel/sequence_context.h"

#include <algorithm>

namespace omni::parallel {
namespace {

std::vector<int32_t> Take(const std::vector<int32_t>& all, absl::Span<const int32_t> tokens) {
  std::vector<int32_t> taken;
  taken.reserve(tokens.size());
  for (const int32_t token : tokens) taken.push_back(all[token]);
  return taken;
}

std::vector<int32_t> Lanes(const TokenPack& pack) {
  if (!pack.cu_lanes.empty()) return pack.cu_lanes;
  return {0, static_cast<int32_t>(pack.num_tokens())};
}

}  // namespace

SequenceContext::SequenceContext(const TokenPack& pack, const DecoderGroups& groups,
                                 int32_t ring_threshold)
    : pack_(&pack),
      groups_(groups),
      shards_(ShardSequence(pack.cu_seqlens, groups.degrees(), ring_threshold)) {
  const int32_t ring = groups.ring.rank(), ulysses = groups.ulysses.rank();
  const int32_t tensor = groups.tensor.size();
  index_ = (ring * groups.ulysses.size() + ulysses) * tensor + groups.tensor.rank();
  own_ = shards_.TokensOf(index_);
  tensor_counts_ = shards_.TensorCounts(ring, ulysses);
  int64_t count = 0;
  for (const int64_t rows : tensor_counts_) count += rows;
  const int64_t first = shards_.PartRows(ring, ulysses * tensor).first;
  tensor_ = absl::MakeConstSpan(shards_.tokens[ring]).subspan(first, count);
}

std::vector<float> SequenceContext::TensorPositions(int64_t num_axes) const {
  std::vector<float> positions;
  positions.reserve(num_axes * tensor_.size());
  for (int64_t axis = 0; axis < num_axes; ++axis) {
    const float* row = pack_->positions.data() + axis * pack_->num_tokens();
    for (const int32_t token : tensor_) positions.push_back(row[token]);
  }
  return positions;
}

std::vector<int32_t> SequenceContext::TensorIds() const { return Take(pack_->token_ids, tensor_); }

std::vector<int32_t> SequenceContext::TensorTargets() const {
  return Take(pack_->targets, tensor_);
}

std::vector<int32_t> SequenceContext::OwnLanes() const {
  std::vector<int32_t> cu;
  for (const int32_t end : Lanes(*pack_)) {
    // Held order is the pack's order, so a lane's rows are together.
    cu.push_back(
        static_cast<int32_t>(std::lower_bound(own_.begin(), own_.end(), end) - own_.begin()));
  }
  return cu;
}

std::vector<int64_t> SequenceContext::LaneLengths() const {
  const std::vector<int32_t> cu = Lanes(*pack_);
  std::vector<int64_t> lengths;
  for (size_t lane = 0; lane + 1 < cu.size(); ++lane) lengths.push_back(cu[lane + 1] - cu[lane]);
  return lengths;
}

}  // namespace omni::parallel
