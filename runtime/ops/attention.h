// Softmax attention over packed segments of different length.
#pragma once

#include "runtime/ops/tape.h"

namespace omni {

struct AttentionOptions {
  bool causal = false;
  int32_t window =
      0;  // > 0: a query sees keys at distance < window only (both sides, unless causal)
  float scale = 0.0f;  // 0: 1 / sqrt(D)
};

// q_TND [T, N, D], k_TKD and v_TKD [T, K, D], N a multiple of K (grouped-query: head n uses
// kv head n / (N/K)); rows may be strided. cu_seqlens [S + 1] on the host: tokens of segment s
// are cu_seqlens[s] .. cu_seqlens[s+1]-1 and see no other segment. -> [T, N, D], dense.
// Never materialises T x T; saves one log-sum-exp per (token, head).
Var VarlenAttention(ExecContext& ctx, const Var& q_TND, const Var& k_TKD, const Var& v_TKD,
                    absl::Span<const int32_t> cu_seqlens, const AttentionOptions& options);

// For generating: the last T tokens of one sequence of L, whose keys and values are all there:
// query t sees keys 0 .. L - T + t. q_TND [T, N, D], k_LKD and v_LKD [L, K, D] -> [T, N, D], not
// recorded on a tape. Cost: 4 T L N D FLOPs; bound by reading the keys and values once.
TensorView CachedAttention(ExecContext& ctx, const TensorView& q_TND, const TensorView& k_LKD,
                           const TensorView& v_LKD, float scale = 0.0f);

}  // namespace omni
