// Attention backward, from the saved log-sum-exp (attention_kernel.h). Included once per SIMD
// target.
#pragma once

#include <alloca.h>

#include <type_traits>

#include "runtime/device/cpu/attention_tasks.h"

namespace omni::cpu::OMNI_SIMD {

// A segment of at most WholeColumns columns per kv head is one task that makes dq, dk and dv with
// five products. Longer ones are cut twice: by columns for dq, by keys for dk and dv, at seven.
// The limit keeps a task's buffers below 4 MB of stack.
inline int64_t WholeColumns(int64_t padded_dim, int64_t element_bytes) {
  return Least(512, (int64_t{256} << 10) / (padded_dim * element_bytes));
}
inline constexpr int64_t kBackwardColumns = 256;
inline constexpr int64_t kBackwardKeys = 256;

template <typename S, typename C, typename Args>
struct BackwardRun {
  static constexpr bool kAdds = kIsPartial<Args>;
  using Grad = std::conditional_t<kAdds, C, S>;
  const Args* args;
  Geometry geometry;
  const AttentionTask* tasks;

  static void Task(void* self, int64_t index) {
    const auto* run = static_cast<const BackwardRun*>(self);
    run->RunTask(run->tasks[index]);
  }
  void RunTask(const AttentionTask& task) const;
};

template <typename S, typename C, typename Args>
void BackwardRun<S, C, Args>::RunTask(const AttentionTask& task) const {
  using Vec = typename Simd<C>::Vec;
  constexpr int64_t kWidth = Simd<C>::kWidth;
  const Geometry& g = geometry;
  const int64_t dim = g.padded_dim, length = task.segment.num_keys, shift = task.segment.shift;
  const bool makes_dq = (task.writes & 1) != 0, makes_dkv = (task.writes & 2) != 0;
  // Columns are taken in chunks: one chunk unless the task has a long segment's tokens to sum.
  const int64_t chunk_tokens =
      Least(task.token_end - task.token_begin,
            g.TokensPer(makes_dq && makes_dkv ? WholeColumns(dim, sizeof(C)) : kBackwardColumns));
  const int64_t max_blocks = (chunk_tokens * g.group + kColumnBlock - 1) / kColumnBlock;
  const int64_t num_sums = makes_dkv ? task.key_end - task.key_begin : 0;
  const int64_t block_size = kColumnBlock * dim;
  StackPiece stack{static_cast<char*>(alloca(
      ((4 + (makes_dq ? 1 : 0)) * max_blocks * block_size + block_size + 2 * kKeyBlock * dim +
       2 * num_sums * dim + 2 * kKeyBlock * kColumnBlock + 2 * max_blocks * kColumnBlock) *
          sizeof(C) +
      1024))};
  stack.next = reinterpret_cast<char*>(RoundUp(reinterpret_cast<int64_t>(stack.next), 64));
  C* q_rows = stack.Take<C>(max_blocks * block_size);  // [column][dim], times scale
  C* grad_rows = stack.Take<C>(max_blocks * block_size);
  C* q_transposed = stack.Take<C>(max_blocks * block_size);  // [block][dim][kColumnBlock]
  C* grad_transposed = stack.Take<C>(max_blocks * block_size);
  C* dq_transposed = stack.Take<C>(makes_dq ? max_blocks * block_size : 0);
  C* rows = stack.Take<C>(block_size);
  C* keys = stack.Take<C>(kKeyBlock * dim);
  C* values = stack.Take<C>(kKeyBlock * dim);
  C* dk = stack.Take<C>(num_sums * dim);
  C* dv = stack.Take<C>(num_sums * dim);
  C* probabilities = stack.Take<C>(kKeyBlock * kColumnBlock);
  C* dscores = stack.Take<C>(kKeyBlock * kColumnBlock);
  C* lse = stack.Take<C>(max_blocks * kColumnBlock);
  C* deltas = stack.Take<C>(max_blocks * kColumnBlock);  // sum over d of dO O

  for (int64_t i = 0; i < num_sums * dim; ++i) dk[i] = dv[i] = C{0};

  for (int64_t t0 = task.token_begin; t0 < task.token_end; t0 += chunk_tokens) {
    const int64_t t1 = Least(t0 + chunk_tokens, task.token_end);
    const int64_t key_begin = Most(task.key_begin, g.Low(t0 + shift));
    const int64_t key_end = Least(task.key_end, g.High(t1 - 1 + shift, length));
    if (key_begin >= key_end && !makes_dq) continue;
    const int64_t columns = (t1 - t0) * g.group;
    const int64_t blocks = (columns + kColumnBlock - 1) / kColumnBlock;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = b * kColumnBlock;
      const int64_t count = Least(kColumnBlock, columns - first);
      const int64_t padded = RoundUp(count, Most(8, kWidth));
      C* block_grads = grad_rows + first * dim;
      PackColumns<S>(args->out_TND, task, g, t0, first, count, C{1}, rows);
      PackColumns<S>(args->grad_out_TND, task, g, t0, first, count, C{1}, block_grads);
      for (int64_t m = 0; m < padded; ++m) {
        Vec sum{};
        for (int64_t d = 0; d < dim; d += kWidth)
          sum = Fma(Load<C>(rows + m * dim + d), Load<C>(block_grads + m * dim + d), sum);
        deltas[first + m] = Sum(sum);
        lse[first + m] = C{0};
        if (m >= count) continue;
        const int64_t token = task.segment.query_row + t0 + (first + m) / g.group;
        const int64_t head = task.kv_head * g.group + (first + m) % g.group;
        lse[first + m] = *At<const C>(args->lse_TN, token, head);
      }
      PackColumns<S>(args->q_TND, task, g, t0, first, count, static_cast<C>(args->scale),
                     q_rows + first * dim);
      Transpose(q_rows + first * dim, dim, padded, dim, q_transposed + b * block_size,
                kColumnBlock);
      Transpose(block_grads, dim, padded, dim, grad_transposed + b * block_size, kColumnBlock);
    }
    if (makes_dq)
      for (int64_t i = 0; i < blocks * block_size; ++i) dq_transposed[i] = C{0};

    for (int64_t k0 = key_begin; k0 < key_end; k0 += kKeyBlock) {
      const int64_t num_keys = Least(kKeyBlock, key_end - k0);
      PackKeys<S>(args->k_TKD, task, g, k0, num_keys, keys);
      PackKeys<S>(args->v_TKD, task, g, k0, num_keys, values);
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t first = b * kColumnBlock;
        const int64_t count = Least(kColumnBlock, columns - first);
        const int64_t padded = RoundUp(count, kWidth);
        ColumnBounds<C> bounds;
        bounds.Fill(g, t0 + shift, first, count, length);
        if (bounds.SeesNone(k0, k0 + num_keys)) continue;
        Product<false>(num_keys, padded, g.head_dim, keys, dim, q_transposed + b * block_size,
                       kColumnBlock, probabilities, kColumnBlock, false);
        Product<false>(num_keys, padded, g.head_dim, values, dim, grad_transposed + b * block_size,
                       kColumnBlock, dscores, kColumnBlock, false);
        if (!bounds.SeesAll(k0, k0 + num_keys)) Mask(bounds, k0, num_keys, padded, probabilities);
        for (int64_t j = 0; j < padded; j += kWidth) {
          const Vec column_lse = Load<C>(lse + first + j), delta = Load<C>(deltas + first + j);
          for (int64_t k = 0; k < num_keys; ++k) {
            C* p = probabilities + k * kColumnBlock + j;
            C* ds = dscores + k * kColumnBlock + j;
            const Vec probability = Exp(Load<C>(p) - column_lse);
            Store(p, probability);
            Store(ds, probability * (Load<C>(ds) - delta));
          }
        }
        if (makes_dkv) {
          const int64_t at = (k0 - task.key_begin) * dim;
          Product<false>(num_keys, dim, count, probabilities, kColumnBlock, grad_rows + first * dim,
                         dim, dv + at, dim, true);
          Product<false>(num_keys, dim, count, dscores, kColumnBlock, q_rows + first * dim, dim,
                         dk + at, dim, true);
        }
        if (makes_dq)
          Product<true>(g.head_dim, padded, num_keys, keys, dim, dscores, kColumnBlock,
                        dq_transposed + b * block_size, kColumnBlock, true);
      }
    }

