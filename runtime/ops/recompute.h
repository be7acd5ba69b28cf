// Computing again instead of keeping (Chen et al. 2016, arXiv 1604.06174): what the ops of a
// stretch of the model would save is dropped, and its forward is run a second time when the
// backward gets there. A stretch may be a whole block or the part of it that saves most for its
// FLOPs.
//
//   Var y_TH = Recompute(ctx, {gate_up_TF}, AnyTrains({&down}), [&down](ExecContext& ctx, auto in)
//   {
//     return std::vector<Var>{Linear(ctx, SwiGlu(ctx, in[0]), down)};
//   })[0];
#pragma once

#include <functional>
#include <vector>

#include "runtime/ops/tape.h"

namespace omni {

using RecomputedFn =
    std::function<std::vector<Var>(ExecContext& ctx, absl::Span<const Var> inputs)>;

// fn(ctx, inputs), recorded as one op that keeps its inputs and outputs only.
//
// fn is called twice, so it must do the same both times. It may read: `inputs` (constants of the
// tape too must be passed, as Vars without gradient), what outlives the tape (weights), and host
// values, all captured by value or of outlasting things. Collectives inside are made again in the
// backward: in the same order on every rank of a group, if all of them recompute.
// `trains_weights`: whether a weight that fn uses is trainable.
//
// Numbers are bitwise those of fn without it, the gradients too, unless fn uses an input more than
// once that others use after it as well: their sum then adds in another order. BackwardInput runs
// fn and keeps what WeightGrad needs; Backward keeps nothing beyond this op. Where nothing is
// recorded (no tape, all frozen) fn is run as it is.
std::vector<Var> Recompute(ExecContext& ctx, absl::Span<const Var> inputs, bool trains_weights,
                           const RecomputedFn& fn);

// Whether any of these is trained, itself or by an adapter; null: none. For `trains_weights`.
bool AnyTrains(absl::Span<const Weight* const> weights);

}  // namespace omni
