// Exchanges of whole rows between the ranks of a group, on views, without a tape: what the ops of
// this folder are made of. Private to it.
//
// Rows are along dim 0, of any trailing shape; inputs may be strided (they are then copied).
// Results are new tensors of `ctx`, and `ctx.stream` waits for them. The group has at least two
// ranks.
#pragma once

#include <cstdint>
#include <numeric>

#include "absl/types/span.h"
#include "parallel/group.h"
#include "runtime/device/exec_context.h"

namespace omni::parallel {

inline int64_t SumOf(absl::Span<const int64_t> counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

// `view` itself if it is dense, else a dense copy.
TensorView MakeDense(ExecContext& ctx, const TensorView& view);

// [counts[rank], ...] -> [sum, ...].
TensorView GatherAll(ExecContext& ctx, const TensorView& rows, const Group& group,
                     absl::Span<const int64_t> counts);
// [sum, ...] -> [counts[rank], ...]: summed over the group.
TensorView ReduceScatter(ExecContext& ctx, const TensorView& rows, const Group& group,
                         absl::Span<const int64_t> counts);
// [sum of send_counts, ...] -> [sum of recv_counts, ...], in rank order.
TensorView AllToAll(ExecContext& ctx, const TensorView& rows, const Group& group,
                    absl::Span<const int64_t> send_counts, absl::Span<const int64_t> recv_counts);

}  // namespace omni::parallel
