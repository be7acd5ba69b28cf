// The online softmax over a row that a block works on.
#pragma once

#include "runtime/device/cuda/math.h"
#include "runtime/device/cuda/reduce.h"

namespace omni::cuda {

// Of some classes: the largest, the sum of exponentials under it, and where (the lowest among
// equals).
template <typename C>
struct Online {
  C top = -INFINITY, sum = 0;
  int32_t argmax = 0x7fffffff;
};
template <typename C>
__device__ __forceinline__ Online<C> Join(const Online<C>& a, const Online<C>& b) {
  Online<C> joined;
  joined.top = b.top > a.top ? b.top : a.top;
  joined.sum = 0;
  if (a.sum > C{0}) joined.sum += a.sum * Exp(a.top - joined.top);
  if (b.sum > C{0}) joined.sum += b.sum * Exp(b.top - joined.top);
  joined.argmax = a.top > b.top   ? a.argmax
                  : b.top > a.top ? b.argmax
                                  : (a.argmax < b.argmax ? a.argmax : b.argmax);
  return joined;
}
// To every thread. One barrier: a block calls it once.
template <typename C>
__device__ __forceinline__ Online<C> BlockJoin(Online<C> part) {
  struct WarpParts {
    C top[kThreads / 32], sum[kThreads / 32];
    int32_t argmax[kThreads / 32];
  };
  WarpParts& parts = BlockShared<WarpParts>();
  const auto join = [](const Online<C>& a, const Online<C>& b) { return Join(a, b); };
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  part = WarpReduce(part, join);
  if (lane == 0) {
    parts.top[warp] = part.top;
    parts.sum[warp] = part.sum;
    parts.argmax[warp] = part.argmax;
  }
  __syncthreads();
  part = Online<C>();
  if (lane < kThreads / 32) {
    part.top = parts.top[lane];
    part.sum = parts.sum[lane];
    part.argmax = parts.argmax[lane];
  }
  return WarpReduce(part, join);
}
template <typename C>
__device__ __forceinline__ Online<C> BlockSoftmax(const C* logits, int64_t classes) {
  Online<C> part;
  for (int64_t i = threadIdx.x; i < classes; i += kThreads)
    part = Join(part, Online<C>{logits[i], C{1}, static_cast<int32_t>(i)});
  return BlockJoin(part);
}

}  // namespace omni::cuda
