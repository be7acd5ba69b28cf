// Pointwise non-linearities.
#pragma once

#include "runtime/ops/tape.h"

namespace omni {

// silu(gate) * up.  gate_up [T, 2F]: gate in the first F columns, up in the last F -> [T, F].
Var SwiGlu(ExecContext& ctx, const Var& gate_up_T2F);

enum class GeluKind : uint8_t { kErf, kTanh };
Var Gelu(ExecContext& ctx, const Var& x_TH, GeluKind kind = GeluKind::kErf);

}  // namespace omni
