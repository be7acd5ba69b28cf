// Arguments of the optimizer's kernels. Views are dense; all but `value` have the dtype of the
// master weights (fp32, or fp64 for an fp64 model), which is also the key of the lookup.
#pragma once

#include "runtime/tensor/view.h"

namespace omni {

// One AdamW step (Loshchilov & Hutter 2019, arXiv 1711.05101) over a flat range:
//   m = b1 m + (1 - b1) g      v = b2 v + (1 - b2) g^2
//   w = w (1 - lr wd) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
struct AdamWArgs {
  TensorView weight, grad, first_moment, second_moment;
  double grad_scale;  // of the clipping; multiplies g
  double lr, beta1, beta2, eps, weight_decay;
  double correction1, correction2;  // 1 - beta^t
};

// sum(x^2) -> out[0] (fp64). Added in chunks of fixed size, so the thread count does not matter.
struct SumOfSquaresArgs {
  TensorView x, out;
};

// Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) on one matrix [rows, cols], in
// three launches: Nesterov momentum, orthogonalisation, update.
//   buffer = mu buffer + g      direction = g + mu buffer
struct MuonMomentumArgs {
  TensorView grad, buffer, direction;
  double grad_scale, momentum;
};
// direction <- approximately U V^T of its singular value decomposition, by `steps` iterations of
// X <- a X + (b A + c A^2) X, A = X X^T, (a, b, c) = (3.4445, -4.7750, 2.0315).
struct NewtonSchulzArgs {
  TensorView direction;  // [rows, cols], in place
  int32_t steps;
};
// w = w (1 - lr wd) - lr scale direction
struct MuonApplyArgs {
  TensorView weight, direction;
  double lr, weight_decay, scale;
};

}  // namespace omni
