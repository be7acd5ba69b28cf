// Attention over packed segments, forward and backward, on vectors of the target's width.
// Included once per target (attention_avx2.cc, attention_avx512.cc) and nowhere else.
//
// Scores are computed transposed, S^T [keys, columns], a column being one (token, query head of
// the kv head's group): then maxima, sums and exponentials of the softmax run down the rows of
// whole vectors, grouped-query heads fill the vectors of short segments, and every product is
//
//     C[i][j] (+)= sum_l A[i][l] B[l][j]    A read by broadcast with any strides, B by vector
//
//   S^T  [k, m] = K    Q^T           O^T  [d, m] += V^T P^T
//   dP^T [k, m] = V    dO^T          dQ^T [d, m] += K^T dS^T
//   dV   [k, d] += P^T dO            dK   [k, d] += dS^T Q
//
// so K and V are only copied (for locality), Q and dO are transposed once per chunk of columns.
// Nothing larger than kKeyBlock x kColumnBlock scores ever exists. The work is cut by segment,
// kv head and chunk; which task adds what in which order follows from the shapes alone.
//
// Bound: FMA units for head dim >= 64; per key block, exp costs about a third of Q K^T.
#pragma once

#include "runtime/device/cpu/attention.h"
#include "runtime/device/cpu/attention_backward.h"
#include "runtime/device/cpu/attention_forward.h"
#include "runtime/device/kernel_table.h"

namespace omni::cpu::OMNI_SIMD {

template <typename S, typename C>
int32_t RunForward(const void* untyped, const KernelContext* context) {
  const auto& args = *static_cast<const AttentionForwardArgs*>(untyped);
  const Geometry g = GeometryOf<C>(args.q_TND, args.k_TKD, args.mask);
  auto* tasks = static_cast<AttentionTask*>(context->scratch);
  int64_t num_tasks = 0;
  const auto* cu = static_cast<const int32_t*>(args.cu_seqlens.data);
  const int64_t tokens = g.TokensPer(kForwardColumns);
  for (int64_t s = 0; s + 1 < args.cu_seqlens.sizes[0]; ++s) {
    const int32_t length = cu[s + 1] - cu[s];
    for (int64_t head = 0; head < g.num_kv_heads; ++head)
      for (int64_t t = 0; t < length; t += tokens)
        tasks[num_tasks++] = {cu[s],
                              length,
                              static_cast<int32_t>(t),
                              static_cast<int32_t>(Least(t + tokens, length)),
                              0,
                              length,
                              static_cast<int32_t>(head),
                              0};
  }
  ForwardRun<S, C> run{&args, g, tasks};
  if (num_tasks > 0) context->parallel_for(context->pool, num_tasks, &ForwardRun<S, C>::Task, &run);
  return 0;
}

template <typename S, typename C>
int32_t RunBackward(const void* untyped, const KernelContext* context) {
  const auto& args = *static_cast<const AttentionBackwardArgs*>(untyped);
  const Geometry g = GeometryOf<C>(args.q_TND, args.k_TKD, args.mask);
  auto* tasks = static_cast<AttentionTask*>(context->scratch);
  int64_t num_tasks = 0;
  const auto* cu = static_cast<const int32_t*>(args.cu_seqlens.data);
  const int32_t wants_dq = args.grad_q_TND.data != nullptr ? 1 : 0;
  const int32_t wants_dkv =
      args.grad_k_TKD.data != nullptr || args.grad_v_TKD.data != nullptr ? 2 : 0;
  for (int64_t s = 0; s + 1 < args.cu_seqlens.sizes[0]; ++s) {
    const int32_t length = cu[s + 1] - cu[s];
    if (length == 0) continue;
    for (int64_t h = 0; h < g.num_kv_heads; ++h) {
      const int32_t head = static_cast<int32_t>(h);
      if (length * g.group <= WholeColumns(g.padded_dim, sizeof(C))) {
        tasks[num_tasks++] = {cu[s], length, 0, length, 0, length, head, wants_dq | wants_dkv};
        continue;
      }
      const int64_t tokens = g.TokensPer(kBackwardColumns);
      for (int64_t t = 0; wants_dq != 0 && t < length; t += tokens)
        tasks[num_tasks++] = {cu[s],
                              length,
                              static_cast<int32_t>(t),
                              static_cast<int32_t>(Least(t + tokens, length)),
                              0,
                              length,
                              head,
                              1};
      for (int64_t k = 0; wants_dkv != 0 && k < length; k += kBackwardKeys) {
        const int64_t end = Least(k + kBackwardKeys, length);
        // Only the tokens that see one of these keys.
        const int64_t first = g.causal ? k : g.window > 0 ? Most(0, k - g.window + 1) : 0;
        const int64_t last = g.window > 0 ? Least(length, end - 1 + g.window) : length;
        tasks[num_tasks++] = {cu[s],
                              length,
                              static_cast<int32_t>(first),
                              static_cast<int32_t>(last),
                              static_cast<int32_t>(k),
                              static_cast<int32_t>(end),
                              head,
                              2};
      }
    }
  }
  BackwardRun<S, C> run{&args, g, tasks};
  if (num_tasks > 0)
    context->parallel_for(context->pool, num_tasks, &BackwardRun<S, C>::Task, &run);
  return 0;
}

// Never less than what RunForward and RunBackward write: a segment is cut into at most
// length / tokens + 1 pieces.
template <typename C>
int64_t ScratchBytes(const TensorView& q, const TensorView& k, const TensorView& cu_seqlens,
                     bool backward) {
  const Geometry g = GeometryOf<C>(q, k, {});
  const int64_t segments = Most(0, cu_seqlens.sizes[0] - 1), tokens = q.sizes[0];
  int64_t pieces = tokens / g.TokensPer(backward ? kBackwardColumns : kForwardColumns) + segments;
  if (backward) pieces += tokens / kBackwardKeys + segments;
  return pieces * g.num_kv_heads * static_cast<int64_t>(sizeof(AttentionTask));
}

template <typename C>
int64_t ForwardScratch(const void* untyped) {
  const auto& args = *static_cast<const AttentionForwardArgs*>(untyped);
  return ScratchBytes<C>(args.q_TND, args.k_TKD, args.cu_seqlens, false);
}
template <typename C>
int64_t BackwardScratch(const void* untyped) {
  const auto& args = *static_cast<const AttentionBackwardArgs*>(untyped);
  return ScratchBytes<C>(args.q_TND, args.k_TKD, args.cu_seqlens, true);
}

inline AttentionKernels MakeAttentionKernels() {
  return {{RunForward<double, double>, ForwardScratch<double>},
          {RunBackward<double, double>, BackwardScratch<double>},
          {RunForward<float, float>, ForwardScratch<float>},
          {RunBackward<float, float>, BackwardScratch<float>},
          {RunForward<BFloat16, float>, ForwardScratch<float>},
          {RunBackward<BFloat16, float>, BackwardScratch<float>}};
}

}  // namespace omni::cpu::OMNI_SIMD
