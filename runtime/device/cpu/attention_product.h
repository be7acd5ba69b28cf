// The product that attention is made of, C[i][j] (+)= sum_l A[i][l] B[l][j] with A read by
// broadcast and B by vector, and the copies around it. Included once per SIMD target.
#pragma once

#include "runtime/device/cpu/vector_math.h"

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

}  // namespace omni::cpu::OMNI_SIMD
