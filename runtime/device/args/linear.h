// Arguments of kLinearForward, kLinearBackwardInput and kLinearBackwardWeight
// (runtime/ops/linear.h). The last dim of every matrix is contiguous; rows may be strided. In bf16,
// y and its gradient may be fp32 (a router's logits).
#pragma once

#include "runtime/tensor/view.h"

namespace omni {

struct LinearForwardArgs {
  TensorView x_TI, weight_OI;
  TensorView bias_O;  // empty: none
  TensorView y_TO;    // overwritten: x W^T + b
};

struct LinearBackwardInputArgs {
  TensorView grad_y_TO, weight_OI;
  TensorView grad_x_TI;  // overwritten: dy W
};

struct LinearBackwardWeightArgs {
  TensorView x_TI, grad_y_TO;
  TensorView grad_weight_OI;  // fp32 (fp64 in fp64), += dy^T x; empty: not wanted
  TensorView grad_bias_O;     // likewise, += column sums of dy; empty: not wanted
};

}  // namespace omni
