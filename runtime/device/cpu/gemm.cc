// The bound is the FMA units: 2 m n k FLOPs. Each tile packs its operands again, which costs
// 1 / (2 tile_n) + 1 / (2 tile_m) of the products, hence tiles no smaller than need be.
#include "runtime/device/cpu/gemm.h"

#include <cblas.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "runtime/device/cpu/gemm_tile.h"

// A serial OpenBLAS looks for a free work buffer and then marks it as used, without a lock in
// between (0.3.21, built without USE_LOCKING): two products that start at the same moment on two
// threads may get the same buffer and both come out wrong. The linker's --wrap (cmake/
// Dependencies.cmake) brings every such call here. Giving a buffer back is one store and needs
// no lock.
extern "C" {
void* __real_blas_memory_alloc(int position);
void* __wrap_blas_memory_alloc(int position);
}
void* __wrap_blas_memory_alloc(int position) {
  static std::atomic_flag is_taken;  // held for some nanoseconds
  while (is_taken.test_and_set(std::memory_order_acquire)) __builtin_ia32_pause();
  void* const buffer = __real_blas_memory_alloc(position);
  is_taken.clear(std::memory_order_release);
  return buffer;
}

namespace omni::cpu {
namespace {

void Multiply(const Gemm<float>& g) {
  cblas_sgemm(CblasRowMajor, g.a_transposed ? CblasTrans : CblasNoTrans,
              g.b_transposed ? CblasTrans : CblasNoTrans, g.m, g.n, g.k, 1.0f, g.a, g.lda, g.b,
              g.ldb, g.accumulate ? 1.0f : 0.0f, g.c, g.ldc);
}
void Multiply(const Gemm<double>& g) {
  cblas_dgemm(CblasRowMajor, g.a_transposed ? CblasTrans : CblasNoTrans,
              g.b_transposed ? CblasTrans : CblasNoTrans, g.m, g.n, g.k, 1.0, g.a, g.lda, g.b,
              g.ldb, g.accumulate ? 1.0 : 0.0, g.c, g.ldc);
}

constexpr int64_t kFlopsPerTile = int64_t{1} << 25;
constexpr int64_t kMinTile = 48, kMaxTiles = 64;

struct Tiling {
  int64_t rows, columns;
};

// Halves the longer side until tiles have kFlopsPerTile, or there are kMaxTiles.
Tiling CutByShape(int64_t m, int64_t n, int64_t k) {
  int64_t row_cuts = 1, column_cuts = 1;
  const auto flops = [&] {
    return 2 * CeilDiv(m, row_cuts) * CeilDiv(n, column_cuts) * AtLeast(k, 1);
  };
  while (flops() >= 2 * kFlopsPerTile && row_cuts * column_cuts < kMaxTiles) {
    const int64_t rows = CeilDiv(m, row_cuts), columns = CeilDiv(n, column_cuts);
    if (rows < 2 * kMinTile && columns < 2 * kMinTile) break;
    (rows >= columns ? row_cuts : column_cuts) *= 2;
  }
  // Even a small product is cut in two, if that leaves each thread some microseconds.
  if (row_cuts * column_cuts == 1 && flops() >= (int64_t{1} << 20))
    (m >= n ? row_cuts : column_cuts) = 2;
  const auto round_up = [](int64_t x) { return CeilDiv(x, 48) * 48; };
  return {round_up(CeilDiv(m, row_cuts)), round_up(CeilDiv(n, column_cuts))};
}

// For our AVX-512 kernel: columns in blocks of 256, as it packs them, and rows up to 504, so that
// packing costs little, but no fewer than 12 tiles as long as they are worth a task. Columns are
// kept longest where packing A is the dearer half.
Tiling CutWide(int64_t m, int64_t n, int64_t k, bool a_transposed) {
  constexpr int64_t kWideFlops = int64_t{1} << 22;
  int64_t rows = AtMost(504, CeilDiv(m, 12) * 12), columns = AtMost(256, CeilDiv(n, 32) * 32);
  while (CeilDiv(m, rows) * CeilDiv(n, columns) < 12 && 2 * rows * columns * k >= kWideFlops) {
    if ((a_transposed ? 2 * rows : rows) >= columns && rows > 48)
      rows = CeilDiv(CeilDiv(rows, 2), 12) * 12;
    else if (columns > 64)
      columns = CeilDiv(columns / 2, 32) * 32;
    else
      break;
  }
  return {rows, columns};
}

// For our AVX2 kernel: even tiles of at most 258 x 256, its blocks of packed columns. Larger ones
// would pack less, but then there are too few for many threads, and those are no faster on two.
Tiling CutForAvx2(int64_t m, int64_t n, int64_t k) {
  constexpr int64_t kWorthATask = int64_t{1} << 22;  // FLOPs
  const auto even = [](int64_t count, int64_t most, int64_t multiple) {
    return CeilDiv(CeilDiv(count, CeilDiv(count, most)), multiple) * multiple;
  };
  int64_t rows = even(m, 258, 6), columns = even(n, 256, 16);
  while (CeilDiv(m, rows) * CeilDiv(n, columns) < 12 && 2 * rows * columns * k >= kWorthATask) {
    if (rows >= columns && rows > 48)
      rows = even(rows, CeilDiv(rows, 2), 6);
    else if (columns > 64)
      columns = even(columns, CeilDiv(columns, 2), 16);
    else
      break;
  }
  return {rows, columns};
}

// How one product is cut.
template <typename C>
struct Cut {
  explicit Cut(const Gemm<C>& g)
      : kernel(std::is_same_v<C, float> && g.k > 0 ? g.kernel : ProductKernel::kOpenBlas),
        tile(TilingOf(kernel, g)),
        column_tiles(CeilDiv(g.n, tile.columns)),
        num_tiles(CeilDiv(g.m, tile.rows) * column_tiles) {}

