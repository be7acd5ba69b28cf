// Attention forward: online softmax over blocks of keys (attention_kernel.h). Included once per
// SIMD target.
#pragma once

#include <alloca.h>

#include <type_traits>

#include "runtime/device/cpu/attention_tasks.h"

namespace omni::cpu::OMNI_SIMD {

inline constexpr int64_t kForwardColumns = 256;  // per task, rounded to whole tokens

template <typename S, typename C, typename Args>
struct ForwardRun {
  using Out = std::conditional_t<kIsPartial<Args>, C, S>;
  const Args* args;
  Geometry geometry;
  const AttentionTask* tasks;

  static void Task(void* self, int64_t index) {
    const auto* run = static_cast<const ForwardRun*>(self);
    run->RunTask(run->tasks[index]);
  }
  void RunTask(const AttentionTask& task) const;
};

// One step of the online softmax over a block of keys: scores become exp(score - max), the
// running maxima and sums are updated, and rescale[m] is what the sums so far were multiplied
// with.
template <typename C>
inline void SoftmaxStep(int64_t keys, int64_t columns, C* scores, C* maxima, C* sums, C* rescale) {
  using Vec = typename Simd<C>::Vec;
  for (int64_t j = 0; j < columns; j += Simd<C>::kWidth) {
    C* column = scores + j;
    const Vec before = Load<C>(maxima + j);
    Vec max0 = before, max1 = before;
    int64_t k = 0;
    for (; k + 2 <= keys; k += 2) {
      max0 = Max(Load<C>(column + k * kColumnBlock), max0);
      max1 = Max(Load<C>(column + (k + 1) * kColumnBlock), max1);
    }
    if (k < keys) max0 = Max(Load<C>(column + k * kColumnBlock), max0);
    const Vec max = Max(max0, max1);
    Vec sum0{}, sum1{};
    for (k = 0; k + 2 <= keys; k += 2) {
      const Vec p0 = Exp(Load<C>(column + k * kColumnBlock) - max);
      const Vec p1 = Exp(Load<C>(column + (k + 1) * kColumnBlock) - max);
      Store(column + k * kColumnBlock, p0);
      Store(column + (k + 1) * kColumnBlock, p1);
      sum0 += p0;
      sum1 += p1;
    }
    if (k < keys) {
      const Vec p0 = Exp(Load<C>(column + k * kColumnBlock) - max);
      Store(column + k * kColumnBlock, p0);
      sum0 += p0;
    }
    const Vec factor = Exp(before - max);
    Store(maxima + j, max);
    Store(sums + j, Fma(Load<C>(sums + j), factor, sum0 + sum1));
    Store(rescale + j, factor);
  }
}

// Where the log-sum-exp of a column of the task lies.
template <typename C, typename Args>
inline C* LseOf(const Args& args, const AttentionTask& task, const Geometry& g, int64_t column) {
  return At<C>(args.lse_TN, task.segment.query_row + task.token_begin + column / g.group,
               task.kv_head * g.group + column % g.group);
}

template <typename S, typename C, typename Args>
void ForwardRun<S, C, Args>::RunTask(const AttentionTask& task) const {
  using Vec = typename Simd<C>::Vec;
  constexpr int64_t kWidth = Simd<C>::kWidth;
  const Geometry& g = geometry;
  const int64_t dim = g.padded_dim, length = task.segment.num_keys, shift = task.segment.shift;
  const int64_t columns = (task.token_end - task.token_begin) * g.group;
  const int64_t blocks = (columns + kColumnBlock - 1) / kColumnBlock;
  const int64_t block_size = kColumnBlock * dim;
  StackPiece stack{static_cast<char*>(
      alloca((2 * blocks * block_size + block_size + 2 * kKeyBlock * dim +
              kKeyBlock * kColumnBlock + 2 * blocks * kColumnBlock + kColumnBlock) *
                 sizeof(C) +
             1024))};
  stack.next = reinterpret_cast<char*>(RoundUp(reinterpret_cast<int64_t>(stack.next), 64));
  C* q_transposed = stack.Take<C>(blocks * block_size);  // [block][dim][kColumnBlock]
  C* out_transposed = stack.Take<C>(blocks * block_size);
  C* rows = stack.Take<C>(block_size);  // [kColumnBlock][dim]
  C* keys = stack.Take<C>(kKeyBlock * dim);
  C* values = stack.Take<C>(kKeyBlock * dim);
  C* scores = stack.Take<C>(kKeyBlock * kColumnBlock);
  C* maxima = stack.Take<C>(blocks * kColumnBlock);
  C* sums = stack.Take<C>(blocks * kColumnBlock);
  C* rescale = stack.Take<C>(kColumnBlock);

  const C lowest = sizeof(C) == 4 ? static_cast<C>(-3.0e38) : static_cast<C>(-1.0e300);
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t count = Least(kColumnBlock, columns - b * kColumnBlock);
    PackColumns<S>(args->q_TND, task, g, task.token_begin, b * kColumnBlock, count,
                   static_cast<C>(args->scale), rows);
    Transpose(rows, dim, RoundUp(count, Most(8, kWidth)), dim, q_transposed + b * block_size,
              kColumnBlock);
    C* out = out_transposed + b * block_size;
    for (int64_t i = 0; i < block_size; ++i) out[i] = C{0};
    for (int64_t m = 0; m < kColumnBlock; ++m) {
      maxima[b * kColumnBlock + m] = lowest;
      sums[b * kColumnBlock + m] = C{0};
    }
    if constexpr (kIsPartial<Args>) {
      // A result over other keys is where an online softmax that has seen them stands, with all
      // exponentials divided by their sum.
      if (args->continues == 0) continue;
      PackColumns<C>(args->out_TND, task, g, task.token_begin, b * kColumnBlock, count, C{1}, rows);
      Transpose(rows, dim, RoundUp(count, Most(8, kWidth)), dim, out, kColumnBlock);
      for (int64_t m = 0; m < count; ++m) {
        maxima[b * kColumnBlock + m] = *LseOf<C>(*args, task, g, b * kColumnBlock + m);
        sums[b * kColumnBlock + m] = C{1};
      }
    }
  }

