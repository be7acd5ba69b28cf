// Token embedding.
#pragma once

#include "runtime/ops/tape.h"

namespace omni {

// ids_T int32 on the device, table [V, H] -> [T, H]. Backward adds rows in token order.
Var Embedding(ExecContext& ctx, const TensorView& ids_T, const Weight& table_VH);

// A table read between its rows: y[p] = sum over k of weights[p, k] * table[taps[p, k]]; bilinear
// interpolation of a grid of positions has K = 4. taps [P, K] int32, weights [P, K] fp32 (fp64 in
// fp64), both dense on the device; a row may be tapped any number of times.
Var InterpolateRows(ExecContext& ctx, const Weight& table_VH, const TensorView& taps_PK,
                    const TensorView& weights_PK);

}  // namespace omni
