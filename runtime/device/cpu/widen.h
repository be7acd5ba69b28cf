// Matrices as the products want them: in the type of computation, rows strided.
#pragma once

#include "runtime/device/cpu/tasks.h"
#include "runtime/tensor/view.h"

namespace omni::cpu {

template <typename C>
struct Matrix {
  C* data = nullptr;
  int64_t rows = 0, columns = 0, stride = 0;
};

// Whether elements of the view must change type to be computed with: bf16, unless the view is fp32
// in a bf16 kernel (a router's logits).
template <typename T>
bool IsNarrow(const TensorView& view) {
  return !std::is_same_v<T, ComputeOf<T>> && view.dtype == DTypeOf<T>::value;
}

// The view's own memory, or for bf16 a copy in `scratch`. A view of any rank is taken as
// [size(0), rest], the rest being dense; an empty view gives an empty matrix.
template <typename T>
Matrix<const ComputeOf<T>> Widened(const KernelContext& context, const TensorView& view,
                                   Scratch& scratch) {
  using C = ComputeOf<T>;
  if (view.num_dims == 0) return {};
  const int64_t rows = view.num_dims == 1 ? 1 : view.size(0);
  const int64_t columns =
      view.num_dims == 1 ? view.size(0) : (rows == 0 ? 0 : view.num_elements() / rows);
  const int64_t stride = view.num_dims == 1 ? columns : view.stride(0);
  if (!IsNarrow<T>(view)) {
    return {static_cast<const C*>(view.data), rows, columns, stride};
  } else {
    C* copy = scratch.Take<C>(rows * columns);
    if (copy == nullptr || view.empty()) return {copy, rows, columns, columns};
    ForEachRange(context, rows, RowGrain(columns), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const T* from = static_cast<const T*>(view.data) + r * stride;
        for (int64_t i = 0; i < columns; ++i) copy[r * columns + i] = static_cast<C>(from[i]);
      }
    });
    return {copy, rows, columns, columns};
  }
}

// Where to compute what ends up in `view`; Rounded then brings it there (nothing but for bf16).
template <typename T>
Matrix<ComputeOf<T>> Target(const TensorView& view, Scratch& scratch) {
  using C = ComputeOf<T>;
  if (view.num_dims == 0) return {};
  const int64_t rows = view.size(0), columns = rows == 0 ? 0 : view.num_elements() / rows;
  if (!IsNarrow<T>(view))
    return {static_cast<C*>(view.data), rows, columns, view.stride(0)};
  else
    return {scratch.Take<C>(rows * columns), rows, columns, columns};
}

template <typename T>
void Rounded(const KernelContext& context, const Matrix<ComputeOf<T>>& from,
             const TensorView& view) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    if (view.num_dims == 0 || !IsNarrow<T>(view)) return;
    ForEachRange(context, from.rows, RowGrain(from.columns), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        T* to = static_cast<T*>(view.data) + r * view.stride(0);
        for (int64_t i = 0; i < from.columns; ++i) to[i] = T(from.data[r * from.stride + i]);
      }
    });
  } else {
    (void)context, (void)from, (void)view;
  }
}

}  // namespace omni::cpu
