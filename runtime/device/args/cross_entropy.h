// Arguments of kCrossEntropyForward and kCrossEntropyBackward (runtime/ops/cross_entropy.h), and of
// kSoftmaxParts and kSoftmaxJoin (parallel/ops/vocab.h).
#pragma once

#include "runtime/tensor/view.h"

namespace omni {

// A target that is no class: the kernel error.
inline constexpr int32_t kBadTarget = 1;

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

// The same loss where each of several ranks has the logits of some of the classes, in two steps
// with an exchange of the parts between. All tensors but the integers are fp32 (or fp64), dense.
//
// First, over the V classes at hand: parts[r] = {largest logit, sum of exp(logit - largest), logit
// of the target (0 if it is elsewhere), arg max}; {-inf, 0, 0, 0} with none. The arg max is the
// lowest among equals and counted in all classes: in fp32 those are at most 2^24.
struct SoftmaxPartsArgs {
  TensorView logits_RV;  // become exp(logit - largest) if keep_exponentials
  TensorView targets_R;  // int32, counted from the first class at hand; elsewhere if outside [0, V)
  TensorView parts_R4;
  int64_t first_class = 0;  // added to arg max
  int32_t keep_exponentials = 0;
};

// Then, from the parts of all S ranks, in the order of their classes: losses and arg max of those
// rows that are this rank's to report, and gradients of the classes at hand.
struct SoftmaxJoinArgs {
  TensorView parts_SR4;
  int64_t part = 0;      // this rank's
  TensorView logits_RV;  // exponentials become scale * (softmax - onehot); empty: not wanted
  TensorView targets_R;  // as before
  TensorView places_R;   // int32: the row of losses_T and argmax_T; -1: not reported here
  TensorView loss;       // [1], += scale * sum of the losses reported
  TensorView losses_T, argmax_T;  // other rows are left alone
  double scale = 1.0;
};

}  // namespace omni
