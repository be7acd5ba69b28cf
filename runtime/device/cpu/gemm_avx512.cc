// One tile: for each block of depth, B is packed once into panels [depth][32] (256 KB, in L2),
// then A passes by in panels of 12 rows (12 KB, in L1), each against every panel of B:
//
//   12 x 32 sums in 24 registers; per step of depth 2 loads of B, 12 broadcasts of A, 24 FMAs
//
// The bound is the FMA units; packing costs 1/rows and 1/columns of the products. A row-major A
// keeps its rows (read by broadcast, contiguous in depth); a transposed one is packed [depth][12].
#include "runtime/device/cpu/gemm_tile.h"
#include "runtime/device/cpu/vector_math.h"

namespace omni::cpu {
namespace {

using avx512::FloatVec;
using avx512::Fma;
using avx512::Load;
using avx512::Store;
using avx512::Transpose8x8;

constexpr int64_t kDepth = 256, kColumns = 256;  // of a packed block of B
constexpr int kRows = 12, kPanel = 32;           // of the register tile

inline int64_t Least(int64_t a, int64_t b) { return a < b ? a : b; }

// c[r][0..32) = start[r][0..32) + sum_l a[r][l] b[l][0..32). `start` null: from zero.
template <int kNumRows, int64_t kRowStride, int64_t kStep>
[[gnu::always_inline]] inline void Micro(int64_t depth, const float* a, const float* b,
                                         const float* start, int64_t start_stride, float* c,
                                         int64_t ldc) {
  FloatVec sum[kNumRows][2];
#pragma GCC unroll 16
  for (int r = 0; r < kNumRows; ++r) {
    sum[r][0] = start != nullptr ? Load<float>(start + r * start_stride) : FloatVec{};
    sum[r][1] = start != nullptr ? Load<float>(start + r * start_stride + 16) : FloatVec{};
  }
  for (int64_t l = 0; l < depth; ++l) {
    const FloatVec b0 = Load<float>(b), b1 = Load<float>(b + 16);
    b += kPanel;
#pragma GCC unroll 16
    for (int r = 0; r < kNumRows; ++r) {
      const FloatVec x = avx512::Splat(a[r * kRowStride]);
      sum[r][0] = Fma(x, b0, sum[r][0]);
      sum[r][1] = Fma(x, b1, sum[r][1]);
    }
    a += kStep;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kNumRows; ++r) {
    Store(c + r * ldc, sum[r][0]);
    Store(c + r * ldc + 16, sum[r][1]);
  }
}

template <int64_t kRowStride, int64_t kStep>
void Rows(int64_t rows, int64_t depth, const float* a, const float* b, const float* start,
          int64_t start_stride, float* c, int64_t ldc) {
  if (rows == kRows) {
    Micro<kRows, kRowStride, kStep>(depth, a, b, start, start_stride, c, ldc);
    return;
  }
  const auto advance = [&](int64_t n) {
    a += n * kRowStride;
    c += n * ldc;
    if (start != nullptr) start += n * start_stride;
    rows -= n;
  };
  if (rows >= 8) {
    Micro<8, kRowStride, kStep>(depth, a, b, start, start_stride, c, ldc);
    advance(8);
  }
  if (rows >= 4) {
    Micro<4, kRowStride, kStep>(depth, a, b, start, start_stride, c, ldc);
    advance(4);
  }
  if (rows >= 2) {
    Micro<2, kRowStride, kStep>(depth, a, b, start, start_stride, c, ldc);
    advance(2);
  }
  if (rows >= 1) Micro<1, kRowStride, kStep>(depth, a, b, start, start_stride, c, ldc);
}

// B [depth, columns] into panels [depth][32], the last padded with zeros.
void PackB(const float* b, int64_t ldb, bool transposed, int64_t depth, int64_t columns,
           float* to) {
  for (int64_t j = 0; j < columns; j += kPanel, to += depth * kPanel) {
    const int64_t count = Least(kPanel, columns - j);
    if (!transposed) {
      const float* from = b + j;
      for (int64_t l = 0; l < depth; ++l, from += ldb) {
        float* row = to + l * kPanel;
        if (count == kPanel) {
          Store(row, Load<float>(from));
          Store(row + 16, Load<float>(from + 16));
        } else {
          for (int64_t i = 0; i < kPanel; ++i) row[i] = i < count ? from[i] : 0.0f;
        }
      }
      continue;
    }
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
      const float* from = b + (j + i) * ldb;
      int64_t l = 0;
      for (; l + 8 <= depth; l += 8) Transpose8x8(from + l, ldb, to + l * kPanel + i, kPanel);
      for (; l < depth; ++l)
        for (int64_t k = 0; k < 8; ++k) to[l * kPanel + i + k] = from[k * ldb + l];
    }
    for (; i < kPanel; ++i)
      for (int64_t l = 0; l < depth; ++l)
        to[l * kPanel + i] = i < count ? b[(j + i) * ldb + l] : 0.0f;
  }
}

// Rows of A [rows <= 12, depth]: as they are, or [depth][12] if A is stored transposed.
void PackA(const float* a, int64_t lda, bool transposed, int64_t rows, int64_t depth, float* to) {
  if (!transposed) {
    for (int64_t r = 0; r < rows; ++r) {
      const float* from = a + r * lda;
      float* row = to + r * kDepth;
      int64_t l = 0;
      for (; l + 16 <= depth; l += 16) Store(row + l, Load<float>(from + l));
      for (; l < depth; ++l) row[l] = from[l];
    }
    return;
  }
  for (int64_t l = 0; l < depth; ++l, a += lda, to += kRows) {
    if (rows == kRows) {
      __builtin_memcpy(to, a, kRows * sizeof(float));
    } else {
      for (int64_t r = 0; r < rows; ++r) to[r] = a[r];
    }
  }
}

}  // namespace

