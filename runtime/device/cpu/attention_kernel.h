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

template <typename S, typename C, typename Args>
int32_t RunForward(const void* untyped, const KernelContext* context) {
  const auto& args = *static_cast<const Args*>(untyped);
  const Geometry g = GeometryOf<C>(args.q_TND, args.k_TKD, args.mask);
  auto* tasks = static_cast<AttentionTask*>(context->scratch);
  int64_t num_tasks = 0;
  const int64_t tokens = g.TokensPer(kForwardColumns);
  for (int64_t s = 0; s < NumSegments(args); ++s) {
    const Segment segment = SegmentOf(args, s);
    if (segment.num_keys == 0) continue;
    for (int64_t head = 0; head < g.num_kv_heads; ++head)
      for (int64_t t = 0; t < segment.num_queries; t += tokens)
        tasks[num_tasks++] = {segment,
                              static_cast<int32_t>(t),
                              static_cast<int32_t>(Least(t + tokens, segment.num_queries)),
                              0,
                              segment.num_keys,
                              static_cast<int32_t>(head),
                              0};
  }
  using Run = ForwardRun<S, C, Args>;
  Run run{&args, g, tasks};
  if (num_tasks > 0) context->parallel_for(context->pool, num_tasks, &Run::Task, &run);
  return 0;
}

template <typename S, typename C, typename Args>
int32_t RunBackward(const void* untyped, const KernelContext* context) {
  const auto& args = *static_cast<const Args*>(untyped);
  const Geometry g = GeometryOf<C>(args.q_TND, args.k_TKD, args.mask);
  auto* tasks = static_cast<AttentionTask*>(context->scratch);
  int64_t num_tasks = 0;
  const int32_t wants_dq = args.grad_q_TND.data != nullptr ? 1 : 0;
  const int32_t wants_dkv =
      args.grad_k_TKD.data != nullptr || args.grad_v_TKD.data != nullptr ? 2 : 0;
  for (int64_t s = 0; s < NumSegments(args); ++s) {
    const Segment segment = SegmentOf(args, s);
    const int32_t num_queries = segment.num_queries, num_keys = segment.num_keys;
    if (num_queries == 0 || num_keys == 0) continue;
    for (int64_t h = 0; h < g.num_kv_heads; ++h) {
      const int32_t head = static_cast<int32_t>(h);
      if (Most(num_queries * g.group, num_keys) <= WholeColumns(g.padded_dim, sizeof(C))) {
        tasks[num_tasks++] = {segment, 0, num_queries, 0, num_keys, head, wants_dq | wants_dkv};
        continue;
      }
      const int64_t tokens = g.TokensPer(kBackwardColumns);
      for (int64_t t = 0; wants_dq != 0 && t < num_queries; t += tokens)
        tasks[num_tasks++] = {segment,
                              static_cast<int32_t>(t),
                              static_cast<int32_t>(Least(t + tokens, num_queries)),
                              0,
                              num_keys,
                              head,
                              1};
      for (int64_t k = 0; wants_dkv != 0 && k < num_keys; k += kBackwardKeys) {
        const int64_t end = Least(k + kBackwardKeys, num_keys);
        // Only the tokens that see one of these keys.
        const int64_t low = k - segment.shift, high = end - 1 + g.window - segment.shift;
        const int64_t first = Most(0, g.causal ? low : g.window > 0 ? low - g.window + 1 : 0);
        const int64_t last = g.window > 0 ? Most(first, Least(num_queries, high)) : num_queries;
        tasks[num_tasks++] = {segment,
                              static_cast<int32_t>(first),
                              static_cast<int32_t>(last),
                              static_cast<int32_t>(k),
                              static_cast<int32_t>(end),
                              head,
                              2};
      }
    }
  }
  using Run = BackwardRun<S, C, Args>;
  Run run{&args, g, tasks};
  if (num_tasks > 0) context->parallel_for(context->pool, num_tasks, &Run::Task, &run);
  return 0;
}

// Never less than what RunForward and RunBackward write: a segment is cut into at most
// length / tokens + 1 pieces, and no row is in two segments.
template <typename C, typename Args>
int64_t ForwardScratch(const void* untyped) {
  const auto& args = *static_cast<const Args*>(untyped);
  const Geometry g = GeometryOf<C>(args.q_TND, args.k_TKD, {});
  const int64_t pieces = args.q_TND.sizes[0] / g.TokensPer(kForwardColumns) + NumSegments(args);
  return pieces * g.num_kv_heads * static_cast<int64_t>(sizeof(AttentionTask));
}
template <typename C, typename Args>
int64_t BackwardScratch(const void* untyped) {
  const auto& args = *static_cast<const Args*>(untyped);
  const Geometry g = GeometryOf<C>(args.q_TND, args.k_TKD, {});
  const int64_t pieces = args.q_TND.sizes[0] / g.TokensPer(kBackwardColumns) +
                         args.k_TKD.sizes[0] / kBackwardKeys + 2 * NumSegments(args);
  return pieces * g.num_kv_heads * static_cast<int64_t>(sizeof(AttentionTask));
}

template <typename S, typename C>
AttentionFunctions MakeAttentionFunctions() {
  using Forward = AttentionForwardArgs;
  using Backward = AttentionBackwardArgs;
  using PartialForward = AttentionPartialForwardArgs;
  using PartialBackward = AttentionPartialBackwardArgs;
  return {.forward = {RunForward<S, C, Forward>, ForwardScratch<C, Forward>},
          .backward = {RunBackward<S, C, Backward>, BackwardScratch<C, Backward>},
          .partial_forward = {RunForward<S, C, PartialForward>, ForwardScratch<C, PartialForward>},
          .partial_backward = {RunBackward<S, C, PartialBackward>,
                               BackwardScratch<C, PartialBackward>}};
}

inline AttentionKernels MakeAttentionKernels() {
  return {.f64 = MakeAttentionFunctions<double, double>(),
          .f32 = MakeAttentionFunctions<float, float>(),
          .bf16 = MakeAttentionFunctions<BFloat16, float>()};
}

}  // namespace omni::cpu::OMNI_SIMD
