// Arguments of kAttentionForward, kAttentionBackward and kAttentionCached (runtime/ops/attention.h).
#pragma once

#include "runtime/tensor/view.h"

namespace omni {

// Which keys a query sees. With i and j counted from the start of their segment, query i sees
// key j if j <= i (causal only) and |i - j| < window (window > 0 only).
struct AttentionMask {
  int32_t causal = 0;
  int32_t window = 0;
};

struct AttentionForwardArgs {
  TensorView q_TND, k_TKD, v_TKD;  // last dim contiguous, rows and heads strided
  TensorView cu_seqlens;           // [S + 1] int32, on the device
  TensorView out_TND;              // may be strided
  TensorView lse_TN;               // natural-log sum of exp of the scaled scores; fp32, fp64 in
                                   // fp64; empty: not wanted
  double scale = 1.0;
  AttentionMask mask;
  int32_t max_seqlen = 0;  // longest segment, as known on the host
};

struct AttentionBackwardArgs {
  TensorView q_TND, k_TKD, v_TKD;
  TensorView cu_seqlens;
  TensorView out_TND, lse_TN, grad_out_TND;
  TensorView grad_q_TND, grad_k_TKD, grad_v_TKD;  // overwritten; may be strided; empty: not wanted
  double scale = 1.0;
  AttentionMask mask;
  int32_t max_seqlen = 0;
};

// One sequence of L tokens, of which the last T ask.
struct AttentionCachedArgs {
  TensorView q_TND, k_LKD, v_LKD;  // last dim contiguous, rows and heads strided
  TensorView out_TND;
  double scale = 1.0;
};

}  // namespace omni
