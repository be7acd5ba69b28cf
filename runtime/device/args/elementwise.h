// Arguments of the element-wise kernels. Views may be strided unless said otherwise.
#pragma once

#include "runtime/tensor/view.h"

namespace omni {

struct FillArgs {
  TensorView out;
  double value;
};

// out = in, converted. Any two of fp64, fp32, bf16 (and like to like for the integer types).
// Keyed by the dtype of `in`.
struct CopyCastArgs {
  TensorView in, out;
};

// out = a + b; out may be a or b.
struct AddArgs {
  TensorView a, b, out;
};

// y += alpha * x. x may be of a lower precision than y; keyed by the dtype of y.
struct AxpyArgs {
  TensorView x, y;
  double alpha;
};

// x *= alpha.
struct ScaleArgs {
  TensorView x;
  double alpha;
};

}  // namespace omni
