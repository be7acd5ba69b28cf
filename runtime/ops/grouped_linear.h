// A linear map of its own for each group of rows: what the experts of a layer do, in one op and
// without a capacity, whatever the groups' sizes.
#pragma once

#include "runtime/ops/tape.h"

namespace omni {

// x_RI [R, I] (rows may be strided), weight [E, O, I], offsets_E1 [E + 1] int32 on the device ->
// [R, O]: y[r] = weight[e] x[r] for r in [offsets[e], offsets[e + 1]). Offsets go from 0 to R
// without falling (kernel error kBadOffsets); groups may be empty, and R may be 0. With adapters on
// the weight (lora.h) their terms are added.
Var GroupedLinear(ExecContext& ctx, const Var& x_RI, const Weight& weight_EOI,
                  const TensorView& offsets_E1);

}  // namespace omni
