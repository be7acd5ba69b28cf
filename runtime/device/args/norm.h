// Arguments of kRmsNorm* and kLayerNorm* (runtime/ops/norm.h). Matrices are [T, H] with strided
// rows, or [T, N, D] normalised over D.
#pragma once

#include "runtime/tensor/view.h"

namespace omni {

struct NormForwardArgs {
  TensorView x_TH;
  TensorView branch_TH;  // empty: none, and then there is no sum
  TensorView weight_H;
  TensorView bias_H;  // LayerNorm only; empty: none
  TensorView sum_TH;  // x + branch
  TensorView y_TH;    // norm(x), or norm(sum)
  TensorView mean_T;  // LayerNorm only; fp32 (fp64 in fp64); empty: not wanted
  TensorView rstd_T;  // 1 / sqrt(..); likewise
  double eps = 0.0;
};

struct NormBackwardArgs {
  TensorView x_TH;  // what was normalised
  TensorView weight_H, mean_T, rstd_T;
  TensorView grad_y_TH;
  TensorView grad_sum_TH;    // added to grad_x; empty: none
  TensorView grad_x_TH;      // overwritten; empty: not wanted
  TensorView grad_weight_H;  // fp32 (fp64 in fp64), +=; empty: not wanted
  TensorView grad_bias_H;    // LayerNorm only, likewise
};

}  // namespace omni
