// The vectors of the CPU kernels: as wide as the translation unit's target allows, with the
// few functions loops need.
//
// A kernel file may be compiled twice, for AVX2 and for AVX-512 (see CMakeLists.txt). All that
// depends on the width is in a namespace named after the target, so that the linker never takes
// a function of one for the other: put the kernels that use vectors there too, or into an
// anonymous namespace. Include no templates of std whose code may be shared between the two.
//
//   using V = Simd<float>::Vec;
//   V y = Exp(Load<float>(x + i));
//   Store(out + i, Fma(y, y, y));
//
// GCC's and clang's vector types know + - * / and comparisons; `mask ? a : b` selects by lane.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define OMNI_SIMD avx512
#define OMNI_SIMD_IS_AVX512 1
#else
#define OMNI_SIMD avx2
#define OMNI_SIMD_IS_AVX512 0
#endif

namespace omni::cpu::OMNI_SIMD {

inline constexpr int kVectorBytes = OMNI_SIMD_IS_AVX512 ? 64 : 32;

template <typename T>
struct Simd;
template <>
struct Simd<float> {
  typedef float Vec __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Int __attribute__((vector_size(kVectorBytes)));
  static constexpr int kWidth = kVectorBytes / 4;
};
template <>
struct Simd<double> {
  typedef double Vec __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Int __attribute__((vector_size(kVectorBytes)));
  static constexpr int kWidth = kVectorBytes / 8;
};

using FloatVec = Simd<float>::Vec;
using DoubleVec = Simd<double>::Vec;

template <typename T>
inline typename Simd<T>::Vec Load(const T* p) {  // any alignment
  typename Simd<T>::Vec v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
inline void Store(float* p, FloatVec v) { __builtin_memcpy(p, &v, sizeof(v)); }
inline void Store(double* p, DoubleVec v) { __builtin_memcpy(p, &v, sizeof(v)); }

template <typename T>
inline typename Simd<T>::Vec Splat(T x) {
  return x - typename Simd<T>::Vec{};  // keeps the sign of zero
}

// a * b + c, rounded once.
#if OMNI_SIMD_IS_AVX512
inline FloatVec Fma(FloatVec a, FloatVec b, FloatVec c) {
  return (FloatVec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
inline DoubleVec Fma(DoubleVec a, DoubleVec b, DoubleVec c) {
  return (DoubleVec)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
}
#else
inline FloatVec Fma(FloatVec a, FloatVec b, FloatVec c) {
  return (FloatVec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
inline DoubleVec Fma(DoubleVec a, DoubleVec b, DoubleVec c) {
  return (DoubleVec)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}
#endif

// The larger of two; `a` if b is NaN, NaN if a is.
inline FloatVec Max(FloatVec a, FloatVec b) { return b > a ? b : a; }
inline DoubleVec Max(DoubleVec a, DoubleVec b) { return b > a ? b : a; }

// Sum of the lanes in a fixed order: halves added to halves.
inline float Sum(FloatVec v) {
  float lane[Simd<float>::kWidth];
  Store(lane, v);
  for (int n = Simd<float>::kWidth / 2; n > 0; n /= 2)
    for (int i = 0; i < n; ++i) lane[i] += lane[i + n];
  return lane[0];
}
inline double Sum(DoubleVec v) {
  double lane[Simd<double>::kWidth];
  Store(lane, v);
  for (int n = Simd<double>::kWidth / 2; n > 0; n /= 2)
    for (int i = 0; i < n; ++i) lane[i] += lane[i + n];
  return lane[0];
}

// e^x to 1.5 ulp (Cephes' polynomial after taking out powers of two). 0 below -87.33 (no
// denormals), infinity above 88.72, NaN stays NaN.
inline FloatVec Exp(FloatVec x) {
  const FloatVec low = Splat(-87.336544f), high = Splat(88.722839f);
  FloatVec z = x < low ? low : x;
  z = z > high ? high : z;
  const FloatVec magic = Splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  FloatVec n = Fma(z, Splat(1.44269504088896341f), magic) - magic;
  n = n > Splat(127.0f) ? Splat(127.0f) : n;
  FloatVec r = Fma(n, Splat(-0.693359375f), z);
  r = Fma(n, Splat(2.12194440e-4f), r);
  FloatVec p = Splat(1.9875691500e-4f);
  p = Fma(p, r, Splat(1.3981999507e-3f));
  p = Fma(p, r, Splat(8.3334519073e-3f));
  p = Fma(p, r, Splat(4.1665795894e-2f));
  p = Fma(p, r, Splat(1.6666665459e-1f));
  p = Fma(p, r, Splat(5.0000001201e-1f));
  p = Fma(p, r * r, r) + 1.0f;
  // 2^n: the integer n sits in the low bits of n + magic.
  using Int = Simd<float>::Int;
  const Int exponent = ((Int)(n + magic) + (127 - 0x4b400000)) << 23;
  p = p * (FloatVec)exponent;
  p = x < low ? FloatVec{} : p;
  return x > high ? Splat(__builtin_inff()) : p;
}

// libm, lane by lane: the fp64 kernels are the specification, not the fast path.
inline DoubleVec Exp(DoubleVec x) {
  DoubleVec y = x;
  for (int i = 0; i < Simd<double>::kWidth; ++i) y[i] = std::exp(x[i]);
  return y;
}

// to[j][i] = from[i][j], 8 x 8.
inline void Transpose8x8(const float* from, int64_t ldf, float* to, int64_t ldt) {
  __m256 r[8], s[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(from + i * ldf);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    s[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    s[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    r[i + 0] = _mm256_shuffle_ps(s[i], s[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(s[i], s[i + 2], 0xee);
    r[i + 2] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(to + i * ldt, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    _mm256_storeu_ps(to + (i + 4) * ldt, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
}

}  // namespace omni::cpu::OMNI_SIMD
