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

#include <alloca.h>

#include "runtime/device/args/attention.h"
#include "runtime/device/cpu/attention.h"
#include "runtime/device/cpu/vector_math.h"
#include "runtime/device/kernel_table.h"

namespace omni::cpu::OMNI_SIMD {

// --- C[i][j] (+)= sum_l A[i * row_stride + l * col_stride] B[l][j] ---------------------------

// kRows x kVectors accumulators stay in registers. kUnitRows: row_stride is 1, else col_stride
// is 1.
template <typename C, int kRows, int kVectors, bool kUnitRows>
[[gnu::always_inline]] inline void ProductTile(int64_t depth, const C* a, int64_t stride,
                                               const C* b, int64_t ldb, C* c, int64_t ldc,
                                               bool accumulate) {
  using Vec = typename Simd<C>::Vec;
  constexpr int kWidth = Simd<C>::kWidth;
  Vec acc[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      acc[r][v] = accumulate ? Load<C>(c + r * ldc + v * kWidth) : Vec{};
  // One pointer for three rows: [p], [p + s], [p + 2 s] are addressing modes.
  constexpr int kPointers = (kRows + 2) / 3;
  const C* p[kPointers];
#pragma GCC unroll 4
  for (int i = 0; i < kPointers; ++i) p[i] = a + 3 * i * stride;
  for (int64_t l = 0; l < depth; ++l) {
    Vec bv[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) bv[v] = Load<C>(b + v * kWidth);
    b += ldb;
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vec av = Splat<C>(kUnitRows ? a[r] : p[r / 3][(r % 3) * stride]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) acc[r][v] = Fma(av, bv[v], acc[r][v]);
    }
    if (kUnitRows) {
      a += stride;
    } else {
#pragma GCC unroll 4
      for (int i = 0; i < kPointers; ++i) ++p[i];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) Store(c + r * ldc + v * kWidth, acc[r][v]);
}

template <typename C, int kVectors, bool kUnitRows>
inline void ProductColumns(int64_t rows, int64_t depth, const C* a, int64_t stride, const C* b,
                           int64_t ldb, C* c, int64_t ldc, bool accumulate) {
  constexpr int kMost = OMNI_SIMD_IS_AVX512 ? 12 : 6;
  const int64_t step = kUnitRows ? 1 : stride;
  const auto advance = [&](int64_t n) {
    a += n * step;
    c += n * ldc;
    rows -= n;
  };
  while (rows >= kMost) {
    ProductTile<C, kMost, kVectors, kUnitRows>(depth, a, stride, b, ldb, c, ldc, accumulate);
    advance(kMost);
  }
  if (kMost > 8 && rows >= 8) {
    ProductTile<C, 8, kVectors, kUnitRows>(depth, a, stride, b, ldb, c, ldc, accumulate);
    advance(8);
  }
  if (rows >= 4) {
    ProductTile<C, 4, kVectors, kUnitRows>(depth, a, stride, b, ldb, c, ldc, accumulate);
    advance(4);
  }
  if (rows >= 2) {
    ProductTile<C, 2, kVectors, kUnitRows>(depth, a, stride, b, ldb, c, ldc, accumulate);
    advance(2);
  }
  if (rows >= 1) {
    ProductTile<C, 1, kVectors, kUnitRows>(depth, a, stride, b, ldb, c, ldc, accumulate);
  }
}

// kTransposed: A is stored [l][i] with leading dimension lda, else [i][l].
// `columns` is a multiple of the vector width.
template <bool kTransposed, typename C>
inline void Product(int64_t rows, int64_t columns, int64_t depth, const C* a, int64_t lda,
                    const C* b, int64_t ldb, C* c, int64_t ldc, bool accumulate) {
  constexpr int64_t kWidth = Simd<C>::kWidth;
  int64_t j = 0;
  for (; j + 2 * kWidth <= columns; j += 2 * kWidth)
    ProductColumns<C, 2, kTransposed>(rows, depth, a, lda, b + j, ldb, c + j, ldc, accumulate);
  if (j < columns)
    ProductColumns<C, 1, kTransposed>(rows, depth, a, lda, b + j, ldb, c + j, ldc, accumulate);
}

// --- copying -------------------------------------------------------------------------------

// to[j][i] = from[i][j]; both padded to multiples of 8.
inline void Transpose(const float* from, int64_t ldf, int64_t rows, int64_t columns, float* to,
                      int64_t ldt) {
  for (int64_t i = 0; i < rows; i += 8)
    for (int64_t j = 0; j < columns; j += 8)
      Transpose8x8(from + i * ldf + j, ldf, to + j * ldt + i, ldt);
}
inline void Transpose(const double* from, int64_t ldf, int64_t rows, int64_t columns, double* to,
                      int64_t ldt) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) to[j * ldt + i] = from[i * ldf + j];
}

