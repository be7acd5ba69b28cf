// What the blocks of all towers have in common: they may be computed again in the backward, as a
// whole or in part.
#pragma once

#include <functional>

#include "runtime/ops/norm.h"
#include "runtime/ops/recompute.h"
#include "runtime/ops/rope.h"

namespace omni::encoders {

// A block takes the states and their norm (its own first one) and leaves the same for the next.
// `fn` may use nothing of the tape but its arguments; `rope` may be null.
using BlockFn =
    std::function<AddNormResult(ExecContext& ctx, const AddNormResult& x, const RopeTable* rope)>;
AddNormResult RunBlock(ExecContext& ctx, bool recompute, bool trains, const AddNormResult& x,
                       const RopeTable* rope, const BlockFn& fn);

// A part of a block with one input and one output, under the same rule.
Var RunPart(ExecContext& ctx, bool recompute, bool trains, const Var& x,
            const std::function<Var(ExecContext& ctx, const Var& x)>& fn);

}  // namespace omni::encoders
