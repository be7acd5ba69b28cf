#include "parallel/ops/balance.h"

namespace omni::parallel {

Var BalanceLoss(ExecContext& ctx, absl::Span<const Routing> layers,
                absl::Span<const int32_t> cu_local, absl::Span<const int64_t> lengths,
                BalanceSets sets, double scale, const Group& group) {
  if (group.is_alone()) return omni::BalanceLoss(ctx, layers, cu_local, sets, scale);
  const SharedSequences shared{
      .lengths = lengths, .sum_pairs = [&group](ExecContext& summing, const TensorView& pairs) {
        group.comm->AllReduce(pairs, ReduceOp::kSum)->Wait(summing.stream);
      }};
  return omni::BalanceLoss(ctx, layers, cu_local, sets, scale, &shared);
}

}  // namespace omni::parallel
