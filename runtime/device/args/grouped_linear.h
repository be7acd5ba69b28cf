// Arguments of kGroupedLinear* (runtime/ops/grouped_linear.h): a linear map of its own for each run
// of rows. offsets_E1, int32 on the device, goes from 0 to R without falling; anything else is the
// kernel error kBadOffsets. The matrix of each
// group is dense, the groups' may lie apart.
#pragma once

#include "runtime/tensor/view.h"

namespace omni {

inline constexpr int32_t kBadOffsets = 1;

struct GroupedLinearForwardArgs {
  TensorView x_RI, weight_EOI, offsets_E1;
  TensorView y_RO;  // overwritten
};

struct GroupedLinearBackwardInputArgs {
  TensorView grad_y_RO, weight_EOI, offsets_E1;
  TensorView grad_x_RI;  // overwritten
};

struct GroupedLinearBackwardWeightArgs {
  TensorView x_RI, grad_y_RO, offsets_E1;
  TensorView grad_weight_EOI;  // fp32 (fp64 in fp64), +=; that of an expert without rows stays
};

}  // namespace omni