void RunGemmTileAvx512(const GemmTile& t) {
  // On the stack, so that a thread's buffers stay in its caches from tile to tile.
  alignas(64) float packed_b[kDepth * kColumns];
  alignas(64) float packed_a[kRows * kDepth];
  alignas(64) float edge[kRows * kPanel];
  for (int64_t j0 = 0; j0 < t.columns; j0 += kColumns) {
    const int64_t columns = Least(kColumns, t.columns - j0);
    for (int64_t l0 = 0; l0 < t.depth; l0 += kDepth) {
      const int64_t depth = Least(kDepth, t.depth - l0);
      PackB(t.b_transposed ? t.b + j0 * t.ldb + l0 : t.b + l0 * t.ldb + j0, t.ldb, t.b_transposed,
            depth, columns, packed_b);
      const bool adds = t.accumulate || l0 > 0;
      for (int64_t i = 0; i < t.rows; i += kRows) {
        const int64_t rows = Least(kRows, t.rows - i);
        PackA(t.a_transposed ? t.a + l0 * t.lda + i : t.a + i * t.lda + l0, t.lda, t.a_transposed,
              rows, depth, packed_a);
        for (int64_t j = 0; j < columns; j += kPanel) {
          const float* b = packed_b + j * depth;
          float* c = t.c + i * t.ldc + j0 + j;
          int64_t ldc = t.ldc;
          const float* start = adds ? c : t.bias != nullptr ? t.bias + j0 + j : nullptr;
          int64_t start_stride = adds ? ldc : 0;
          const int64_t count = Least(kPanel, columns - j);
          float* to = c;
          if (count < kPanel) {  // the last columns go by way of a whole tile
            for (int64_t r = 0; r < rows; ++r)
              for (int64_t k = 0; k < kPanel; ++k)
                edge[r * kPanel + k] =
                    start != nullptr && k < count ? start[r * start_stride + k] : 0.0f;
            start = edge;
            start_stride = kPanel;
            to = edge;
            ldc = kPanel;
          }
          if (t.a_transposed)
            Rows<1, kRows>(rows, depth, packed_a, b, start, start_stride, to, ldc);
          else
            Rows<kDepth, 1>(rows, depth, packed_a, b, start, start_stride, to, ldc);
          if (count < kPanel)
            for (int64_t r = 0; r < rows; ++r)
              for (int64_t k = 0; k < count; ++k) c[r * t.ldc + k] = edge[r * kPanel + k];
        }
      }
    }
  }
}

}  // namespace omni::cpu
