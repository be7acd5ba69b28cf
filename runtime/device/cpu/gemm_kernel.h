// The product of one tile (gemm_tile.h) on vectors of the target's width. Included once per target
// (gemm_avx2.cc, gemm_avx512.cc) and nowhere else.
//
// For each block of depth, B is packed once into panels [depth][two vectors] (256 KB, in L2), then
// A passes by in panels of kRows rows (6 or 12 KB, in L1), each against every panel of B:
//
//   AVX2      6 x 16 sums in 12 registers; per step of depth 2 loads of B,  6 broadcasts of A, 12
//   FMAs AVX-512  12 x 32 sums in 24 registers; per step of depth 2 loads of B, 12 broadcasts of A,
//   24 FMAs
//
// The bound is the FMA units; packing costs 1/rows of the products. A row-major A is read where it
// lies, by broadcast, the next panel being prefetched; a transposed one is packed [depth][kRows],
// 96 rows at a time, which costs 1/columns. Each element of C is one chain of FMAs in the order of
// depth, however the product is cut and whatever the target.
#pragma once

#include "runtime/device/cpu/gemm_tile.h"
#include "runtime/device/cpu/vector_math.h"

namespace omni::cpu::OMNI_SIMD {

inline constexpr int kWidth = Simd<float>::kWidth;
inline constexpr int64_t kDepth = 256, kColumns = 256;                           // of a packed B
inline constexpr int kRows = OMNI_SIMD_IS_AVX512 ? 12 : 6, kPanel = 2 * kWidth;  // of the sums
inline constexpr int64_t kBlockRows = 96;  // of a transposed A are packed together
inline constexpr int64_t kAhead = 8;       // rows that packing prefetches ahead
inline constexpr int64_t kLine = 16;       // floats of a cache line

// Floats from one packed panel of A to the next: whole vectors are stored where kRows count.
constexpr int64_t PanelStride(int64_t depth) { return kRows * depth + kWidth; }

inline int64_t Least(int64_t a, int64_t b) { return a < b ? a : b; }

// The first `count` <= kPanel columns of a panel.
struct Columns {
#if OMNI_SIMD_IS_AVX512
  explicit Columns(int64_t count)
      : mask{static_cast<__mmask16>(~0u >> (32 - count) & 0xffff),
             static_cast<__mmask16>(count > 16 ? ~0u >> (48 - count) & 0xffff : 0)} {}
  FloatVec Load(const float* from, int v) const {
    return (FloatVec)_mm512_maskz_loadu_ps(mask[v], from);
  }
  void Store(float* to, int v, FloatVec x) const { _mm512_mask_storeu_ps(to, mask[v], (__m512)x); }
  __mmask16 mask[2];
#else
  explicit Columns(int64_t count) {
    alignas(32) static constexpr int32_t kOnes[32] = {-1, -1, -1, -1, -1, -1, -1, -1,
                                                      -1, -1, -1, -1, -1, -1, -1, -1};
    for (int v = 0; v < 2; ++v)
      mask[v] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kOnes + 16 - count + 8 * v));
  }
  FloatVec Load(const float* from, int v) const {
    return (FloatVec)_mm256_maskload_ps(from, mask[v]);
  }
  void Store(float* to, int v, FloatVec x) const { _mm256_maskstore_ps(to, mask[v], (__m256)x); }
  __m256i mask[2];
#endif
};

// Up to kRows rows of A: packed [depth][kRows], or `stride` apart, each contiguous in depth.
struct RowsOfA {
  const float* data;
  int64_t count, stride;
};

// Where the sums of these rows start and end. `start` null: from zero.
struct Sums {
  const float* start;
  int64_t start_stride;
  float* c;
  int64_t ldc;
};

