// Sweeping rows of any storage type with the vectors of vector_math.h. Included by the
// *_kernel.h files only.
#pragma once

#include "runtime/device/cpu/tasks.h"
#include "runtime/device/cpu/vector_math.h"
#include "runtime/tensor/dtype.h"
#include "runtime/tensor/view.h"

namespace omni::cpu::OMNI_SIMD {

using FloatInt = Simd<float>::Int;
typedef uint16_t HalfVec __attribute__((vector_size(kVectorBytes / 2)));
typedef uint32_t WordVec __attribute__((vector_size(kVectorBytes)));

template <typename T>
using VecOf = typename Simd<ComputeOf<T>>::Vec;

inline FloatVec LoadWide(const float* p) { return Load<float>(p); }
inline DoubleVec LoadWide(const double* p) { return Load<double>(p); }
inline FloatVec LoadWide(const BFloat16* p) {
  HalfVec half;
  __builtin_memcpy(&half, p, sizeof(half));
  return (FloatVec)(__builtin_convertvector(half, WordVec) << 16);
}

inline void StoreRounded(float* p, FloatVec v) { Store(p, v); }
inline void StoreRounded(double* p, DoubleVec v) { Store(p, v); }
inline void StoreRounded(BFloat16* p, FloatVec v) {
  const WordVec word = (WordVec)v;
  const WordVec rounded = (word + 0x7fffu + ((word >> 16) & 1u)) >> 16;
  const WordVec kept = (word >> 16) | 0x40u;  // NaN stays NaN
  const HalfVec half = __builtin_convertvector(v == v ? rounded : kept, HalfVec);
  __builtin_memcpy(static_cast<void*>(p), &half, sizeof(half));
}

// The first `count` lanes; the others are zero.
template <typename T>
[[gnu::always_inline]] inline VecOf<T> LoadSome(const T* p, int64_t count) {
  constexpr int kWidth = Simd<ComputeOf<T>>::kWidth;
  if (count == kWidth) return LoadWide(p);
  T lanes[kWidth] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = p[i];
  return LoadWide(lanes);
}
template <typename T>
[[gnu::always_inline]] inline void StoreSome(T* p, VecOf<T> v, int64_t count) {
  constexpr int kWidth = Simd<ComputeOf<T>>::kWidth;
  if (count == kWidth) return StoreRounded(p, v);
  T lanes[kWidth];
  StoreRounded(lanes, v);
  for (int64_t i = 0; i < count; ++i) p[i] = lanes[i];
}

// body(i, count) over [0, n): count is the width, but for the last piece.
template <typename C, typename Body>
[[gnu::always_inline]] inline void Sweep(int64_t n, const Body& body) {
  constexpr int kWidth = Simd<C>::kWidth;
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) body(i, kWidth);
  if (i < n) body(i, n - i);
}

// Lanes [0, count) of v, zeros beyond.
template <typename C>
[[gnu::always_inline]] inline typename Simd<C>::Vec Keep(typename Simd<C>::Vec v, int64_t count) {
  if (count == Simd<C>::kWidth) return v;
  for (int64_t i = count; i < Simd<C>::kWidth; ++i) v[i] = 0;
  return v;
}

// Row r of [T, H], or of [T, N, D] counted over T and N.
template <typename T>
class RowsOf {
 public:
  explicit RowsOf(const TensorView& x)
      : data_(static_cast<T*>(x.data)),
        inner_(x.num_dims == 3 ? x.sizes[1] : 1),
        outer_stride_(x.num_dims > 1 ? x.strides[0] : 0),
        inner_stride_(x.num_dims == 3 ? x.strides[1] : 0) {}
  T* operator()(int64_t r) const {
    return inner_ == 1 ? data_ + r * outer_stride_
                       : data_ + r / inner_ * outer_stride_ + r % inner_ * inner_stride_;
  }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  T* data_;
  int64_t inner_, outer_stride_, inner_stride_;
};

}  // namespace omni::cpu::OMNI_SIMD
