// Attention of a tower within segments of its rows (frames, windows, chunks), wherever the rows
// are: all on this rank, or each item's split over a sequence group (long-short sequence
// parallelism; Ulysses: Jacobs et al. 2023, arXiv 2309.14509).
//
// Everything else in a tower is row by row, so a tower is written once, on the rows it has. For
// attention, split rows become heads (all rows of some heads, an all-to-all), are put into the
// order of the segments, attend, and go back the same way. Where there are more ranks than heads
// divide among, several such groups form a ring, each with a stretch of every item: keys and values
// travel.
//
// Shape letters: P rows on this rank   H hidden
#pragma once

#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "parallel/encoder_shards.h"
#include "parallel/sequence_shards.h"
#include "runtime/ops/rope.h"

namespace omni::encoders {

// Which rows of a pack each rank of a sequence group holds, as ranges of the rows of all items end
// to end; a rank's ranges in the order of the items.
struct SplitRows {
  parallel::SampleShard shard;
  std::vector<std::vector<parallel::UnitRange>> of_rank;  // [num_shards][items]

  int64_t NumRows(int32_t rank) const;
};
SplitRows SplitItems(absl::Span<const parallel::MediaItem> items, const parallel::SampleUnit& unit,
                     const parallel::SampleShard& shard);

// A cheap value: it may be kept for the backward.
class SegmentAttention {
 public:
  // All rows are on this rank, in the order of the segments.
  explicit SegmentAttention(absl::Span<const int32_t> cu_seqlens);
  // They are split. order: the row of all items end to end that stands at each place of the order
  // in which segments are consecutive; empty: they already are.
  SegmentAttention(const SplitRows& rows, absl::Span<const int32_t> cu_seqlens,
                   absl::Span<const int32_t> order);

  struct Input {
    Var q_PH, k_PH, v_PH;
    int32_t num_heads = 0;  // a multiple of the ulysses ranks
    const RopeTable* rope = nullptr;
  };
  // -> [P, H]. With `recompute` only q, k and v are kept.
  Var Attend(ExecContext& ctx, const Input& input, bool recompute = false) const;

 private:
  struct Plan {
    parallel::SampleShard shard;
    parallel::SequenceShards segments;  // as documents
    std::vector<int64_t> row_counts;    // of the ulysses ranks
    // parallel::UlyssesRows
    std::vector<int32_t> order, inverse;
  };
  Var Mix(ExecContext& ctx, const Input& input) const;

  std::shared_ptr<const Plan> plan_;
};

}  // namespace omni::encoders
