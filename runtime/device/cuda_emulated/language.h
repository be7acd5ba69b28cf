// CUDA's device language as C++: what kernel files use of it, run by block.h. More is added when a
// kernel needs it, with a test.
#pragma once

#include <cmath>
#include <cstring>
#include <functional>

#include "runtime/device/cuda_emulated/block.h"
#include "runtime/device/cuda_emulated/runtime.h"

// The real headers made __global__ and __device__ empty for us; these need another meaning.
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __shared__
#define __shared__ static_assert(false, "shared memory of kernels comes from BlockShared<T>()");
#ifndef __grid_constant__
#define __grid_constant__
#endif

#define threadIdx (::omni::emulated::current->index)
#define blockIdx (::omni::emulated::block->index)
#define blockDim (::omni::emulated::block->shape)
#define gridDim (::omni::emulated::block->grid)

namespace omni::emulated {

template <typename T>
inline T& BlockShared() {
  static_assert(std::is_trivially_default_constructible_v<T>);
  static const char key = 0;
  return *static_cast<T*>(SharedObject(&key, sizeof(T), alignof(T) < 16 ? 16 : alignof(T)));
}
template <typename T>
inline T* DynamicShared() {
  return static_cast<T*>(DynamicSharedMemory());
}

inline void CheckAligned(const void* address, uintptr_t bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) Fault("misaligned address");
}

enum class WarpVerb : int { kSync, kReduce };

template <typename T, typename Join>
inline T WarpReduce(const T& value, const Join& join) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8 * kMaxWords);
  uint64_t words[kMaxWords] = {};
  std::memcpy(words, &value, sizeof(T));
  const auto finish = [](const void* arg, uint64_t(*lanes)[kMaxWords]) {
    for (int step = 16; step > 0; step /= 2)
      for (int lane = 0; lane < step; ++lane) {
        T a, b;
        std::memcpy(&a, lanes[lane], sizeof(T));
        std::memcpy(&b, lanes[lane + step], sizeof(T));
        a = (*static_cast<const Join*>(arg))(a, b);
        std::memcpy(lanes[lane], &a, sizeof(T));
      }
  };
  T result;
  std::memcpy(&result,
              WarpCombine(static_cast<int>(WarpVerb::kReduce), words, (sizeof(T) + 7) / 8, finish,
                          &join)[0],
              sizeof(T));
  return result;
}

}  // namespace omni::emulated

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  ::omni::emulated::Barrier({file, line});
}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  ::omni::emulated::WarpExchange(static_cast<int>(::omni::emulated::WarpVerb::kSync), mask, 0);
}

template <typename T>
inline T atomicMax(T* address, T value) {
  ::omni::emulated::AtomicAccess(address, sizeof(T));
  T old;
  __atomic_load(address, &old, __ATOMIC_RELAXED);
  while (old < value && !__atomic_compare_exchange(address, &old, &value, false, __ATOMIC_RELAXED,
                                                   __ATOMIC_RELAXED)) {
  }
  return old;
}

inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }
