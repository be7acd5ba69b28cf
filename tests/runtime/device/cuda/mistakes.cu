// Kernels with a planted mistake each: what the emulated GPU must notice.
#include "runtime/device/cuda/reduce.h"
#include "tests/runtime/device/cuda/mistakes.h"

namespace omni::cuda {
namespace {

constexpr int kRow = 128;
struct Row {
  float at[kRow];
};

// Each block turns its piece of `data` around by way of shared memory.
__global__ void __launch_bounds__(kRow) Reverse(Mistake mistake, float* data, int n) {
  Row& row = BlockShared<Row>();
  const int t = threadIdx.x;
  const int64_t i = int64_t{blockIdx.x} * kRow + t;
  if (mistake == Mistake::kEarlyExit && t == 5) return;
  if (mistake != Mistake::kUnsetShared) row.at[t] = i < n ? data[i] : 0.f;
  if (mistake != Mistake::kMissingBarrier) __syncthreads();
  if (mistake == Mistake::kDivergentBarrier) {
    if (t % 2 == 0)
      __syncthreads();
    else
      row.at[t] += 0.f;
  }
  if (mistake == Mistake::kTwoBarriers) {
    if (t % 2 == 0) {
      __syncthreads();
      row.at[t] += 0.f;
    } else {
      __syncthreads();
    }
  }
  if (mistake == Mistake::kPartialWarp && t % 32 < 16) row.at[t] += WarpSum(1.f);
  if (i < n || mistake == Mistake::kOutOfBounds) data[i] = row.at[kRow - 1 - t];
  if (mistake == Mistake::kGridRace) data[t] = 1.f;  // every block
  if (mistake == Mistake::kMisaligned) StoreVector(data + t, Vector<float>{});
}

}  // namespace

cudaError_t RunReverse(Mistake mistake, float* data, int32_t n, cudaStream_t stream) {
  return Launch(Reverse, {static_cast<unsigned>((n + kRow - 1) / kRow), kRow}, stream, mistake,
                data, n);
}

}  // namespace omni::cuda
