#include "parallel/ops/shared_attention.h"

#include "parallel/ops/ring_attention.h"
#include "parallel/ops/ulysses.h"
#include "runtime/ops/op_helpers.h"
#include "runtime/ops/rows.h"

namespace omni::parallel {
namespace {

Var InOrder(ExecContext& ctx, const Var& x_TND, const TensorView& order) {
  if (order.empty()) return x_TND;
  const int64_t rows = x_TND.value.size(0), heads = x_TND.value.size(1), dim = x_TND.value.size(2);
  OMNI_CHECK_EQ(order.num_elements(), rows);
  const Var x_TH = Reshape(ctx, x_TND, {rows, heads * dim});
  return Reshape(ctx, GatherRows(ctx, x_TH, order), {rows, heads, dim});
}

}  // namespace

Var SharedAttention(ExecContext& ctx, const Var& q_LND, const Var& k_LKD, const Var& v_LKD,
                    const SequenceShards& shards, const SequenceGroups& groups,
                    const UlyssesRows& rows, const AttentionOptions& options) {
  OMNI_CHECK_EQ(static_cast<int32_t>(rows.counts.size()), groups.ulysses.size());
  OMNI_CHECK_EQ(q_LND.value.size(0), rows.counts[groups.ulysses.rank()]);
  OMNI_CHECK_EQ(rows.order.empty(), rows.inverse.empty());
  const auto to_heads = [&](const Var& x_LND) {
    return InOrder(ctx, RowsToHeads(ctx, x_LND, groups.ulysses, rows.counts), rows.order);
  };
  const Var q_TND = to_heads(q_LND), k_TKD = to_heads(k_LKD), v_TKD = to_heads(v_LKD);
  const Var mixed_TND = RingAttention(ctx, q_TND, k_TKD, v_TKD, shards, groups.ring, options);
  return HeadsToRows(ctx, InOrder(ctx, mixed_TND, rows.inverse), groups.ulysses, rows.counts);
}

Var SharedAttention(ExecContext& ctx, const Var& q_LND, const Var& k_LKD, const Var& v_LKD,
                    const SequenceShards& shards, const SequenceGroups& groups,
                    const AttentionOptions& options) {
  OMNI_CHECK_EQ(shards.degrees.ulysses, groups.ulysses.size());
  return SharedAttention(ctx, q_LND, k_LKD, v_LKD, shards, groups,
                         UlyssesRows{.counts = shards.UlyssesCounts(groups.ring.rank())}, options);
}

}  // namespace omni::parallel
