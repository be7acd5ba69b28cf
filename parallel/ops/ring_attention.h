// Attention over packs whose tokens lie on the ranks of a ring (Liu et al. 2023, arXiv 2310.01889):
// queries stay, keys and values travel.
//
// Forward, r ranks: at step s a rank has the keys and values of rank - s, passes them on to rank +
// 1 while it computes, and merges what its queries see of them into what they have seen
// (log-sum-exp weights; fp32, fp64 in fp64). Backward, from the final result, they make the same
// trip again, and their gradients follow one step behind, each rank adding its part (in fp32, fp64
// in fp64), so that the last hop brings them home.
//
//   sent per rank, with L rows here: forward (r-1) 2 L K D elements; backward as many again, and
//   2 r L K D of gradients, in fp32
//
// What a rank may not see at a step (the mask, other documents) costs no compute, but the exchange
// takes place. Sums are in the order of the ring, so results are the same every time.
#pragma once

#include "parallel/group.h"
#include "parallel/sequence_shards.h"
#include "runtime/ops/attention.h"

namespace omni::parallel {

// q [T, N, D], k and v [T, K, D] of the tokens that this ring rank holds, shards.tokens[rank], in
// that order; rows may be strided. N is a multiple of K. -> [T, N, D], dense.
//
// Documents see themselves only: all of it without options.causal, what is not later with it (then
// `shards` must be a zigzag as ShardSequence makes it, or contiguous parts). To be called by all
// ranks of the ring in the same order, also by those with no tokens. `shards` is not kept.
// A ring of one is VarlenAttention on what it holds; else there is no window.
Var RingAttention(ExecContext& ctx, const Var& q_TND, const Var& k_TKD, const Var& v_TKD,
                  const SequenceShards& shards, const Group& ring, const AttentionOptions& options);

}  // namespace omni::parallel
