// Arguments of kRopeForward and kRopeBackward (runtime/ops/rope.h).
#pragma once

#include "runtime/tensor/view.h"

namespace omni {

// Forward turns each pair (x[i], x[i + D/2]) by the table's angle; backward turns back.
struct RopeArgs {
  TensorView x_TND;           // last dim contiguous, rows and heads strided
  TensorView cos_TR, sin_TR;  // [T, D/2], fp32 (fp64 in fp64)
  TensorView y_TND;           // may be x itself
};

}  // namespace omni
