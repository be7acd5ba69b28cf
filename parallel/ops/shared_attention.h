// Attention over packs whose rows lie on the ranks of a sequence group, ring x ulysses with ulysses
// fastest (parallel/sequence_shards.h): an all-to-all from rows to heads, a ring over what is then
// left, and back. For the decoder and for towers alike.
//
//   q [L, N, D] -- RowsToHeads --> [T, n, D] -- RingAttention --> the same -- HeadsToRows -->
//   [L, N, D],  T: rows of the ring rank
//
// Ulysses needs heads that divide, a ring sends more bytes. So of a group of s ranks, gcd(s, N) are
// ulysses and the rest is a ring.
#pragma once

#include <vector>

#include "parallel/group.h"
#include "parallel/sequence_shards.h"
#include "runtime/ops/attention.h"

namespace omni::parallel {

struct SequenceGroups {
  Group ring, ulysses;
};

// How the rows of this ring rank lie over its ulysses ranks.
struct UlyssesRows {
  std::vector<int64_t> counts;  // [ulysses]: L of each
  // Both empty where the rows, rank after rank, are in the order of shards.tokens[ring rank]. Else
  // [T] int32 on the device: in that order row i is row order[i] of those, and inverse[order[i]] is
  // i. So a tower has its rows in another order than its segments (parts of several samples on each
  // rank; windows): one permutation for its frames, another for its windows.
  TensorView order, inverse;
};

// q [L, N, D], k and v [L, K, D] -> [L, N, D]; L = counts[ulysses rank]. Which document a row
// belongs to, and on which ring rank it lies, is in `shards`; any segments will do without
// options.causal (ShardSequence, ShardsOfPieces). Windows of a tower are documents; with a ring of
// one, ShardSequence(cu_windows, {}, 0). The size of ulysses divides N, and K or K divides it.
//
// To be called by all ranks of both groups in the same order, also by those with no rows. Nothing
// of `shards` and `rows` is kept but the two views. With both groups of one: VarlenAttention.
Var SharedAttention(ExecContext& ctx, const Var& q_LND, const Var& k_LKD, const Var& v_LKD,
                    const SequenceShards& shards, const SequenceGroups& groups,
                    const UlyssesRows& rows, const AttentionOptions& options);

// With the rows where `shards` says, [L] all those of the tensor ranks: shards.UlyssesCounts.
Var SharedAttention(ExecContext& ctx, const Var& q_LND, const Var& k_LKD, const Var& v_LKD,
                    const SequenceShards& shards, const SequenceGroups& groups,
                    const AttentionOptions& options);

}  // namespace omni::parallel
