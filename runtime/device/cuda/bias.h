// A vector added to each row of a matrix, where the product can't do it.
#pragma once

#include "runtime/device/cuda/map.h"

namespace omni::cuda {

template <typename Y, typename B>
struct AddBiasTo {
  template <typename T, int kCount>
  struct Body {
    Matrix<Y> y;
    const B* bias;
    __device__ void operator()(int64_t row, int64_t column) const {
      Y values[kCount];
      LoadElements(y.row(row) + column, values);
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        values[i] = Narrow<Y>(Wide(values[i]) + static_cast<ComputeOf<Y>>(Wide(bias[column + i])));
      StoreElements(y.row(row) + column, values);
    }
  };
};

// y [rows, width] += bias [width].
template <typename Y, typename B>
cudaError_t AddBias(const TensorView& y, const TensorView& bias, cudaStream_t stream) {
  return MapRows<AddBiasTo<Y, B>::template Body, Y>(HaveWideRows(y), y.sizes[0], y.sizes[1], stream,
                                                    MatrixOf<Y>(y),
                                                    static_cast<const B*>(bias.data));
}

}  // namespace omni::cuda
