// y = x W^T + b.
#pragma once

#include "runtime/ops/tape.h"

namespace omni {

// x_TI [T, I] (rows may be strided), weight [O, I], bias [O] or null -> [T, O]. With an adapter on
// the weight (lora.h) its term is added.
Var Linear(ExecContext& ctx, const Var& x_TI, const Weight& weight_OI,
           const Weight* bias_O = nullptr);

// x W^T in fp32 whatever the dtype of x and W (fp64 in fp64): no rounding to bf16. For routers.
Var WideLinear(ExecContext& ctx, const Var& x_TI, const Weight& weight_OI);

// x + y, shapes equal. For the few sums that no norm absorbs.
Var Add(ExecContext& ctx, const Var& x_TH, const Var& y_TH);

}  // namespace omni
