// A TensorView says where a tensor's elements lie and how they are laid out; it owns nothing.
//
// It is plain data (copied by value, at most 128 bytes), so it crosses the C boundary to
// kernel plugins as it is. Layout is row-major with the last dim contiguous; other strides
// appear only where a view is a slice of rows (tokens) or columns of a wider tensor.
// A view is valid no longer than the memory it was made from: one step, at most.
//
//   TensorView x_TH = ...;                  // [tokens, hidden]
//   View<const float, 2> x = x_TH.as<const float, 2>();
//   x(t, h)
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <type_traits>

#include "absl/types/span.h"
#include "runtime/base/check.h"
#include "runtime/tensor/dtype.h"

namespace omni {

enum class DeviceKind : uint8_t { kCpu, kCpuAsync, kCuda, kCudaEmulated };
// Whether the host may read and write what lies on such a device.
inline bool IsHostMemory(DeviceKind kind) {
  return kind == DeviceKind::kCpu || kind == DeviceKind::kCpuAsync;
}

inline constexpr int kMaxDims = 6;

// Typed window for kernels: element (i, j, ...) by call.
template <typename T, int kRank>
struct View {
  T* data;
  int64_t sizes[kRank];
  int64_t strides[kRank];  // elements

  template <typename... Index>
  T& operator()(Index... index) const {
    static_assert(sizeof...(Index) == kRank);
    const int64_t position[kRank] = {static_cast<int64_t>(index)...};
    int64_t offset = 0;
    for (int d = 0; d < kRank; ++d) offset += position[d] * strides[d];
    return data[offset];
  }
  T* row(int64_t i) const { return data + i * strides[0]; }
};

struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  DeviceKind device = DeviceKind::kCpu;
  int8_t num_dims = 0;
  int64_t sizes[kMaxDims] = {};
  int64_t strides[kMaxDims] = {};  // elements

  // Dense row-major view of `data`.
  static TensorView Dense(void* data, DType dtype, DeviceKind device,
                          absl::Span<const int64_t> sizes);

  bool empty() const { return data == nullptr; }
  int64_t size(int dim) const { return sizes[dim < 0 ? dim + num_dims : dim]; }
  int64_t stride(int dim) const { return strides[dim < 0 ? dim + num_dims : dim]; }
  int64_t num_elements() const;
  int64_t num_bytes() const { return num_elements() * SizeOf(dtype); }
  bool is_dense() const;
  absl::Span<const int64_t> shape() const { return {sizes, static_cast<size_t>(num_dims)}; }

  // Rows [begin, begin + count) of dim 0, and columns of the last dim: same memory.
  TensorView Rows(int64_t begin, int64_t count) const;
  TensorView Columns(int64_t begin, int64_t count) const;
  // Likewise [begin, begin + count) of any dim.
  TensorView Slice(int dim, int64_t begin, int64_t count) const;
  // The same elements under another shape. The view must be dense, unless only the last dim
  // is split or merged dims are contiguous.
  TensorView Reshape(absl::Span<const int64_t> new_sizes) const;
  TensorView Reshape(std::initializer_list<int64_t> new_sizes) const {
    return Reshape(absl::MakeConstSpan(new_sizes.begin(), new_sizes.size()));
  }

  // First element, for the host: CHECK-fails if T is not the view's type, or the memory a GPU's.
  template <typename T>
  T* ptr() const {
    OMNI_CHECK(DTypeOf<std::remove_const_t<T>>::value == dtype && IsHostMemory(device));
    return static_cast<T*>(data);
  }
  template <typename T, int kRank>
  View<T, kRank> as() const {
    OMNI_CHECK_EQ(static_cast<int>(num_dims), kRank);
    View<T, kRank> view{ptr<T>(), {}, {}};
    for (int d = 0; d < kRank; ++d) {
      view.sizes[d] = sizes[d];
      view.strides[d] = strides[d];
    }
    return view;
  }

  std::string DebugString() const;  // "fp32[128, 64]"
};

static_assert(std::is_trivially_copyable_v<TensorView> && sizeof(TensorView) <= 128);

}  // namespace omni