template <typename C, typename S>
inline C Widen(S x) {
  return static_cast<C>(x);
}

// to[i] = scale * from[i] for i < n, 0 for n <= i < padded.
template <typename C, typename S>
inline void CopyRow(const S* from, int64_t n, int64_t padded, C scale, C* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = scale * Widen<C>(from[i]);
  for (int64_t i = n; i < padded; ++i) to[i] = C{0};
}

inline int64_t RoundUp(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}
inline int64_t Least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t Most(int64_t a, int64_t b) { return a > b ? a : b; }

// --- geometry --------------------------------------------------------------------------------

inline constexpr int64_t kKeyBlock = 64;
inline constexpr int64_t kColumnBlock = 64;

// A task: columns of tokens [token_begin, token_end) of one kv head against keys [key_begin,
// key_end), all counted from the segment's first token.
struct AttentionTask {
  int32_t segment_begin, segment_length;
  int32_t token_begin, token_end;
  int32_t key_begin, key_end;
  int32_t kv_head;
  int32_t writes;  // backward: bit 0 dq, bit 1 dk and dv
};

struct Geometry {
  int64_t num_kv_heads, group, head_dim, padded_dim;
  int64_t window;  // 0: none
  bool causal;

  // Keys [low, high) are seen by token t of a segment of `length`.
  int64_t Low(int64_t t) const { return window > 0 ? Most(0, t - window + 1) : 0; }
  int64_t High(int64_t t, int64_t length) const {
    if (causal) return t + 1;
    return window > 0 ? Least(length, t + window) : length;
  }
  int64_t TokensPer(int64_t columns) const { return Most(1, columns / group); }
};

template <typename C>
inline Geometry GeometryOf(const TensorView& q, const TensorView& k, const AttentionMask& mask) {
  Geometry g;
  g.num_kv_heads = k.sizes[1];
  g.group = k.sizes[1] == 0 ? 1 : q.sizes[1] / k.sizes[1];
  g.head_dim = q.sizes[2];
  // Multiples of 8 for the transpose, of the vector for the products.
  g.padded_dim = RoundUp(g.head_dim, Most(8, Simd<C>::kWidth));
  g.window = mask.window;
  g.causal = mask.causal != 0;
  return g;
}

// A bump allocator over one piece of a thread's stack: a thread's buffers stay in its caches
// from task to task, and no kernel needs scratch per thread.
struct StackPiece {
  char* next;
  template <typename T>
  T* Take(int64_t count) {
    T* taken = reinterpret_cast<T*>(next);
    next += RoundUp(count * static_cast<int64_t>(sizeof(T)), 64);
    return taken;
  }
};

template <typename S>
inline S* At(const TensorView& view, int64_t token, int64_t head) {
  return static_cast<S*>(view.data) + token * view.strides[0] + head * view.strides[1];
}

// Bounds of the columns of a block, for masking vector by vector.
template <typename C>
struct ColumnBounds {
  using Lane = decltype(typename Simd<C>::Int{}[0] + typename Simd<C>::Int{}[0]);
  alignas(64) Lane low[kColumnBlock];
  alignas(64) Lane high[kColumnBlock];
  int64_t any_low, any_high;  // some column sees a key in [any_low, any_high)
  int64_t all_low, all_high;  // every column sees all keys in [all_low, all_high)

