// What a kernel file includes, and nothing else of CUDA: the language (from nvcc, or emulated on
// the CPU), Launch, 16-byte vectors and the types to compute in.
//
// Kernels write no <<<>>> and no __shared__: Launch and BlockShared stand for them, so that the
// same file compiles as plain C++ and the emulator (runtime/device/cuda_emulated) knows of every
// launch and of every shared byte. A kernel file is compiled twice: by nvcc for GPUs, and by the
// host compiler with the emulator, which is how it is tested where there is no GPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>

#include "runtime/device/kernel_table.h"
#include "runtime/tensor/dtype.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#define OMNI_EMULATED 0
#else
#define OMNI_EMULATED 1
#include "runtime/device/cuda_emulated/language.h"
#endif

namespace omni::cuda {

struct LaunchShape {
  dim3 grid, block;
  size_t shared_bytes = 0;  // dynamic
};

#if OMNI_EMULATED
using emulated::BlockShared;
using emulated::DynamicShared;
#else
// An object in the block's shared memory, one for each T of a kernel.
template <typename T>
__device__ __forceinline__ T& BlockShared() {
  __shared__ T value;
  return value;
}
template <typename T>
__device__ __forceinline__ T* DynamicShared() {
  extern __shared__ __align__(128) unsigned char dynamic_shared[];
  return reinterpret_cast<T*>(dynamic_shared);
}
#endif

// kernel<<<...>>>(args...) and its error. A grid of 0 blocks is nobody's work: success.
template <typename... Params, typename... Args>
cudaError_t Launch(void (*kernel)(Params...), const LaunchShape& shape, cudaStream_t stream,
                   const Args&... args) {
  static_assert(sizeof...(Params) == sizeof...(Args));
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return cudaSuccess;
  std::tuple<std::remove_const_t<Params>...> values(args...);
#if OMNI_EMULATED
  return emulated::LaunchGrid(shape.grid, shape.block, shape.shared_bytes, stream,
                              reinterpret_cast<const void*>(kernel),
                              [kernel, values] { std::apply(kernel, values); });
#else
  return std::apply(
      [&](auto&... value) {
        void* pointers[] = {const_cast<void*>(static_cast<const void*>(&value))...};
        return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), shape.grid, shape.block,
                                pointers, shape.shared_bytes, stream);
      },
      values);
#endif
}

inline constexpr int kThreads = 256;  // of a block, unless a kernel says otherwise
inline unsigned BlocksFor(int64_t threads) {
  return static_cast<unsigned>((threads + kThreads - 1) / kThreads);
}
// One thread for each of `count`; a kernel compares ThreadNumber() with it.
inline LaunchShape ThreadEach(int64_t count) { return {BlocksFor(count), kThreads}; }
__device__ __forceinline__ int64_t ThreadNumber() {
  return int64_t{blockIdx.x} * kThreads + threadIdx.x;
}

// --- elements ------------------------------------------------------------------------------------

// bf16 is computed in fp32 and rounded once, to the nearest even.
template <typename T>
struct ComputeType {
  using Type = float;
};
template <>
struct ComputeType<double> {
  using Type = double;
};
template <typename T>
using ComputeOf = typename ComputeType<T>::Type;

__device__ __forceinline__ double Wide(double x) { return x; }
__device__ __forceinline__ float Wide(float x) { return x; }
__device__ __forceinline__ float Wide(__nv_bfloat16 x) { return __bfloat162float(x); }
template <typename T>
__device__ __forceinline__ T Narrow(ComputeOf<T> x) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __float2bfloat16_rn(x);
  else
    return x;
}

// 16 bytes of T at once; the address is a multiple of 16.
template <typename T>
struct alignas(16) Vector {
  static constexpr int kSize = 16 / sizeof(T);
  T at[kSize];
};
template <typename T>
__device__ __forceinline__ Vector<T> LoadVector(const T* from) {
#if OMNI_EMULATED
  emulated::CheckAligned(from, 16);
#endif
  return *reinterpret_cast<const Vector<T>*>(from);
}
template <typename T>
__device__ __forceinline__ void StoreVector(T* to, const Vector<T>& vector) {
#if OMNI_EMULATED
  emulated::CheckAligned(to, 16);
#endif
  *reinterpret_cast<Vector<T>*>(to) = vector;
}

