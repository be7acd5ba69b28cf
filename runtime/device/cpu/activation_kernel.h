// SwiGLU and GELU, forward and backward: one pass, bound by memory in the wide, and by the
// exponential (about 20 instructions a vector) where the rows are in cache. Included once per
// SIMD target.
#pragma once

#include "runtime/device/args/activation.h"
#include "runtime/device/cpu/row_vectors.h"

namespace omni::cpu::OMNI_SIMD {

template <typename V>
inline V Sigmoid(V x) {
  return 1.0f / (1.0f + Exp(-x));
}
inline DoubleVec Sigmoid(DoubleVec x) { return 1.0 / (1.0 + Exp(-x)); }

// To 1 ulp: odd polynomial below 475/512, else 1 - exp(polynomial) (minimax fits of N. Juffa's).
inline FloatVec Erf(FloatVec a) {
  const FloatVec t = a < 0.0f ? -a : a;
  const FloatVec s = a * a;
  FloatVec r = Fma(Splat(-1.72853470e-5f), t, Splat(3.83197126e-4f));
  const FloatVec u = Fma(Splat(-3.88396438e-3f), t, Splat(2.42546219e-2f));
  r = Fma(r, s, u);
  r = Fma(r, t, Splat(-1.06777877e-1f));
  r = Fma(r, t, Splat(-6.34846687e-1f));
  r = Fma(r, t, Splat(-1.28717512e-1f));
  r = Fma(r, t, -t);
  r = 1.0f - Exp(r);
  const FloatVec large = a < 0.0f ? -r : r;
  FloatVec p = Splat(-5.96761703e-4f);
  p = Fma(p, s, Splat(4.99119423e-3f));
  p = Fma(p, s, Splat(-2.67681349e-2f));
  p = Fma(p, s, Splat(1.12819925e-1f));
  p = Fma(p, s, Splat(-3.76125336e-1f));
  p = Fma(p, s, Splat(1.28379166e-1f));
  const FloatVec small = Fma(p, a, a);
  return t > 0.927734375f ? large : small;
}
inline DoubleVec Erf(DoubleVec x) {
  DoubleVec y = x;
  for (int i = 0; i < Simd<double>::kWidth; ++i) y[i] = std::erf(x[i]);
  return y;
}

template <typename T>
struct Activation {
  using C = ComputeOf<T>;
  using Vec = typename Simd<C>::Vec;

  // body(row, columns) for every row.
  template <typename Body>
  static void ForEachRow(const KernelContext& context, const TensorView& y, const Body& body) {
    ForEachRange(context, y.size(0), RowGrain(y.size(1)), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) body(r);
    });
  }

  static int64_t SwiGluForward(const SwiGluForwardArgs& args, const KernelContext* context) {
    if (context == nullptr) return 0;
    const RowsOf<const T> x(args.gate_up_T2F);
    const RowsOf<T> y(args.y_TF);
    const int64_t width = args.y_TF.size(1);
    ForEachRow(*context, args.y_TF, [&](int64_t r) {
      const T *gate = x(r), *up = gate + width;
      T* to = y(r);
      Sweep<C>(width, [&](int64_t i, int64_t n) {
        const Vec g = LoadSome(gate + i, n);
        StoreSome(to + i, g * Sigmoid(g) * LoadSome(up + i, n), n);
      });
    });
    return 0;
  }

  static int64_t SwiGluBackward(const SwiGluBackwardArgs& args, const KernelContext* context) {
    if (context == nullptr) return 0;
    const RowsOf<const T> x(args.gate_up_T2F), dy(args.grad_y_TF);
    const RowsOf<T> dx(args.grad_gate_up_T2F);
    const int64_t width = args.grad_y_TF.size(1);
    ForEachRow(*context, args.grad_y_TF, [&](int64_t r) {
      const T *gate = x(r), *up = gate + width, *dy_row = dy(r);
      T *dgate = dx(r), *dup = dgate + width;
      Sweep<C>(width, [&](int64_t i, int64_t n) {
        const Vec g = LoadSome(gate + i, n), d = LoadSome(dy_row + i, n);
        const Vec s = Sigmoid(g);
        const Vec silu = g * s;
        StoreSome(dup + i, d * silu, n);
        StoreSome(dgate + i, d * LoadSome(up + i, n) * (s + silu * (C(1) - s)), n);
      });
    });
    return 0;
  }

  static constexpr C kSqrt2OverPi = C(0.79788456080286535588);
  static constexpr C kCubic = C(0.044715);

  static int64_t GeluForward(const GeluForwardArgs& args, const KernelContext* context) {
    if (context == nullptr) return 0;
    const RowsOf<const T> x(args.x_TH);
    const RowsOf<T> y(args.y_TH);
    const int64_t width = args.y_TH.size(1);
    ForEachRow(*context, args.y_TH, [&](int64_t r) {
      const T* from = x(r);
      T* to = y(r);
      if (args.tanh) {
        Sweep<C>(width, [&](int64_t i, int64_t n) {  // (1 + tanh u) / 2 = sigmoid(2 u)
          const Vec v = LoadSome(from + i, n);
          const Vec u = C(2) * kSqrt2OverPi * (v + kCubic * v * v * v);
          StoreSome(to + i, v * Sigmoid(u), n);
        });
      } else {
        Sweep<C>(width, [&](int64_t i, int64_t n) {
          const Vec v = LoadSome(from + i, n);
          StoreSome(to + i, C(0.5) * v * (C(1) + Erf(v * C(0.70710678118654752440))), n);
        });
      }
    });
    return 0;
  }

  static int64_t GeluBackward(const GeluBackwardArgs& args, const KernelContext* context) {
    if (context == nullptr) return 0;
    const RowsOf<const T> x(args.x_TH), dy(args.grad_y_TH);
    const RowsOf<T> dx(args.grad_x_TH);
    const int64_t width = args.x_TH.size(1);
    ForEachRow(*context, args.x_TH, [&](int64_t r) {
      const T *from = x(r), *dy_row = dy(r);
      T* to = dx(r);
      if (args.tanh) {
        Sweep<C>(width, [&](int64_t i, int64_t n) {
          const Vec v = LoadSome(from + i, n);
          const Vec u = C(2) * kSqrt2OverPi * (v + kCubic * v * v * v);
          const Vec du = C(2) * kSqrt2OverPi * (C(1) + C(3) * kCubic * v * v);
          const Vec s = Sigmoid(u);
          StoreSome(to + i, LoadSome(dy_row + i, n) * (s + v * s * (C(1) - s) * du), n);
        });
      } else {
        Sweep<C>(width, [&](int64_t i, int64_t n) {
          const Vec v = LoadSome(from + i, n);
          const Vec cdf = C(0.5) * (C(1) + Erf(v * C(0.70710678118654752440)));
          const Vec pdf = C(0.39894228040143267794) * Exp(v * v * C(-0.5));
          StoreSome(to + i, LoadSome(dy_row + i, n) * (cdf + v * pdf), n);
        });
      }
    });
    return 0;
  }
};

}  // namespace omni::cpu::OMNI_SIMD
