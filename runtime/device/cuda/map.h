// Kernels that do the same with every element: a Body says what, this says who.
//
//   template <typename T, int kCount>
//   struct Double {
//     using Element = T;
//     Matrix<T> x;
//     __device__ void operator()(int64_t row, int64_t column) const;  // of kCount elements from
//     there
//   };
//   MapRows<Double, float>(HaveWideRows(view), rows, width, stream, MatrixOf<float>(view));
//
// One thread does 16 bytes where all rows allow it (kCount is then that of a Vector), else an
// element. Bound by memory.
#pragma once

#include "runtime/device/cuda/kernel.h"

namespace omni::cuda {

// Numbers of 32 bits: a division of 64 is a call of some forty instructions.
template <int kCount, typename Body>
__global__ void __launch_bounds__(kThreads)
    MapKernel(const __grid_constant__ Body body, int64_t first_row, int64_t first_column,
              uint32_t pieces_per_row, uint32_t num_pieces) {
  const auto i = static_cast<uint32_t>(ThreadNumber());
  if (i >= num_pieces) return;
  body(first_row + i / pieces_per_row, first_column + int64_t{i % pieces_per_row} * kCount);
}

// Of columns [first_column, end_column), in launches of less than 2^30 pieces.
template <int kCount, typename Body>
cudaError_t LaunchMap(const Body& body, int64_t rows, int64_t first_column, int64_t end_column,
                      cudaStream_t stream) {
  constexpr int64_t kMostPieces = int64_t{1} << 30;
  const int64_t pieces = (end_column - first_column) / kCount;
  if (pieces > kMostPieces) {  // of one row
    const int64_t half = first_column + pieces / 2 * kCount;
    const cudaError_t error = LaunchMap<kCount>(body, rows, first_column, half, stream);
    return error != cudaSuccess ? error : LaunchMap<kCount>(body, rows, half, end_column, stream);
  }
  if (pieces == 0) return cudaSuccess;
  const int64_t most_rows = kMostPieces / pieces;
  for (int64_t row = 0; row < rows; row += most_rows) {
    const int64_t count = (rows - row < most_rows ? rows - row : most_rows) * pieces;
    const cudaError_t error =
        Launch(MapKernel<kCount, Body>, ThreadEach(count), stream, body, row, first_column,
               static_cast<uint32_t>(pieces), static_cast<uint32_t>(count));
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <template <typename, int> typename Body, typename T, typename... Fields>
cudaError_t MapRows(bool wide, int64_t rows, int64_t width, cudaStream_t stream,
                    const Fields&... fields) {
  constexpr int kSize = Vector<T>::kSize;
  const int64_t wide_columns = wide ? width / kSize * kSize : 0;
  const cudaError_t error =
      LaunchMap<kSize>(Body<T, kSize>{fields...}, rows, 0, wide_columns, stream);
  if (error != cudaSuccess) return error;
  return LaunchMap<1>(Body<T, 1>{fields...}, rows, wide_columns, width, stream);
}

// Views of one shape as the longest rows they have in common: dense ones are a single row.
struct Walk {
  int64_t rows = 0, width = 0;
  bool is_flat = false;

  template <typename... Views>
  explicit Walk(const TensorView& like, const Views&... others) {
    is_flat = like.is_dense() && (others.is_dense() && ...);
    const int64_t count = like.num_elements();
    width = is_flat ? count : WidthOf(like);
    rows = count == 0 ? 0 : count / width;
  }
  template <typename T>
  Matrix<T> Of(const TensorView& view) const {
    return is_flat ? Matrix<T>{.data = static_cast<T*>(view.data)} : MatrixOf<T>(view);
  }
  // A single row of any length is wide from an aligned address: the rest of it goes one by one.
  template <typename... Views>
  bool IsWide(const Views&... views) const {
    if (!is_flat) return HaveWideRows(views...);
    return ((reinterpret_cast<uintptr_t>(views.data) % 16 == 0) && ...);
  }
};
// Rows of more than three dims are not walked.
inline bool CanWalk(const TensorView& view) { return view.num_dims <= 3 || view.is_dense(); }

}  // namespace omni::cuda