// kCount elements, 16 bytes at once if that is a vector of T.
template <typename T, int kCount>
__device__ __forceinline__ void LoadElements(const T* from, T (&to)[kCount]) {
  if constexpr (kCount == Vector<T>::kSize && kCount > 1) {
    const Vector<T> vector = LoadVector(from);
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i] = vector.at[i];
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i] = from[i];
  }
}
template <typename T, int kCount>
__device__ __forceinline__ void StoreElements(T* to, const T (&from)[kCount]) {
  if constexpr (kCount == Vector<T>::kSize && kCount > 1) {
    Vector<T> vector;
#pragma unroll
    for (int i = 0; i < kCount; ++i) vector.at[i] = from[i];
    StoreVector(to, vector);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i] = from[i];
  }
}

// --- matrices ------------------------------------------------------------------------------------

// A view as rows of contiguous elements, fewer than 2^32: [T, H] with strided rows, [T, N, D] as T
// N rows of D, a vector as one row. Null for an empty view.
template <typename T>
struct Matrix {
  T* data = nullptr;
  int64_t inner_rows = 1;                // N
  int64_t stride = 0, inner_stride = 0;  // elements from t to t + 1, from n to n + 1

  __device__ __forceinline__ T* row(int64_t i) const {
    if (inner_rows == 1) return data + i * stride;
    const auto at = static_cast<uint32_t>(i), n = static_cast<uint32_t>(inner_rows);
    return data + int64_t{at / n} * stride + int64_t{at % n} * inner_stride;
  }
};

template <typename T>
Matrix<T> MatrixOf(const TensorView& view) {
  Matrix<T> matrix{.data = static_cast<T*>(view.data)};
  if (view.num_dims == 2) matrix.stride = view.strides[0];
  if (view.num_dims == 3) {
    matrix.inner_rows = view.sizes[1];
    matrix.stride = view.strides[0];
    matrix.inner_stride = view.strides[1];
  }
  return matrix;
}
inline int64_t WidthOf(const TensorView& view) { return view.sizes[view.num_dims - 1]; }
inline int64_t NumRowsOf(const TensorView& view) {
  int64_t rows = 1;
  for (int d = 0; d + 1 < view.num_dims; ++d) rows *= view.sizes[d];
  return rows;
}

// Whether each row of this view may be read and written by 16 bytes.
inline bool HasWideRows(const TensorView& view) {
  if (view.data == nullptr) return true;
  const auto elements = static_cast<int64_t>(16 / SizeOf(view.dtype));
  if (reinterpret_cast<uintptr_t>(view.data) % 16 != 0) return false;
  for (int d = 0; d + 1 < view.num_dims; ++d)
    if (view.strides[d] % elements != 0) return false;
  return WidthOf(view) % elements == 0;
}
template <typename... Views>
bool HaveWideRows(const Views&... views) {
  return (HasWideRows(views) && ...);
}

// --- the table -----------------------------------------------------------------------------------

inline cudaStream_t StreamOf(const KernelContext* context) {
  return static_cast<cudaStream_t>(context->stream);
}
// What a kernel found wrong with data, read once a step: the first error of an op stays.
__device__ __forceinline__ void Raise(int32_t* flags, int32_t code) {
  if (flags != nullptr) atomicMax(flags, code);
}

// An entry for Run(args, context) -> cudaError_t. Launch errors are below 0.
template <typename Args, cudaError_t (*kRun)(const Args&, const KernelContext*),
          int64_t (*kScratchBytes)(const Args&) = nullptr>
KernelEntry MakeEntry(OpId op, DType dtype, const char* name) {
  KernelEntry entry{
      .op = op,
      .device = DeviceKind::kCuda,
      .dtype = dtype,
      .name = name,
      .priority = 0,
      .run =
          [](const void* args, const KernelContext* context) {
            return -static_cast<int32_t>(kRun(*static_cast<const Args*>(args), context));
          },
      .supports = nullptr,
      .scratch_bytes = nullptr};
  if constexpr (kScratchBytes != nullptr)
    entry.scratch_bytes = [](const void* args) {
      return kScratchBytes(*static_cast<const Args*>(args));
    };
  return entry;
}

}  // namespace omni::cuda