  const int64_t key_end = g.High(task.token_end - 1 + shift, length);
  for (int64_t k0 = g.Low(task.token_begin + shift); k0 < key_end; k0 += kKeyBlock) {
    const int64_t num_keys = Least(kKeyBlock, key_end - k0);
    PackKeys<S>(args->k_TKD, task, g, k0, num_keys, keys);
    PackKeys<S>(args->v_TKD, task, g, k0, num_keys, values);
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t count = Least(kColumnBlock, columns - b * kColumnBlock);
      const int64_t padded = RoundUp(count, kWidth);
      ColumnBounds<C> bounds;
      bounds.Fill(g, task.token_begin + shift, b * kColumnBlock, count, length);
      if (bounds.SeesNone(k0, k0 + num_keys)) continue;
      Product<false>(num_keys, padded, g.head_dim, keys, dim, q_transposed + b * block_size,
                     kColumnBlock, scores, kColumnBlock, false);
      if (!bounds.SeesAll(k0, k0 + num_keys)) Mask(bounds, k0, num_keys, padded, scores);
      SoftmaxStep(num_keys, padded, scores, maxima + b * kColumnBlock, sums + b * kColumnBlock,
                  rescale);
      C* out = out_transposed + b * block_size;
      for (int64_t d = 0; d < g.head_dim; ++d)
        for (int64_t j = 0; j < padded; j += kWidth) {
          C* at = out + d * kColumnBlock + j;
          Store(at, Load<C>(at) * Load<C>(rescale + j));
        }
      Product<true>(g.head_dim, padded, num_keys, values, dim, scores, kColumnBlock, out,
                    kColumnBlock, true);
    }
  }

  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t first = b * kColumnBlock;
    const int64_t count = Least(kColumnBlock, columns - first);
    const int64_t padded = RoundUp(count, Most(8, kWidth));
    C* out = out_transposed + b * block_size;
    for (int64_t j = 0; j < RoundUp(count, kWidth); j += kWidth) {
      const Vec inverse = Splat<C>(C{1}) / Load<C>(sums + first + j);
      for (int64_t d = 0; d < g.head_dim; ++d) {
        C* at = out + d * kColumnBlock + j;
        Store(at, Load<C>(at) * inverse);
      }
    }
    Transpose(out, kColumnBlock, dim, padded, rows, dim);
    UnpackColumns<Out, false>(args->out_TND, task, g, task.token_begin, first, count, rows);
    if (args->lse_TN.data == nullptr) continue;
    for (int64_t m = 0; m < count; ++m)
      *LseOf<C>(*args, task, g, first + m) = maxima[first + m] + std::log(sums[first + m]);
  }
}

}  // namespace omni::cpu::OMNI_SIMD
