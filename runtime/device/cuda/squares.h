// The sum of squares of a flat range, in fp64: a block for each chunk, then one block for the
// chunks.
#pragma once

#include "runtime/device/cuda/reduce.h"

namespace omni::cuda {

inline constexpr int64_t kChunkOfSquares = 16384;

inline int64_t SquaresScratch(int64_t count) {
  return (count + kChunkOfSquares - 1) / kChunkOfSquares * static_cast<int64_t>(sizeof(double));
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    ChunkSquares(const T* x, int64_t count, double* partial) {
  const int64_t begin = int64_t{blockIdx.x} * kChunkOfSquares;
  double sum = 0;
  for (int64_t i = begin + threadIdx.x; i < begin + kChunkOfSquares && i < count; i += kThreads)
    sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  sum = BlockSum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}
// A template, so that a header may have it.
template <typename C>
__global__ void __launch_bounds__(kThreads) AddChunks(const C* partial, int64_t chunks, C* out) {
  C sum = 0;
  for (int64_t i = threadIdx.x; i < chunks; i += kThreads) sum += partial[i];
  sum = BlockSum(sum);
  if (threadIdx.x == 0) *out = sum;
}

// `partial`: SquaresScratch bytes.
template <typename T>
cudaError_t SumSquares(const T* x, int64_t count, double* out, double* partial,
                       cudaStream_t stream) {
  const int64_t chunks = (count + kChunkOfSquares - 1) / kChunkOfSquares;
  const cudaError_t error =
      Launch(ChunkSquares<T>, {static_cast<unsigned>(chunks), kThreads}, stream, x, count, partial);
  if (error != cudaSuccess) return error;
  return Launch(AddChunks<double>, {1, kThreads}, stream, static_cast<const double*>(partial),
                chunks, out);
}

}  // namespace omni::cuda
