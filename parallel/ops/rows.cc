#include "parallel/ops/rows.h"

#include <vector>

#include "parallel/ops/row_exchange.h"
#include "runtime/ops/op_helpers.h"

namespace omni::parallel {
namespace {

using RowsExchanger = TensorView (*)(ExecContext&, const TensorView&, const Group&,
                                     absl::Span<const int64_t>);

// One exchange forward, its transpose backward.
Var Exchanged(ExecContext& ctx, const char* name, const Var& x, const Group& group,
              absl::Span<const int64_t> counts, RowsExchanger forward, RowsExchanger backward) {
  if (group.is_alone()) return x;
  const TensorView y = forward(ctx, x.value, group, counts);
  const Var inputs[] = {x};
  if (!Recording(ctx, inputs, false)) return {.value = y};
  const auto run_backward =
      [group, backward,
       kept = std::vector<int64_t>(counts.begin(), counts.end())](Tape::BackwardContext& back) {
        back.set_grad_input(0, backward(back.ctx, back.grad_output(0), group, kept));
      };
  return ctx.tape->Record(name, inputs, {&y, 1}, false, run_backward)[0];
}

}  // namespace

Var AllGatherRows(ExecContext& ctx, const Var& x, const Group& group,
                  absl::Span<const int64_t> counts) {
  return Exchanged(ctx, "all_gather_rows", x, group, counts, GatherAll, ReduceScatter);
}

Var ReduceScatterRows(ExecContext& ctx, const Var& partial, const Group& group,
                      absl::Span<const int64_t> counts) {
  return Exchanged(ctx, "reduce_scatter_rows", partial, group, counts, ReduceScatter, GatherAll);
}

}  // namespace omni::parallel
