// Arguments of the element-wise kernels. Views may be strided unless said otherwise.
#pragma once

#include "runtime/tensor/view.h"

namespace omni {

struct FillArgs {
  TensorView out;
  double value;
};

// out = in, converted from any type to any: floats round to nearest even, and to integers towards
// zero (what the integer type can't hold is the caller's bug). Keyed by the dtype of `in`.
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