  static Tiling TilingOf(ProductKernel kernel, const Gemm<C>& g) {
    if (kernel == ProductKernel::kAvx512) return CutWide(g.m, g.n, g.k, g.a_transposed);
    if (kernel == ProductKernel::kAvx2) return CutForAvx2(g.m, g.n, g.k);
    return CutByShape(g.m, g.n, g.k);
  }

  ProductKernel kernel;
  Tiling tile;
  int64_t column_tiles, num_tiles;
};

template <typename C>
void RunTile(const Gemm<C>& g, const Cut<C>& cut, int64_t index) {
  const int64_t i = index / cut.column_tiles * cut.tile.rows;
  const int64_t j = index % cut.column_tiles * cut.tile.columns;
  Gemm<C> t = g;
  t.m = AtMost(cut.tile.rows, g.m - i);
  t.n = AtMost(cut.tile.columns, g.n - j);
  t.a += g.a_transposed ? i : i * g.lda;
  t.b += g.b_transposed ? j * g.ldb : j;
  t.c += i * g.ldc + j;
  if constexpr (std::is_same_v<C, float>) {
    if (cut.kernel != ProductKernel::kOpenBlas) {
      const auto run = cut.kernel == ProductKernel::kAvx512 ? &RunGemmTileAvx512 : &RunGemmTileAvx2;
      run({.rows = t.m,
           .columns = t.n,
           .depth = t.k,
           .a = t.a,
           .lda = t.lda,
           .a_transposed = t.a_transposed,
           .b = t.b,
           .ldb = t.ldb,
           .b_transposed = t.b_transposed,
           .c = t.c,
           .ldc = t.ldc,
           .accumulate = t.accumulate,
           .bias = g.bias == nullptr ? nullptr : g.bias + j});
      return;
    }
  }
  if (g.bias != nullptr || (g.k == 0 && !g.accumulate)) {
    for (int64_t r = 0; r < t.m; ++r) {
      if (g.bias != nullptr)
        std::memcpy(t.c + r * t.ldc, g.bias + j, t.n * sizeof(C));
      else
        std::memset(t.c + r * t.ldc, 0, t.n * sizeof(C));
    }
    t.accumulate = true;
  }
  if (g.k > 0) Multiply(t);
}

}  // namespace

template <typename C>
void RunGemm(const KernelContext& context, const Gemm<C>& g) {
  if (g.m == 0 || g.n == 0) return;
  const Cut<C> cut(g);
  ForEachTask(context, cut.num_tiles, [&](int64_t task) { RunTile(g, cut, task); });
}

template <typename C>
void RunGemms(const KernelContext& context, const Gemm<C>* gemms, int64_t count,
              int64_t* first_tasks) {
  first_tasks[0] = 0;
  for (int64_t i = 0; i < count; ++i) {
    const bool is_empty = gemms[i].m == 0 || gemms[i].n == 0;
    first_tasks[i + 1] = first_tasks[i] + (is_empty ? 0 : Cut<C>(gemms[i]).num_tiles);
  }
  ForEachTask(context, first_tasks[count], [&](int64_t task) {
    const int64_t i = std::upper_bound(first_tasks, first_tasks + count, task) - first_tasks - 1;
    RunTile(gemms[i], Cut<C>(gemms[i]), task - first_tasks[i]);
  });
}

template void RunGemm<float>(const KernelContext&, const Gemm<float>&);
template void RunGemm<double>(const KernelContext&, const Gemm<double>&);
template void RunGemms<float>(const KernelContext&, const Gemm<float>*, int64_t, int64_t*);
template void RunGemms<double>(const KernelContext&, const Gemm<double>*, int64_t, int64_t*);

}  // namespace omni::cpu
