// Rows to the ranks that hold their experts, and back (expert parallelism; Lepikhin et al. 2020,
// arXiv 2006.16668, without capacity: no row is dropped). Between MoePermute and MoeUnpermute,
//
//   ExpertOrder order = MoeSort(ctx, routing.experts_TK, num_experts);        // all experts
//   ExpertExchange exchange = ExchangeExperts(ctx, order, expert_group);
//   Var rows_RH = DispatchRows(ctx, MoePermute(ctx, x_TH, order), exchange);
//   ... GroupedLinear(ctx, rows_RH, weight_of_local_experts, exchange.offsets_E1) ...
//   Var back_RH = CombineRows(ctx, rows_RH, exchange);
//   Var y_TH = MoeUnpermute(ctx, back_RH, routing.weights_TK, order);
//
// Rank r of the group holds experts [r E / size, (r + 1) E / size); the size divides E. To be
// called by all ranks of the group in the same order, also by those with no rows. A group of one
// exchanges nothing and records nothing.
//
// Per rank and layer, with R rows here: one all-gather of E + 1 integers, for which the host waits,
// and two all-to-alls of R rows forward, two backward.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/group.h"
#include "runtime/ops/moe.h"

namespace omni::parallel {

// Good for as long as the tape (or arena) it was made on.
struct ExpertExchange {
  Group group;
  TensorView offsets_E1;  // [E / size + 1] int32 on the device: the rows of each local expert
  int64_t num_rows = 0;   // received, = offsets_E1's last; 0 after a failure of the communicator

  // How the exchange does it.
  std::vector<int64_t> send_counts, recv_counts;  // rows to and from each rank
  int64_t num_sorted_rows = 0;                    // of this rank's tokens
  TensorView by_expert_R, by_source_R;            // int32: row i by expert is received row
                                                  // by_expert[i]; the inverse
  bool failed = false;                            // counts could not be exchanged: nothing will be
};

// Waits for the stream. A communicator that has failed gives an exchange without rows, on which
// DispatchRows and CombineRows move nothing (CombineRows then gives zeros).
ExpertExchange ExchangeExperts(ExecContext& ctx, const ExpertOrder& order, const Group& group);

// rows [R, H], sorted by expert as `order` says -> [num_rows, H], grouped by local expert; an
// expert's rows by source rank, and each source's in the order of its tokens.
Var DispatchRows(ExecContext& ctx, const Var& rows_RH, const ExpertExchange& exchange);

// The inverse: [num_rows, H] -> [R, H], every row to where it came from.
Var CombineRows(ExecContext& ctx, const Var& rows_RH, const ExpertExchange& exchange);

}  // namespace omni::parallel
