// Rows from the ranks that hold some of them to all, and sums of rows back: the two exchanges
// between a tensor-parallel layer and its neighbours (Korthikanti et al. 2022, arXiv 2205.05198).
//
//   Var all_TH = AllGatherRows(ctx, normed_LH, tensor_group, counts);      // T = sum of counts
//   Var part_TH = Linear(ctx, Linear(ctx, all_TH, columns_of_w1), rows_of_w2);
//   Var sum_LH = ReduceScatterRows(ctx, part_TH, tensor_group, counts);    // L = counts[rank]
//
// Each is the other's backward, so gradients too are sums over the group. To be called by all ranks
// of the group in the same order, also by those with no rows; what is recorded must not depend on
// how many there are. `counts` [size]: rows of each rank, any of them may be 0. A group of one
// gives back its input and records nothing.
//
// Per rank, T - L rows are sent and received in either direction. bf16 is summed in fp32 and
// rounded once, in rank order (runtime/comm/communicator.h).
#pragma once

#include "absl/types/span.h"
#include "parallel/group.h"
#include "runtime/ops/tape.h"

namespace omni::parallel {

// x [counts[rank], ...] -> [T, ...], rank after rank.
Var AllGatherRows(ExecContext& ctx, const Var& x, const Group& group,
                  absl::Span<const int64_t> counts);

// partial [T, ...] -> [counts[rank], ...]: this rank's rows of the sum over the group.
Var ReduceScatterRows(ExecContext& ctx, const Var& partial, const Group& group,
                      absl::Span<const int64_t> counts);

}  // namespace omni::parallel
