#include "runtime/ops/moe.h"

#include "runtime/device/args/moe.h"
#include "runtime/device/args/rows.h"
#include "runtime/ops/op_helpers.h"

namespace omni {

Routing MoeRoute(ExecContext& ctx, const Var& logits_TE, const RouteOptions& options) {
  const TensorView& logits = logits_TE.value;
  CheckRank(logits, 2);
  const DType dtype = logits.dtype;
  OMNI_CHECK(dtype == AccumulationType(dtype));
  const int64_t tokens = logits.size(0), num_experts = logits.size(1), top_k = options.top_k;
  OMNI_CHECK_GE(top_k, 1);
  OMNI_CHECK_LE(top_k, num_experts);
  if (!options.selection_bias_E.empty()) {
    OMNI_CHECK(options.selection_bias_E.dtype == dtype);
    OMNI_CHECK_EQ(options.selection_bias_E.num_elements(), num_experts);
  }
  MoeRouteForwardArgs args;
  args.logits_TE = logits;
  args.selection_bias_E = options.selection_bias_E;
  args.probs_TE = ctx.New(dtype, {tokens, num_experts});
  args.lse_T = ctx.New(dtype, {tokens});
  args.experts_TK = ctx.New(DType::kInt32, {tokens, top_k});
  args.weights_TK = ctx.New(dtype, {tokens, top_k});
  args.normalize = options.normalize;
  Launch(ctx, OpId::kMoeRouteForward, dtype, args);
  Routing routing{.weights_TK = {.value = args.weights_TK},
                  .probs_TE = {.value = args.probs_TE},
                  .lse_T = {.value = args.lse_T},
                  .experts_TK = args.experts_TK};
  const Var inputs[] = {logits_TE};
  if (!Recording(ctx, inputs, false)) return routing;
  for (const TensorView& view : {args.probs_TE, args.experts_TK, args.weights_TK})
    ctx.tape->Save("moe_route", NeededBy::kBackwardInput, view);
  const auto backward = [args, dtype](Tape::BackwardContext& back) {
    Launch(back.ctx, OpId::kMoeRouteBackward, dtype,
           MoeRouteBackwardArgs{.probs_TE = args.probs_TE,
                                .experts_TK = args.experts_TK,
                                .weights_TK = args.weights_TK,
                                .grad_weights_TK = back.grad_output(0),
                                .grad_probs_TE = back.grad_output(1),
                                .grad_lse_T = back.grad_output(2),
                                .grad_logits_TE = back.new_grad_input(0),
                                .normalize = args.normalize});
  };
  const TensorView outputs[] = {args.weights_TK, args.probs_TE, args.lse_T};
  const std::vector<Var> vars = ctx.tape->Record("moe_route", inputs, outputs, false, backward);
  routing.weights_TK = vars[0];
  routing.probs_TE = vars[1];
  routing.lse_T = vars[2];
  return routing;
}

ExpertOrder MoeSort(ExecContext& ctx, const TensorView& experts_TK, int64_t num_experts) {
  CheckRank(experts_TK, 2);
  OMNI_CHECK(experts_TK.dtype == DType::kInt32);
  ExpertOrder order;
  order.offsets_E1 = ctx.New(DType::kInt32, {num_experts + 1});
  order.tokens_R = ctx.New(DType::kInt32, {experts_TK.num_elements()});
  order.rows_TK = ctx.New(DType::kInt32, experts_TK.shape());
  Launch(ctx, OpId::kMoeSort, DType::kInt32,
         MoeSortArgs{.experts_TK = experts_TK,
                     .offsets_E1 = order.offsets_E1,
                     .tokens_R = order.tokens_R,
                     .rows_TK = order.rows_TK});
  return order;
}

Var MoePermute(ExecContext& ctx, const Var& x_TH, const ExpertOrder& order) {
  const TensorView& x = x_TH.value;
  CheckRank(x, 2);
  OMNI_CHECK_EQ(order.rows_TK.size(0), x.size(0));
  GatherRowsArgs args;
  args.x_TH = x;
  args.rows_R = order.tokens_R;
  args.y_RH = ctx.New(x.dtype, {order.tokens_R.size(0), x.size(1)});
  Launch(ctx, OpId::kGatherRows, x.dtype, args);
  const Var inputs[] = {x_TH};
  if (!Recording(ctx, inputs, false)) return {.value = args.y_RH};
  ctx.tape->Save("moe_permute_rows", NeededBy::kBackwardInput, order.rows_TK);
  const auto backward = [rows = order.rows_TK, dtype = x.dtype](Tape::BackwardContext& back) {
    Launch(back.ctx, OpId::kMoeCombineForward, dtype,
           MoeCombineForwardArgs{.x_RH = back.grad_output(0),
                                 .rows_TK = rows,
                                 .weights_TK = {},
                                 .y_TH = back.new_grad_input(0)});
  };
  return ctx.tape->Record("moe_permute", inputs, {&args.y_RH, 1}, false, backward)[0];
}

Var MoeUnpermute(ExecContext& ctx, const Var& rows_RH, const Var& weights_TK,
                 const ExpertOrder& order) {
  const TensorView &x = rows_RH.value, &weights = weights_TK.value;
  CheckRank(x, 2);
  OMNI_CHECK_EQ(x.size(0), order.rows_TK.num_elements());
  OMNI_CHECK(weights.shape() == order.rows_TK.shape());
  OMNI_CHECK(weights.dtype == AccumulationType(x.dtype));
  MoeCombineForwardArgs args;
  args.x_RH = x;
  args.rows_TK = order.rows_TK;
  args.weights_TK = weights;
  args.y_TH = ctx.New(x.dtype, {weights.size(0), x.size(1)});
  Launch(ctx, OpId::kMoeCombineForward, x.dtype, args);
  const Var inputs[] = {rows_RH, weights_TK};
  if (!Recording(ctx, inputs, false)) return {.value = args.y_TH};
  ctx.tape->Save("moe_unpermute_rows", NeededBy::kBackwardInput, order.rows_TK);
  if (rows_RH.needs_grad())
    ctx.tape->Save("moe_unpermute_weights", NeededBy::kBackwardInput, weights);
  if (weights_TK.needs_grad()) ctx.tape->Save("moe_unpermute_input", NeededBy::kBackwardInput, x);
  const auto backward = [args](Tape::BackwardContext& back) {
    MoeCombineBackwardArgs grads{.x_RH = args.x_RH,
                                 .rows_TK = args.rows_TK,
                                 .weights_TK = args.weights_TK,
                                 .grad_y_TH = back.grad_output(0),
                                 .grad_x_RH = {},
                                 .grad_weights_TK = {}};
    if (back.needs_grad_input(0)) grads.grad_x_RH = back.new_grad_input(0);
    if (back.needs_grad_input(1)) grads.grad_weights_TK = back.new_grad_input(1);
    Launch(back.ctx, OpId::kMoeCombineBackward, args.x_RH.dtype, grads);
  };
  return ctx.tape->Record("moe_unpermute", inputs, {&args.y_TH, 1}, false, backward)[0];
}

Var SigmoidGate(ExecContext& ctx, const Var& x_TH, const Var& gate_T1) {
  const TensorView &x = x_TH.value, &gate = gate_T1.value;
  CheckRank(x, 2);
  CheckRank(gate, 2);
  OMNI_CHECK_EQ(gate.size(0), x.size(0));
  OMNI_CHECK_EQ(gate.size(1), 1);
  OMNI_CHECK(gate.dtype == x.dtype);
  SigmoidGateForwardArgs args;
  args.x_TH = x;
  args.gate_T1 = gate;
  args.y_TH = ctx.New(x.dtype, x.shape());
  Launch(ctx, OpId::kSigmoidGateForward, x.dtype, args);
  const Var inputs[] = {x_TH, gate_T1};
  if (!Recording(ctx, inputs, false)) return {.value = args.y_TH};
  ctx.tape->Save("sigmoid_gate_gate", NeededBy::kBackwardInput, gate);
  if (gate_T1.needs_grad()) ctx.tape->Save("sigmoid_gate_input", NeededBy::kBackwardInput, x);
  const auto backward = [args](Tape::BackwardContext& back) {
    SigmoidGateBackwardArgs grads{.x_TH = args.x_TH,
                                  .gate_T1 = args.gate_T1,
                                  .grad_y_TH = back.grad_output(0),
                                  .grad_x_TH = {},
                                  .grad_gate_T1 = {}};
    if (back.needs_grad_input(0)) grads.grad_x_TH = back.new_grad_input(0);
    if (back.needs_grad_input(1)) grads.grad_gate_T1 = back.new_grad_input(1);
    Launch(back.ctx, OpId::kSigmoidGateBackward, args.x_TH.dtype, grads);
  };
  return ctx.tape->Record("sigmoid_gate", inputs, {&args.y_TH, 1}, false, backward)[0];
}

}  // namespace omni
