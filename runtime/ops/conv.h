// Convolution stems and pooling, over packed rows.
#pragma once

#include "runtime/ops/tape.h"

namespace omni {

// 1-D convolution over time, each segment padded with zeros at both ends by itself.
// x_FC [F, C] packed frames (cu_seqlens on the host), weight [O, C, k], bias [O] or null ->
// [F', O], segment lengths floor((L + 2 padding - k) / stride) + 1.
struct Conv1dOptions {
  int32_t stride = 1;
  int32_t padding = 1;
};
Var Conv1d(ExecContext& ctx, const Var& x_FC, absl::Span<const int32_t> cu_seqlens,
           const Weight& weight_OCk, const Weight* bias_O, const Conv1dOptions& options);
std::vector<int32_t> Conv1dSeqlens(absl::Span<const int32_t> cu_seqlens, int32_t kernel,
                                   const Conv1dOptions& options);

// Conv2d and Conv3d stems whose kernel equals their stride are a linear map over patches:
// x_PI [P, C*kt*kh*kw] laid out [C, kt, kh, kw], weight [O, C, kt, kh, kw] viewed as [O, I].
Var PatchEmbed(ExecContext& ctx, const Var& x_PI, const Weight& weight_OI, const Weight* bias_O);

// uint8 patches -> (x/255 - mean[c]) / std[c] in the compute dtype. patches [P, I], I laid out
// [C, per_channel]. No gradient.
TensorView NormalizePatches(ExecContext& ctx, const TensorView& patches_u8_PI, int32_t num_channels,
                            absl::Span<const float> mean, absl::Span<const float> std, DType to);

// Mean over windows of `kernel` rows inside each segment, stride = kernel, remainder dropped.
Var AvgPool1d(ExecContext& ctx, const Var& x_FH, absl::Span<const int32_t> cu_seqlens,
              int32_t kernel);

}  // namespace omni
