// Sums of columns in two stages, in an order that never changes: of kRows rows each, then of those.
#pragma once

#include "runtime/device/cuda/kernel.h"

namespace omni::cuda {

inline constexpr int64_t kRowsOfSum = 256;

template <typename C>
int64_t ColumnSumsScratch(const TensorView& x) {
  const int64_t chunks = (NumRowsOf(x) + kRowsOfSum - 1) / kRowsOfSum;
  return chunks * WidthOf(x) * static_cast<int64_t>(sizeof(C));
}

// partial [chunks, width]. A block for 32 columns of a chunk: a warp takes every eighth row.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    SumChunks(const __grid_constant__ Matrix<const T> x, int64_t rows, int64_t width,
              ComputeOf<T>* partial) {
  using C = ComputeOf<T>;
  struct Sums {
    C at[kThreads / 32][32];
  };
  Sums& sums = BlockShared<Sums>();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t column = int64_t{blockIdx.x} * 32 + lane, first = int64_t{blockIdx.y} * kRowsOfSum;
  const int64_t end = first + kRowsOfSum < rows ? first + kRowsOfSum : rows;
  C sum{0};
  if (column < width)
    for (int64_t r = first + warp; r < end; r += kThreads / 32) sum += Wide(x.row(r)[column]);
  sums.at[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || column >= width) return;
  for (int w = 1; w < kThreads / 32; ++w) sum += sums.at[w][lane];
  partial[blockIdx.y * width + column] = sum;
}
template <typename C>
__global__ void __launch_bounds__(kThreads)
    AddSumsOfChunks(const C* partial, int64_t chunks, int64_t width, C* to) {
  const int64_t column = ThreadNumber();
  if (column >= width) return;
  C sum{0};
  for (int64_t c = 0; c < chunks; ++c) sum += partial[c * width + column];
  to[column] += sum;
}

// to[column] += sum of x's column. `partial`: ColumnSumsScratch bytes.
template <typename T>
cudaError_t AddColumnSums(const TensorView& x, ComputeOf<T>* to, void* partial,
                          cudaStream_t stream) {
  using C = ComputeOf<T>;
  const int64_t rows = NumRowsOf(x), width = WidthOf(x);
  const int64_t chunks = (rows + kRowsOfSum - 1) / kRowsOfSum;
  if (chunks == 0) return cudaSuccess;
  const cudaError_t error = Launch(
      SumChunks<T>,
      {dim3(static_cast<unsigned>((width + 31) / 32), static_cast<unsigned>(chunks)), kThreads},
      stream, MatrixOf<const T>(x), rows, width, static_cast<C*>(partial));
  if (error != cudaSuccess) return error;
  return Launch(AddSumsOfChunks<C>, ThreadEach(width), stream, static_cast<const C*>(partial),
                chunks, width, to);
}

}  // namespace omni::cuda