  // Columns [first, first + count) of a chunk that starts at token `token_begin`.
  void Fill(const Geometry& g, int64_t token_begin, int64_t first, int64_t count, int64_t length) {
    any_low = g.Low(token_begin + first / g.group);
    any_high = g.High(token_begin + (first + count - 1) / g.group, length);
    all_low = g.Low(token_begin + (first + count - 1) / g.group);
    all_high = g.High(token_begin + first / g.group, length);
    for (int64_t m = 0; m < kColumnBlock; ++m) {
      const int64_t token = token_begin + (first + Least(m, count - 1)) / g.group;
      low[m] = static_cast<Lane>(g.Low(token));
      high[m] = static_cast<Lane>(g.High(token, length));
    }
  }
  bool SeesNone(int64_t begin, int64_t end) const { return end <= any_low || begin >= any_high; }
  bool SeesAll(int64_t begin, int64_t end) const { return begin >= all_low && end <= all_high; }
};

// scores[k][m] = -infinity where column m does not see key key_begin + k.
template <typename C>
inline void Mask(const ColumnBounds<C>& bounds, int64_t key_begin, int64_t keys, int64_t columns,
                 C* scores) {
  using Vec = typename Simd<C>::Vec;
  using Int = typename Simd<C>::Int;
  const Vec minus_infinity = Splat<C>(-__builtin_inf());
  for (int64_t j = 0; j < columns; j += Simd<C>::kWidth) {
    Int low, high;
    __builtin_memcpy(&low, bounds.low + j, sizeof(low));
    __builtin_memcpy(&high, bounds.high + j, sizeof(high));
    for (int64_t k = 0; k < keys; ++k) {
      const Int key = Int{} + static_cast<typename ColumnBounds<C>::Lane>(key_begin + k);
      C* row = scores + k * kColumnBlock + j;
      const Vec s = Load<C>(row);
      Store(row, ((key >= low) & (key < high)) ? s : minus_infinity);
    }
  }
}

// Rows of keys or values [begin, begin + count) of a segment, packed [count][padded_dim].
template <typename S, typename C>
inline void PackKeys(const TensorView& view, const AttentionTask& task, const Geometry& g,
                     int64_t begin, int64_t count, C* to) {
  for (int64_t k = 0; k < count; ++k)
    CopyRow(At<const S>(view, task.segment_begin + begin + k, task.kv_head), g.head_dim,
            g.padded_dim, C{1}, to + k * g.padded_dim);
}

// Rows of columns [first, first + count) of the chunk at token_begin, packed [kColumnBlock]
// [padded_dim] times `scale`; rows count.. up to a multiple of 8 and of the vector are zero.
template <typename S, typename C>
inline void PackColumns(const TensorView& view, const AttentionTask& task, const Geometry& g,
                        int64_t token_begin, int64_t first, int64_t count, C scale, C* to) {
  const int64_t padded = RoundUp(count, Most(8, Simd<C>::kWidth));
  for (int64_t m = 0; m < padded; ++m) {
    C* row = to + m * g.padded_dim;
    if (m < count) {
      const int64_t token = task.segment_begin + token_begin + (first + m) / g.group;
      const int64_t head = task.kv_head * g.group + (first + m) % g.group;
      CopyRow(At<const S>(view, token, head), g.head_dim, g.padded_dim, scale, row);
    } else {
      for (int64_t d = 0; d < g.padded_dim; ++d) row[d] = C{0};
    }
  }
}

// The inverse: rows to the columns' places in `view`.
template <typename S, typename C>
inline void UnpackColumns(const TensorView& view, const AttentionTask& task, const Geometry& g,
                          int64_t token_begin, int64_t first, int64_t count, const C* from) {
  for (int64_t m = 0; m < count; ++m) {
    const int64_t token = task.segment_begin + token_begin + (first + m) / g.group;
    const int64_t head = task.kv_head * g.group + (first + m) % g.group;
    S* row = At<S>(view, token, head);
    for (int64_t d = 0; d < g.head_dim; ++d) row[d] = static_cast<S>(from[m * g.padded_dim + d]);
  }
}

