// Normalisation over the last dim, with fp32 (fp64 in fp64) statistics.
#pragma once

#include "runtime/ops/tape.h"

namespace omni {

// y = x / sqrt(mean(x^2) + eps) * weight.  x [T, H] or [T, N, D] (normalises the last dim).
Var RmsNorm(ExecContext& ctx, const Var& x_TH, const Weight& weight_H, float eps);

// y = (x - mean) / sqrt(var + eps) * weight + bias.
Var LayerNorm(ExecContext& ctx, const Var& x_TH, const Weight& weight_H, const Weight* bias_H,
              float eps);

// The residual step of a pre-norm block, in one pass: sum = x + branch, normed = norm(sum).
struct AddNormResult {
  Var sum_TH;
  Var normed_TH;
};
AddNormResult AddRmsNorm(ExecContext& ctx, const Var& x_TH, const Var& branch_TH,
                         const Weight& weight_H, float eps);
AddNormResult AddLayerNorm(ExecContext& ctx, const Var& x_TH, const Var& branch_TH,
                           const Weight& weight_H, const Weight* bias_H, float eps);

}  // namespace omni
