// Arguments of kCrossEntropyForward and kCrossEntropyBackward (runtime/ops/cross_entropy.h).
#pragma once

#include "runtime/tensor/view.h"

namespace omni {

// With a gradient wanted, the forward pass computes it as well, while a chunk of logits exists:
// three matrix products in all, where recomputing the logits would take four.
struct CrossEntropyForwardArgs {
  TensorView hidden_TH, head_VH;
  TensorView targets_T;       // int32, -1: no loss
  TensorView loss;            // [1] fp32 (fp64 in fp64), scale * sum of losses
  TensorView losses_T;        // dtype of loss
  TensorView argmax_T;        // int32
  TensorView grad_hidden_TH;  // d loss / d hidden, dtype of hidden; empty: not wanted
  TensorView grad_head_VH;    // d loss / d head, dtype of loss, overwritten; empty: not wanted
  double scale = 1.0;
};

// The chain rule with the gradient of the scalar loss: y (+)= grad_loss * x.
struct CrossEntropyBackwardArgs {
  TensorView grad_loss;  // [1]
  TensorView x;          // what the forward pass left
  TensorView y;          // same shape
  int32_t accumulate = 0;
};

}  // namespace omni
