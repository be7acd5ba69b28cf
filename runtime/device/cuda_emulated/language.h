// CUDA's device language as C++: what kernel files use of it, run by emulated/block.h.
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

template <typename T>
inline uint64_t Bits(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}
template <typename T>
inline T FromBits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

enum class WarpVerb : int { kShuffle, kVote, kSync, kReduce };

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

inline void __syncthreads() { ::omni::emulated::Barrier(0, __builtin_return_address(0)); }
inline int __syncthreads_or(int predicate) {
  return ::omni::emulated::Barrier(predicate != 0, __builtin_return_address(0)) > 0;
}
inline int __syncthreads_count(int predicate) {
  return ::omni::emulated::Barrier(predicate != 0, __builtin_return_address(0));
}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  ::omni::emulated::WarpExchange(static_cast<int>(::omni::emulated::WarpVerb::kSync), mask, 0);
}

template <typename T>
inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  using namespace ::omni::emulated;
  const uint64_t* all = WarpExchange(static_cast<int>(WarpVerb::kShuffle), mask, Bits(value));
  const int self = current->lane;
  return FromBits<T>(all[(self & ~(width - 1)) | (lane & (width - 1))]);
}
template <typename T>
inline T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  using namespace ::omni::emulated;
  const uint64_t* all = WarpExchange(static_cast<int>(WarpVerb::kShuffle), mask, Bits(value));
  const int self = current->lane, from = self ^ lane_mask;
  return (from & ~(width - 1)) <= (self & ~(width - 1)) ? FromBits<T>(all[from & 31]) : value;
}
template <typename T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  using namespace ::omni::emulated;
  const uint64_t* all = WarpExchange(static_cast<int>(WarpVerb::kShuffle), mask, Bits(value));
  const int self = current->lane, from = self + static_cast<int>(delta);
  return (from & ~(width - 1)) == (self & ~(width - 1)) ? FromBits<T>(all[from & 31]) : value;
}
template <typename T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  using namespace ::omni::emulated;
  const uint64_t* all = WarpExchange(static_cast<int>(WarpVerb::kShuffle), mask, Bits(value));
  const int self = current->lane, from = self - static_cast<int>(delta);
  return from >= 0 && (from & ~(width - 1)) == (self & ~(width - 1)) ? FromBits<T>(all[from])
                                                                     : value;
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  using namespace ::omni::emulated;
  const uint64_t* all = WarpExchange(static_cast<int>(WarpVerb::kVote), mask, predicate != 0);
  unsigned ballot = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) ballot |= static_cast<unsigned>(all[lane]) << lane;
  return ballot;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) == mask;
}

template <typename T>
inline T atomicAdd(T* address, T value) {
  ::omni::emulated::AtomicAccess(address, sizeof(T));
  T old, sum;
  __atomic_load(address, &old, __ATOMIC_RELAXED);
  do {
    sum = old + value;
  } while (
      !__atomic_compare_exchange(address, &old, &sum, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
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
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float x, float y) { return x / y; }
template <typename T>
inline T __ldg(const T* p) {
  return *p;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __float_as_uint(float x) {
  return ::omni::emulated::FromBits<unsigned>(::omni::emulated::Bits(x));
}
inline float __uint_as_float(unsigned x) {
  return ::omni::emulated::FromBits<float>(::omni::emulated::Bits(x));
}
template <typename T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}
