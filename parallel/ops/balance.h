// The balance loss of routers (runtime/ops/router_losses.h) over sequences whose tokens lie on
// several ranks.
//
// f_e comes from the pairs of the whole set, summed over the group; P_e is linear in the tokens, so
// each rank's share of the loss is what its own tokens add to P. Summed over the group the shares
// are the loss, and each rank's gradients are those of its own share: exact, whatever others do.
// The z-loss is a sum over tokens and needs nothing of this: RouterZLoss of local tokens is a
// share.
#pragma once

#include "absl/types/span.h"
#include "parallel/group.h"
#include "runtime/ops/router_losses.h"

namespace omni::parallel {

// As BalanceLoss, over the tokens this rank holds. cu_local [S + 1] on the host: this rank's tokens
// of each sequence, possibly none, the sequences in the same order on all ranks. lengths [S]: the
// tokens of each sequence on all ranks together. When pooled, the set is all tokens of all ranks.
//
// Per call one all-reduce of the pairs: layers (1 when pooled) x S x E numbers. To be called by all
// ranks of the group in the same order, also by those with no tokens. Nothing is exchanged
// backward. A group of one is BalanceLoss.
Var BalanceLoss(ExecContext& ctx, absl::Span<const Routing> layers,
                absl::Span<const int32_t> cu_local, absl::Span<const int64_t> lengths,
                BalanceSets sets, double scale, const Group& group);

}  // namespace omni::parallel