// c[r][j] = start[r][j] + sum_l a[r][l] b[l][j] for the kVectors first vectors of columns j of a
// panel, of the masked ones if kMasked.
template <int kNumRows, int kVectors, bool kMasked, bool kPacked>
[[gnu::always_inline]] inline void Micro(int64_t depth, const RowsOfA& a, const float* b,
                                         const Sums& sums, const Columns& columns) {
  FloatVec sum[kNumRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kNumRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const float* from = sums.start + r * sums.start_stride + kWidth * v;
      if (sums.start == nullptr)
        sum[r][v] = FloatVec{};
      else
        sum[r][v] = kMasked ? columns.Load(from, v) : Load(from);
    }
  if (!kMasked) {  // the next sums of these rows
#pragma GCC unroll 16
    for (int r = 0; r < kNumRows; ++r)
#pragma GCC unroll 2
      for (int line = 0; line < kPanel; line += kLine)
        __builtin_prefetch(sums.c + r * sums.ldc + kPanel + line, 1);
  }
  // One pointer for three rows: [p], [p + s], [p + 2 s] are addressing modes.
  const int64_t stride = kPacked ? 1 : a.stride;
  constexpr int kPointers = (kNumRows + 2) / 3;
  const float* rows[kPointers];
#pragma GCC unroll 4
  for (int i = 0; i < kPointers; ++i) rows[i] = a.data + 3 * i * stride;
  for (int64_t l = 0; l < depth; ++l) {
    FloatVec row[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) row[v] = Load(b + kWidth * v);
    b += kPanel;
#pragma GCC unroll 16
    for (int r = 0; r < kNumRows; ++r) {
      const FloatVec x = Splat(rows[r / 3][(r % 3) * stride]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[r][v] = Fma(x, row[v], sum[r][v]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kPointers; ++i) rows[i] += kPacked ? kRows : 1;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kNumRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      float* to = sums.c + r * sums.ldc + kWidth * v;
      if (kMasked)
        columns.Store(to, v, sum[r][v]);
      else
        Store(to, sum[r][v]);
    }
}

template <int kVectors, bool kMasked, bool kPacked>
void AnyRows(int64_t depth, RowsOfA a, const float* b, Sums sums, const Columns& columns) {
  if (a.count == kRows) {
    Micro<kRows, kVectors, kMasked, kPacked>(depth, a, b, sums, columns);
    return;
  }
  const auto advance = [&](int64_t n) {
    a.data += n * (kPacked ? 1 : a.stride);
    a.count -= n;
    sums.c += n * sums.ldc;
    if (sums.start != nullptr) sums.start += n * sums.start_stride;
  };
  if (kRows > 8 && a.count >= 8) {
    Micro<8, kVectors, kMasked, kPacked>(depth, a, b, sums, columns);
    advance(8);
  }
  if (a.count >= 4) {
    Micro<4, kVectors, kMasked, kPacked>(depth, a, b, sums, columns);
    advance(4);
  }
  if (a.count >= 2) {
    Micro<2, kVectors, kMasked, kPacked>(depth, a, b, sums, columns);
    advance(2);
  }
  if (a.count >= 1) Micro<1, kVectors, kMasked, kPacked>(depth, a, b, sums, columns);
}

// Rows of A against all panels of B. `more`: further rows of A follow in place.
template <bool kPacked>
void AllPanels(int64_t columns, int64_t depth, const RowsOfA& a, bool more, const float* b,
               Sums sums) {
  const Columns all(kPanel);
  int64_t j = 0;
  for (; j + kPanel <= columns; j += kPanel, b += depth * kPanel) {
    if (more && j < depth) {  // as much of each row of the next panel
#pragma GCC unroll 16
      for (int64_t r = kRows; r < 2 * kRows; ++r)
#pragma GCC unroll 2
        for (int line = 0; line < kPanel; line += kLine)
          __builtin_prefetch(a.data + r * a.stride + j + line);
    }
    AnyRows<2, false, kPacked>(depth, a, b, sums, all);
    sums.c += kPanel;
    if (sums.start != nullptr) sums.start += kPanel;
  }
  if (j == columns) return;
  const Columns last(columns - j);
  if (columns - j > kWidth)
    AnyRows<2, true, kPacked>(depth, a, b, sums, last);
  else
    AnyRows<1, true, kPacked>(depth, a, b, sums, last);
}

// B [depth, kPanels * kPanel] into whole panels, row by row.
template <int kPanels>
void PackPanels(const float* b, int64_t ldb, int64_t depth, float* to) {
  for (int64_t l = 0; l < depth; ++l, b += ldb, to += kPanel) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 2
      for (int line = 0; line < kPanel; line += kLine)
        __builtin_prefetch(b + kAhead * ldb + p * kPanel + line);
      Store(to + p * depth * kPanel, Load(b + p * kPanel));
      Store(to + p * depth * kPanel + kWidth, Load(b + p * kPanel + kWidth));
    }
  }
}

