// Arguments of kSwiGlu* and kGelu* (runtime/ops/activation.h). Rows may be strided.
#pragma once

#include "runtime/tensor/view.h"

namespace omni {

struct SwiGluForwardArgs {
  TensorView gate_up_T2F;
  TensorView y_TF;
};

struct SwiGluBackwardArgs {
  TensorView gate_up_T2F, grad_y_TF;
  TensorView grad_gate_up_T2F;  // overwritten
};

struct GeluForwardArgs {
  TensorView x_TH, y_TH;
  int32_t tanh = 0;  // the tanh form; else the exact one, by erf
};

struct GeluBackwardArgs {
  TensorView x_TH, grad_y_TH;
  TensorView grad_x_TH;  // overwritten
  int32_t tanh = 0;
};

}  // namespace omni
