// Kernels with a planted mistake each (mistakes.cu).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace omni::cuda {

enum class Mistake {
  kNone,
  kMissingBarrier,
  kGridRace,
  kOutOfBounds,
  kMisaligned,
  kDivergentBarrier,
  kTwoBarriers,
  kEarlyExit,
  kPartialWarp,
  kUnsetShared
};
// Turns each 128 floats of data [n] around.
cudaError_t RunReverse(Mistake mistake, float* data, int32_t n, cudaStream_t stream);

}  // namespace omni::cuda
