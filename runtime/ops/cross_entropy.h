// The language-model head and its loss in one op, over chunks of tokens, so that the logits
// [T, V] never exist at once.
#pragma once

#include "runtime/ops/tape.h"

namespace omni {

struct CrossEntropyResult {
  Var loss;             // scalar [1]: scale * sum of token losses (fp32; fp64 in fp64)
  TensorView losses_T;  // [T] unscaled -log p of each target, 0 where there is none; same dtype as loss
  TensorView argmax_T;  // [T] int32, most likely token (lowest id among equals); -1 where there is no target
};

// hidden_TH [T, H], head [V, H], targets_T int32 on the device, -1 where there is no loss.
// Rows without a target cost nothing. `scale` is 1 / (loss tokens of the whole global batch).
CrossEntropyResult LinearCrossEntropy(ExecContext& ctx, const Var& hidden_TH,
                                      const Weight& head_VH, const TensorView& targets_T,
                                      double scale);

}  // namespace omni
