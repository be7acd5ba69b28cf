// y = x W^T + b.
#pragma once

#include "runtime/ops/tape.h"

namespace omni {

// x_TI [T, I] (rows may be strided), weight [O, I], bias [O] or null -> [T, O].
Var Linear(ExecContext& ctx, const Var& x_TI, const Weight& weight_OI,
           const Weight* bias_O = nullptr);

// x + y, shapes equal. For the few sums that no norm absorbs.
Var Add(ExecContext& ctx, const Var& x_TH, const Var& y_TH);

}  // namespace omni