    for (int64_t b = 0; makes_dq && b < blocks; ++b) {
      const int64_t first = b * kColumnBlock;
      const int64_t count = Least(kColumnBlock, columns - first);
      const int64_t padded = RoundUp(count, Most(8, kWidth));
      Transpose(dq_transposed + b * block_size, kColumnBlock, dim, padded, rows, dim);
      for (int64_t i = 0; i < count * dim; ++i) rows[i] *= static_cast<C>(args->scale);
      UnpackColumns<Grad, kAdds>(args->grad_q_TND, task, g, t0, first, count, rows);
    }
  }

  for (int64_t k = 0; k < num_sums; ++k) {
    const int64_t token = task.segment.key_row + task.key_begin + k;
    for (int which = 0; which < 2; ++which) {
      const TensorView& view = which == 0 ? args->grad_k_TKD : args->grad_v_TKD;
      if (view.data == nullptr) continue;
      const C* from = (which == 0 ? dk : dv) + k * dim;
      Grad* to = At<Grad>(view, token, task.kv_head);
      for (int64_t d = 0; d < g.head_dim; ++d) {
        if constexpr (kAdds)
          to[d] += from[d];
        else
          to[d] = static_cast<S>(from[d]);
      }
    }
  }
}

}  // namespace omni::cpu::OMNI_SIMD
