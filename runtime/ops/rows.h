// Moving rows between packs: how encoder outputs reach their places among the tokens.
#pragma once

#include "runtime/ops/tape.h"

namespace omni {

// y[i] = x[rows[i]].  rows int32 on the device; a row may be taken several times.
Var GatherRows(ExecContext& ctx, const Var& x_TH, const TensorView& rows);

// A copy of `base` in which row rows[i] is replaced by source[i] (rows distinct). The gradient
// of the replaced rows goes to source, that of the others to base.
Var ScatterRows(ExecContext& ctx, const Var& base_TH, const Var& source_RH, const TensorView& rows);

// A copy of `base` with source[i] added to row rows[i] (i ascending; rows may repeat).
Var AddRows(ExecContext& ctx, const Var& base_TH, const Var& source_RH, const TensorView& rows);

// A view of another shape over the same memory (no copy).
Var Reshape(ExecContext& ctx, const Var& x, std::initializer_list<int64_t> sizes);
// Columns [begin, begin + count) of [T, C], as a strided view (no copy).
Var Columns(ExecContext& ctx, const Var& x_TC, int64_t begin, int64_t count);
// The same for all of them, side by side: part i has counts[i] columns, and the counts sum to C.
// One backward for all parts (their gradients are laid side by side), so this is what a fused
// QKV projection uses.
std::vector<Var> SplitColumns(ExecContext& ctx, const Var& x_TC,
                              std::initializer_list<int64_t> counts);

}  // namespace omni
