// Arguments of the mixture-of-experts kernels (runtime/ops/moe.h, runtime/ops/router_losses.h).
// T tokens, E experts, K chosen by each token, R = T K pairs (t, k) in the order of their experts.
// Index lists are int32 on the device. Routers compute in fp32 (fp64 in fp64) whatever the dtype of
// the rows; their tensors are dense.
#pragma once

#include "runtime/tensor/view.h"

namespace omni {

inline constexpr int32_t kBadExpert = 1;

struct MoeRouteForwardArgs {
  TensorView logits_TE;
  TensorView selection_bias_E;  // added to the probabilities, for the choice alone; empty: none
  TensorView probs_TE;          // softmax
  TensorView lse_T;             // log sum exp of the logits
  TensorView experts_TK;        // best first; the lowest number among equals
  TensorView weights_TK;        // probabilities of the chosen, divided by their sum if asked for
  int32_t normalize = 0;
};

struct MoeRouteBackwardArgs {
  TensorView probs_TE, experts_TK, weights_TK;
  TensorView grad_weights_TK, grad_probs_TE, grad_lse_T;  // empty: zero
  TensorView grad_logits_TE;                              // overwritten
  int32_t normalize = 0;
};

// A stable counting sort of the pairs by expert. An expert out of range is kBadExpert.
struct MoeSortArgs {
  TensorView experts_TK;
  TensorView offsets_E1;  // [E + 1]: pairs of expert e are rows [offsets[e], offsets[e + 1])
  TensorView tokens_R;    // the token of each row
  TensorView rows_TK;     // the row of each pair
};

// y[t] = sum over k of weights[t][k] x[rows[t][k]], k ascending.
struct MoeCombineForwardArgs {
  TensorView x_RH, rows_TK;
  TensorView weights_TK;  // fp32 (fp64 in fp64); empty: ones
  TensorView y_TH;
};

struct MoeCombineBackwardArgs {
  TensorView x_RH, rows_TK, weights_TK;
  TensorView grad_y_TH;
  TensorView grad_x_RH;        // overwritten: rows_TK names every row once; empty: not wanted
  TensorView grad_weights_TK;  // overwritten; empty: not wanted
};

// y[t] = sigmoid(gate[t]) x[t].
struct SigmoidGateForwardArgs {
  TensorView x_TH, gate_T1;
  TensorView y_TH;
};

struct SigmoidGateBackwardArgs {
  TensorView x_TH, gate_T1, grad_y_TH;
  TensorView grad_x_TH, grad_gate_T1;  // overwritten; empty: not wanted
};

// For each of S runs of tokens and E experts: pairs, and the sum of probabilities.
struct BalanceStatisticsArgs {
  TensorView probs_TE, experts_TK;
  TensorView cu_S1;
  TensorView pairs_SE, prob_sums_SE;  // dtype of probs
  int32_t add = 0;                    // to what is there
};

// From statistics of all `num_layers` layers they are to cover,
//   loss (+)= scale sum over s of E sum over e of (pairs / n) (probs / n),  n = num_layers
//   tokens(s)
struct BalanceLossForwardArgs {
  TensorView pairs_SE, prob_sums_SE;
  TensorView tokens_S;  // int32; a run without tokens adds nothing
  TensorView loss;      // [1]
  int32_t add_loss = 0;
  int32_t num_layers = 1;
  double scale = 1.0;
};

struct BalanceLossBackwardArgs {
  TensorView grad_loss;  // [1]
  TensorView pairs_SE, tokens_S;
  TensorView cu_S1;          // the rows of each run; on several ranks, fewer than its tokens
  TensorView grad_probs_TE;  // overwritten
  int32_t num_layers = 1;
  double scale = 1.0;
};

// loss (+)= scale sum over t of lse[t]^2.
struct ZLossForwardArgs {
  TensorView lse_T, loss;
  int32_t add_loss = 0;
  double scale = 1.0;
};

struct ZLossBackwardArgs {
  TensorView grad_loss, lse_T;
  TensorView grad_lse_T;  // overwritten
  double scale = 1.0;
};

}  // namespace omni
