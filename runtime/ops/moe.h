// Mixture of experts: choosing experts, and rows to them and back. With GroupedLinear between,
//
//   Routing routing = MoeRoute(ctx, WideLinear(ctx, x_TH, router), {.top_k = 2});
//   ExpertOrder order = MoeSort(ctx, routing.experts_TK, num_experts);
//   Var rows_RH = MoePermute(ctx, x_TH, order);                     // R = T top_k
//   ... GroupedLinear(ctx, rows_RH, weight, order.offsets_E1) ...
//   Var y_TH = MoeUnpermute(ctx, rows_RH, routing.weights_TK, order);
//
// Routers work in fp32 (fp64 in fp64) in a model of any dtype. No token is dropped; nothing is
// padded. As in Qwen3-MoE (softmax, then top k) and, with a selection bias, DeepSeek-V3 (arXiv
// 2412.19437, section 2.1.2).
#pragma once

#include "runtime/ops/tape.h"

namespace omni {

struct RouteOptions {
  int32_t top_k = 1;
  bool normalize = true;  // the chosen experts' weights sum to 1
  // [E], in the dtype of the logits: added to the probabilities for the choice alone, not for the
  // weights; no gradient. Empty: none.
  TensorView selection_bias_E = {};
};

struct Routing {
  Var weights_TK;         // of the chosen experts
  Var probs_TE;           // softmax of the logits; for losses (runtime/ops/router_losses.h)
  Var lse_T;              // log sum exp of the logits; likewise
  TensorView experts_TK;  // int32, best first; the lowest number among equals
};

// logits_TE [T, E], fp32 or fp64, top_k <= E. The choice itself has no gradient.
Routing MoeRoute(ExecContext& ctx, const Var& logits_TE, const RouteOptions& options);

// Where each (token, k) pair goes when the pairs are sorted by expert, each expert's in the order
// of its tokens. All int32 on the device.
struct ExpertOrder {
  TensorView offsets_E1;  // [E + 1]: expert e's rows are [offsets[e], offsets[e + 1])
  TensorView tokens_R;    // the token of each row
  TensorView rows_TK;     // the row of each pair
};
// An expert outside [0, num_experts) is the kernel error kBadExpert.
ExpertOrder MoeSort(ExecContext& ctx, const TensorView& experts_TK, int64_t num_experts);

// x_TH [T, H] -> [R, H]: every token once for each of its experts.
Var MoePermute(ExecContext& ctx, const Var& x_TH, const ExpertOrder& order);
// rows_RH [R, H], weights_TK [T, K] (dtype of routers) -> [T, H]: the weighted sum of each token's
// rows.
Var MoeUnpermute(ExecContext& ctx, const Var& rows_RH, const Var& weights_TK,
                 const ExpertOrder& order);

// sigmoid(gate) x, row by row: x_TH [T, H], gate_T1 [T, 1] of the same dtype.
Var SigmoidGate(ExecContext& ctx, const Var& x_TH, const Var& gate_T1);

}  // namespace omni