// B stored [columns <= kPanel, depth] into a panel, padded with zeros.
inline void PackTransposedPanel(const float* b, int64_t ldb, int64_t depth, int64_t columns,
                                float* to) {
  int64_t i = 0;
  for (; i + 8 <= columns; i += 8) {
    const float* from = b + i * ldb;
    int64_t l = 0;
    for (; l + 8 <= depth; l += 8) {
      if (l % 16 == 0)
        for (int r = 8; r < 16; ++r) __builtin_prefetch(from + r * ldb + l);
      Transpose8x8(from + l, ldb, to + l * kPanel + i, kPanel);
    }
    for (; l < depth; ++l)
      for (int64_t k = 0; k < 8; ++k) to[l * kPanel + i + k] = from[k * ldb + l];
  }
  for (; i < kPanel; ++i)
    for (int64_t l = 0; l < depth; ++l) to[l * kPanel + i] = i < columns ? b[i * ldb + l] : 0.0f;
}

// B [depth, columns] into panels [depth][kPanel], the last padded with zeros.
inline void PackB(const float* b, int64_t ldb, bool transposed, int64_t depth, int64_t columns,
                  float* to) {
  int64_t j = 0;
  if (!transposed) {
    for (; j + 4 * kPanel <= columns; j += 4 * kPanel)
      PackPanels<4>(b + j, ldb, depth, to + j * depth);
    for (; j + kPanel <= columns; j += kPanel) PackPanels<1>(b + j, ldb, depth, to + j * depth);
    to += j * depth;
    for (int64_t l = 0; j < columns && l < depth; ++l, to += kPanel)
      for (int64_t i = 0; i < kPanel; ++i) to[i] = j + i < columns ? b[l * ldb + j + i] : 0.0f;
    return;
  }
  for (; j < columns; j += kPanel)
    PackTransposedPanel(b + j * ldb, ldb, depth, Least(kPanel, columns - j), to + j * depth);
}

// A stored [depth, rows <= kBlockRows] into panels [depth][kRows].
inline void PackTransposedA(const float* a, int64_t lda, int64_t rows, int64_t depth, float* to) {
  for (int64_t l = 0; l < depth; ++l, a += lda, to += kRows) {
    float* panel = to;
    int64_t r = 0;
    for (int64_t line = 0; line < rows; line += kLine) __builtin_prefetch(a + kAhead * lda + line);
    for (; r + kWidth <= rows; r += kRows, panel += PanelStride(depth)) Store(panel, Load(a + r));
    for (; r < rows; r += kRows, panel += PanelStride(depth))
      for (int64_t i = 0; i < Least(kRows, rows - r); ++i) panel[i] = a[r + i];
  }
}

inline void RunGemmTile(const GemmTile& t) {
  // On the stack, so that a thread's buffers stay in its caches from tile to tile.
  alignas(64) float packed_b[kDepth * kColumns];
  alignas(64) float packed_a[kBlockRows / kRows * PanelStride(kDepth)];
  for (int64_t j0 = 0; j0 < t.columns; j0 += kColumns) {
    const int64_t columns = Least(kColumns, t.columns - j0);
    for (int64_t l0 = 0; l0 < t.depth; l0 += kDepth) {
      const int64_t depth = Least(kDepth, t.depth - l0);
      PackB(t.b_transposed ? t.b + j0 * t.ldb + l0 : t.b + l0 * t.ldb + j0, t.ldb, t.b_transposed,
            depth, columns, packed_b);
      const bool adds = t.accumulate || l0 > 0;
      for (int64_t i = 0; i < t.rows; i += kRows) {
        if (t.a_transposed && i % kBlockRows == 0)
          PackTransposedA(t.a + l0 * t.lda + i, t.lda, Least(kBlockRows, t.rows - i), depth,
                          packed_a);
        float* c = t.c + i * t.ldc + j0;
        const Sums sums{.start = adds                ? c
                                 : t.bias != nullptr ? t.bias + j0
                                                     : nullptr,
                        .start_stride = adds ? t.ldc : 0,
                        .c = c,
                        .ldc = t.ldc};
        const int64_t count = Least(kRows, t.rows - i);
        if (t.a_transposed)
          AllPanels<true>(columns, depth,
                          {packed_a + i % kBlockRows / kRows * PanelStride(depth), count, 1}, false,
                          packed_b, sums);
        else
          AllPanels<false>(columns, depth, {t.a + i * t.lda + l0, count, t.lda}, i + kRows < t.rows,
                           packed_b, sums);
      }
    }
  }
}

}  // namespace omni::cpu::OMNI_SIMD
