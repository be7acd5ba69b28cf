// Embedding, head and cross-entropy with the vocabulary cut over a group (Shoeybi et al. 2019,
// arXiv 1909.08053, section 3). The shards are consecutive ranges of rows in rank order; their
// lengths may differ and be 0.
//
// Ids and targets are those of the group's rows, rank after rank, the same on all ranks: the host
// knows them, so what nobody needs is neither sent nor computed. To be called by all ranks of the
// group in the same order. `counts` [size]: rows of each rank. A group of one runs
// runtime/ops/embedding.h and cross_entropy.h as they are.
//
// All communication is in the forward pass and in BackwardInput, none in WeightGrad.
#pragma once

#include "absl/types/span.h"
#include "parallel/group.h"
#include "runtime/ops/cross_entropy.h"
#include "runtime/ops/tape.h"

namespace omni::parallel {

// Which rows of the table a rank's weight holds: [begin, begin + the weight's rows) of `total`.
struct VocabRange {
  int64_t begin = 0, total = 0;
};

// ids: T = sum of counts, each in [0, total) -> this rank's rows [counts[rank], H]. Sends T -
// counts[rank] rows per rank (a reduce-scatter), and as much backward.
Var VocabEmbedding(ExecContext& ctx, absl::Span<const int32_t> token_ids, const Weight& table_VH,
                   const VocabRange& range, const Group& group, absl::Span<const int64_t> counts);

// hidden [counts[rank], H]: this rank's rows. targets: of all T rows, each in [0, total) or
// negative where there is no loss. As LinearCrossEntropy for this rank's rows: losses_T and
// argmax_T [counts [rank]], and `loss` is their sum times `scale`, so that summed over the group
// every row counts once. Its gradient must be the same on all ranks of the group: what a rank's
// shard contributes to others' losses is multiplied with its own.
//
// Rows without a target are not sent. Logits exist for a chunk of rows at a time: [rows, this
// rank's part of the vocabulary], and per chunk a few numbers a row and rank are all-gathered.
// Gradients are taken in the same pass, as in LinearCrossEntropy; the gradient of `hidden` is
// reduce-scattered in the forward pass.
CrossEntropyResult VocabCrossEntropy(ExecContext& ctx, const Var& hidden_LH, const Weight& head_VH,
                                     const VocabRange& range, absl::Span<const int32_t> targets,
                                     double scale, const Group& group,
                                     absl::Span<const int64_t> counts);

}  // namespace omni::parallel
