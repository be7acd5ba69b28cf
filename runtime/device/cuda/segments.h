// Segments of rows, and of the rows that come of them, found on the device.
#pragma once

#include "runtime/device/cuda/kernel.h"

namespace omni::cuda {

struct Segments {
  const int32_t *in, *out;  // [count + 1]
  int32_t count;
  // The one that has row `at` of `cu`.
  __device__ int32_t Find(const int32_t* cu, int64_t at) const {
    int32_t low = 0, high = count;  // cu[low] <= at < cu[high]
    while (high - low > 1) {
      const int32_t middle = (low + high) / 2;
      if (cu[middle] <= at)
        low = middle;
      else
        high = middle;
    }
    return low;
  }
};
inline Segments SegmentsOf(const TensorView& cu_seqlens, const TensorView& cu_outlens) {
  return {static_cast<const int32_t*>(cu_seqlens.data),
          static_cast<const int32_t*>(cu_outlens.data),
          static_cast<int32_t>(cu_seqlens.sizes[0] - 1)};
}

}  // namespace omni::cuda
