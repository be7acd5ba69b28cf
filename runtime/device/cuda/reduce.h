// Sums and the like over a warp, a team of threads and a block, in an order that never changes.
#pragma once

#include "runtime/device/cuda/kernel.h"

namespace omni::cuda {

inline constexpr unsigned kFullWarp = 0xffffffffu;

// join over the values of a warp's lanes, in the order of a butterfly (the same for every lane if
// join commutes), to every lane. T is plain data of up to 24 bytes.
template <typename T, typename Join>
__device__ __forceinline__ T WarpReduce(T value, const Join& join) {
#if OMNI_EMULATED
  return emulated::WarpReduce(value, join);  // all at once, where steps would each switch threads
#else
  static_assert(sizeof(T) % 4 == 0 && sizeof(T) <= 24);
  constexpr int kWords = sizeof(T) / 4;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    union Words {
      __device__ Words() {}
      T value;
      uint32_t at[kWords];
    } mine, other;
    mine.value = value;
#pragma unroll
    for (int i = 0; i < kWords; ++i) other.at[i] = __shfl_xor_sync(kFullWarp, mine.at[i], step);
    value = join(value, other.value);
  }
  return value;
#endif
}
template <typename C>
__device__ __forceinline__ C WarpSum(C x) {
  return WarpReduce(x, [](C a, C b) { return a + b; });
}

// Sum over a block of kThreads, to every thread. Two barriers.
template <typename C>
__device__ __forceinline__ C BlockSum(C x) {
  struct Parts {
    C of_warp[kThreads / 32];
  };
  Parts& parts = BlockShared<Parts>();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  x = WarpSum(x);
  if (lane == 0) parts.of_warp[warp] = x;
  __syncthreads();
  x = WarpSum(lane < kThreads / 32 ? parts.of_warp[lane] : C{0});
  __syncthreads();  // the parts may be overwritten now
  return x;
}

// Of the team of kTeam threads (a warp, or the block) that works on one row.
template <int kTeam, typename C>
__device__ __forceinline__ C TeamSum(C x) {
  static_assert(kTeam == 32 || kTeam == kThreads);
  if constexpr (kTeam == 32)
    return WarpSum(x);
  else
    return BlockSum(x);
}

}  // namespace omni::cuda
