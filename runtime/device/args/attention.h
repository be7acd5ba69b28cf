// Arguments of kAttentionForward, kAttentionBackward and kAttentionCached
// (runtime/ops/attention.h), and of kAttentionPartialForward and -Backward
// (parallel/ops/ring_attention.h).
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

// Attention of queries to some of their keys, for a result that is put together from several calls.
// A segment is a range of rows of q and one of k and v:
//
//   segments [S, 4] int32, on the device: first query, number of queries, first key, number of keys
//
// The mask is aligned at the ends: query i of m counts as position i + n - m among the n keys.
// Under a causal mask n >= m, so that every query of a segment sees a key. No row of q, k or v is
// in two segments of a call; q may have another number of rows than k and v.
struct AttentionPartialForwardArgs {
  TensorView q_TND, k_TKD, v_TKD;  // last dim contiguous, rows and heads strided
  TensorView segments;
  // In fp32, in fp64 for fp64: the result over the keys seen so far, and the log of the sum of exp
  // of their scaled scores. Rows of q in no segment are not touched.
  TensorView out_TND, lse_TN;
  double scale = 1.0;
  AttentionMask mask;
  int32_t continues = 0;  // 0: out and lse are overwritten; 1: they hold a result over other keys,
                          // into which this one is merged
};

// From the final out and lse of q. Gradients in fp32, in fp64 for fp64; added to what is there.
struct AttentionPartialBackwardArgs {
  TensorView q_TND, k_TKD, v_TKD;
  TensorView segments;
  TensorView out_TND, lse_TN, grad_out_TND;       // out in the dtype of q
  TensorView grad_q_TND, grad_k_TKD, grad_v_TKD;  // may be strided; empty: not wanted
  double scale = 1.0;
  AttentionMask mask;
};

// One sequence of L tokens, of which the last T ask.
struct AttentionCachedArgs {
  TensorView q_TND, k_LKD, v_LKD;  // last dim contiguous, rows and heads strided
  TensorView out_TND;
  double scale = 1.0;
};

}  // namespace omni
