// Arguments of kConv1d*, kPatchNormalize and kAvgPool1d* (runtime/ops/conv.h).
#pragma once

#include "runtime/tensor/view.h"

namespace omni {

struct Conv1dForwardArgs {
  TensorView x_FC;                    // dense rows
  TensorView cu_seqlens, cu_outlens;  // [S + 1] int32 on the device: rows of x, rows of y
  TensorView weight_OCk;              // dense
  TensorView bias_O;                  // empty: none
  TensorView y_FO;
  int32_t stride = 1, padding = 0;
};

struct Conv1dBackwardArgs {
  TensorView x_FC;  // read for grad_weight only
  TensorView cu_seqlens, cu_outlens, weight_OCk;
  TensorView grad_y_FO;
  TensorView grad_x_FC;        // overwritten; empty: not wanted
  TensorView grad_weight_OCk;  // dense fp32 (fp64 in fp64), +=; empty: not wanted
  TensorView grad_bias_O;      // likewise
  int32_t stride = 1, padding = 0;
};

inline constexpr int kMaxPatchChannels = 8;

struct PatchNormalizeArgs {
  TensorView patches_PI;  // uint8, each row [channels, I / channels]
  TensorView y_PI;        // (x / 255 - mean) / std
  int32_t num_channels = 0;
  float mean[kMaxPatchChannels] = {};
  float std[kMaxPatchChannels] = {};
};

struct AvgPool1dForwardArgs {
  TensorView x_FH, cu_seqlens, cu_outlens;
  TensorView y_FH;
  int32_t kernel = 1;
};

struct AvgPool1dBackwardArgs {
  TensorView grad_y_FH, cu_seqlens, cu_outlens;
  TensorView grad_x_FH;  // overwritten
  int32_t kernel = 1;
};

}  // namespace omni
