// Token embedding.
#pragma once

#include "runtime/ops/tape.h"

namespace omni {

// ids_T int32 on the device, table [V, H] -> [T, H]. Backward adds rows in token order.
Var Embedding(ExecContext& ctx, const TensorView& ids_T, const Weight& table_VH);

}  // namespace omni
