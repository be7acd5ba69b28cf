#include "dataloader/media/fft400.h"

#include <cmath>
#include <numbers>
#include <utility>

namespace omni::dataloader {
namespace {

using Lanes = Fft400::Lanes;
constexpr int kComplex = Fft400::kPoints / 2;

struct Value {
  Lanes re, im;
};
inline Value operator+(Value a, Value b) { return {a.re + b.re, a.im + b.im}; }
inline Value operator-(Value a, Value b) { return {a.re - b.re, a.im - b.im}; }
inline Value Scale(Value a, double s) { return {a.re * s, a.im * s}; }
inline Value TimesI(Value a) { return {-a.im, a.re}; }  // a * i
template <typename C>
inline Value Times(Value a, const C& w) {
  return {a.re * w.re - a.im * w.im, a.re * w.im + a.im * w.re};
}

template <int kRadix>
inline void Butterfly(Value* v);

template <>
inline void Butterfly<2>(Value* v) {
  const Value a = v[0], b = v[1];
  v[0] = a + b;
  v[1] = a - b;
}

template <>
inline void Butterfly<4>(Value* v) {
  const Value a = v[0] + v[2], b = v[0] - v[2], c = v[1] + v[3], d = TimesI(v[1] - v[3]);
  v[0] = a + c;
  v[1] = b - d;
  v[2] = a - c;
  v[3] = b + d;
}

template <>
inline void Butterfly<5>(Value* v) {
  constexpr double c1 = 0.30901699437494742410, c2 = -0.80901699437494742410;
  constexpr double s1 = 0.95105651629515357212, s2 = 0.58778525229247312917;
  const Value a1 = v[1] + v[4], a2 = v[2] + v[3];
  const Value b1 = v[1] - v[4], b2 = v[2] - v[3];
  const Value m1 = v[0] + Scale(a1, c1) + Scale(a2, c2);
  const Value m2 = v[0] + Scale(a1, c2) + Scale(a2, c1);
  const Value n1 = TimesI(Scale(b1, s1) + Scale(b2, s2));
  const Value n2 = TimesI(Scale(b1, s2) - Scale(b2, s1));
  v[0] = v[0] + a1 + a2;
  v[1] = m1 - n1;
  v[4] = m1 + n1;
  v[2] = m2 - n2;
  v[3] = m2 + n2;
}

// One Stockham pass. The data is viewed as [radix, count, stride]; `stride` sub-transforms are
// already done.
template <int kRadix, typename C>
void Pass(const Value* in, Value* out, int stride, const std::vector<C>& twiddles) {
  const int count = kComplex / (kRadix * stride);
  for (int p = 0; p < count; ++p) {
    for (int q = 0; q < stride; ++q) {
      Value v[kRadix];
      for (int r = 0; r < kRadix; ++r) v[r] = in[q + stride * (p + count * r)];
      Butterfly<kRadix>(v);
      for (int r = 0; r < kRadix; ++r) {
        Value* to = &out[q + stride * (kRadix * p + r)];
        *to = r == 0 || p == 0 ? v[r] : Times(v[r], twiddles[(p * r * stride) % kComplex]);
      }
    }
  }
}

}  // namespace

Fft400::Fft400() : twiddles_(kComplex), split_(kComplex + 1) {
  for (int k = 0; k < kComplex; ++k) {
    const double angle = -2 * std::numbers::pi * k / kComplex;
    twiddles_[k] = {std::cos(angle), std::sin(angle)};
  }
  for (int k = 0; k <= kComplex; ++k) {
    const double angle = -2 * std::numbers::pi * k / kPoints;
    split_[k] = {std::cos(angle), std::sin(angle)};
  }
}

void Fft400::Power(Lanes* x, Lanes* power) const {
  Value buffer[kComplex];
  auto* data = reinterpret_cast<Value*>(x);  // even samples real, odd ones imaginary
  Pass<4>(data, buffer, 1, twiddles_);
  Pass<2>(buffer, data, 4, twiddles_);
  Pass<5>(data, buffer, 8, twiddles_);
  Pass<5>(buffer, data, 40, twiddles_);
  // X[k] = (Z[k] + conj Z[N-k]) / 2 - i w^k (Z[k] - conj Z[N-k]) / 2.
  for (int k = 0; k <= kComplex; ++k) {
    const Value a = data[k % kComplex];
    Value b = data[(kComplex - k) % kComplex];
    b.im = -b.im;
    const Value even = Scale(a + b, 0.5);
    const Value odd = Times(Scale(TimesI(a - b), -0.5), split_[k]);
    const Value value = even + odd;
    power[k] = value.re * value.re + value.im * value.im;
  }
}

}  // namespace omni::dataloader
