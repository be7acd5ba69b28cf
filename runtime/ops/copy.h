// Writing to tensors outside the tape: nothing here is differentiated. An empty view is left alone.
#pragma once

#include "runtime/device/args/elementwise.h"
#include "runtime/device/exec_context.h"

namespace omni {

// to = from, converted to its dtype; shapes are equal, strides may differ.
inline void CopyTo(ExecContext& ctx, const TensorView& from, const TensorView& to) {
  if (from.num_elements() == 0) return;
  Launch(ctx, OpId::kCopyCast, from.dtype, CopyCastArgs{.in = from, .out = to});
}

inline void FillWith(ExecContext& ctx, double value, const TensorView& to) {
  if (to.num_elements() == 0) return;
  Launch(ctx, OpId::kFill, to.dtype, FillArgs{.out = to, .value = value});
}

}  // namespace omni