// --- forward ---------------------------------------------------------------------------------

inline constexpr int64_t kForwardColumns = 256;  // per task, rounded to whole tokens

template <typename S, typename C>
struct ForwardRun {
  const AttentionForwardArgs* args;
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

template <typename S, typename C>
void ForwardRun<S, C>::RunTask(const AttentionTask& task) const {
  using Vec = typename Simd<C>::Vec;
  constexpr int64_t kWidth = Simd<C>::kWidth;
  const Geometry& g = geometry;
  const int64_t dim = g.padded_dim, length = task.segment_length;
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
  }

  const int64_t key_end = g.High(task.token_end - 1, length);
  for (int64_t k0 = g.Low(task.token_begin); k0 < key_end; k0 += kKeyBlock) {
    const int64_t num_keys = Least(kKeyBlock, key_end - k0);
    PackKeys<S>(args->k_TKD, task, g, k0, num_keys, keys);
    PackKeys<S>(args->v_TKD, task, g, k0, num_keys, values);
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t count = Least(kColumnBlock, columns - b * kColumnBlock);
      const int64_t padded = RoundUp(count, kWidth);
      ColumnBounds<C> bounds;
      bounds.Fill(g, task.token_begin, b * kColumnBlock, count, length);
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
    UnpackColumns<S>(args->out_TND, task, g, task.token_begin, first, count, rows);
    if (args->lse_TN.data == nullptr) continue;
    for (int64_t m = 0; m < count; ++m) {
      const int64_t token = task.segment_begin + task.token_begin + (first + m) / g.group;
      const int64_t head = task.kv_head * g.group + (first + m) % g.group;
      *At<C>(args->lse_TN, token, head) = maxima[first + m] + std::log(sums[first + m]);
    }
  }
}

// --- backward --------------------------------------------------------------------------------

// A segment of at most WholeColumns columns per kv head is one task that makes dq, dk and dv with
// five products. Longer ones are cut twice: by columns for dq, by keys for dk and dv, at seven.
// The limit keeps a task's buffers below 4 MB of stack.
inline int64_t WholeColumns(int64_t padded_dim, int64_t element_bytes) {
  return Least(512, (int64_t{256} << 10) / (padded_dim * element_bytes));
}
inline constexpr int64_t kBackwardColumns = 256;
inline constexpr int64_t kBackwardKeys = 256;

template <typename S, typename C>
struct BackwardRun {
  const AttentionBackwardArgs* args;
  Geometry geometry;
  const AttentionTask* tasks;

  static void Task(void* self, int64_t index) {
    const auto* run = static_cast<const BackwardRun*>(self);
    run->RunTask(run->tasks[index]);
  }
  void RunTask(const AttentionTask& task) const;
};

template <typename S, typename C>
void BackwardRun<S, C>::RunTask(const AttentionTask& task) const {
  using Vec = typename Simd<C>::Vec;
  constexpr int64_t kWidth = Simd<C>::kWidth;
  const Geometry& g = geometry;
  const int64_t dim = g.padded_dim, length = task.segment_length;
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
    const int64_t key_begin = Most(task.key_begin, g.Low(t0));
    const int64_t key_end = Least(task.key_end, g.High(t1 - 1, length));
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
        const int64_t token = task.segment_begin + t0 + (first + m) / g.group;
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
        bounds.Fill(g, t0, first, count, length);
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
      UnpackColumns<S>(args->grad_q_TND, task, g, t0, first, count, rows);
    }
  }

  for (int64_t k = 0; k < num_sums; ++k) {
    const int64_t token = task.segment_begin + task.key_begin + k;
    for (int which = 0; which < 2; ++which) {
      const TensorView& view = which == 0 ? args->grad_k_TKD : args->grad_v_TKD;
      if (view.data == nullptr) continue;
      const C* from = (which == 0 ? dk : dv) + k * dim;
      S* to = At<S>(view, token, task.kv_head);
      for (int64_t d = 0; d < g.head_dim; ++d) to[d] = static_cast<S>(from[d]);
    }
  }
}

// --- cutting and running -----------------------------------------------------------------------

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
