// RMSNorm and LayerNorm, forward and backward, with the residual addition in the same pass.
// One row at a time: read once from memory, then again from cache. Bound by memory: 2 to 4
// streams of rows at 4 to 12 FLOPs per element. Included once per SIMD target.
#pragma once

#include "runtime/device/args/norm.h"
#include "runtime/device/cpu/row_vectors.h"

namespace omni::cpu::OMNI_SIMD {

template <typename T, bool kLayer>
struct Norm {
  using C = ComputeOf<T>;
  using Vec = typename Simd<C>::Vec;
  static constexpr int kWidth = Simd<C>::kWidth;

  static int64_t NumRows(const TensorView& x) {
    return x.num_dims == 3 ? x.sizes[0] * x.sizes[1] : x.sizes[0];
  }

  static int64_t Forward(const NormForwardArgs& args, const KernelContext* context) {
    if (context == nullptr) return 0;
    const int64_t width = args.x_TH.size(-1);
    const RowsOf<const T> x(args.x_TH), branch(args.branch_TH);
    const RowsOf<T> sum(args.sum_TH), y(args.y_TH);
    const T* weight = static_cast<const T*>(args.weight_H.data);
    const T* bias = static_cast<const T*>(args.bias_H.data);
    C* means = static_cast<C*>(args.mean_T.data);
    C* rstds = static_cast<C*>(args.rstd_T.data);
    const C eps = static_cast<C>(args.eps);
    ForEachRange(*context, NumRows(args.x_TH), RowGrain(width), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const T* row = x(r);
        if (branch) {
          const T* other = branch(r);
          T* to = sum(r);
          Sweep<C>(width, [&](int64_t i, int64_t n) {
            StoreSome(to + i, LoadSome(row + i, n) + LoadSome(other + i, n), n);
          });
          row = to;
        }
        C mean = 0;
        if constexpr (kLayer) {
          Vec total = {};
          Sweep<C>(width, [&](int64_t i, int64_t n) { total += LoadSome(row + i, n); });
          mean = Sum(total) / static_cast<C>(width);
        }
        Vec squares = {};
        const Vec center = Splat(mean);
        Sweep<C>(width, [&](int64_t i, int64_t n) {
          Vec v = LoadSome(row + i, n);
          if constexpr (kLayer) v = Keep<C>(v - center, n);
          squares = Fma(v, v, squares);
        });
        const C rstd = C(1) / std::sqrt(Sum(squares) / static_cast<C>(width) + eps);
        T* to = y(r);
        const Vec scale = Splat(rstd);
        Sweep<C>(width, [&](int64_t i, int64_t n) {
          Vec v = (LoadSome(row + i, n) - center) * scale * LoadSome(weight + i, n);
          if (kLayer && bias != nullptr) v += LoadSome(bias + i, n);
          StoreSome(to + i, v, n);
        });
        if (means != nullptr) means[r] = mean;
        if (rstds != nullptr) rstds[r] = rstd;
      }
    });
    return 0;
  }

  // Weight gradients are summed within chunks of rows, then chunk by chunk.
  static int64_t RowsPerChunk(int64_t rows, int64_t width) {
    return AtLeast(CeilDiv(rows, 64), AtLeast(8, RowGrain(width)));
  }

  // dx = rstd (g - [mean(g)] - xhat mean(g xhat)), g = dy weight, xhat = (x - mean) rstd
  static int64_t Backward(const NormBackwardArgs& args, const KernelContext* context) {
    const int64_t rows = NumRows(args.x_TH), width = args.x_TH.size(-1);
    const int64_t grain = RowsPerChunk(rows, width), chunks = CeilDiv(rows, grain);
    Scratch scratch(context == nullptr ? nullptr : context->scratch);
    const bool wants_weight = !args.grad_weight_H.empty(), wants_bias = !args.grad_bias_H.empty();
    C* weight_sums = wants_weight ? scratch.Take<C>(chunks * width) : nullptr;
    C* bias_sums = wants_bias ? scratch.Take<C>(chunks * width) : nullptr;
    if (context == nullptr) return scratch.used();

    const RowsOf<const T> x(args.x_TH), dy(args.grad_y_TH), dsum(args.grad_sum_TH);
    const RowsOf<T> dx(args.grad_x_TH);
    const T* weight = static_cast<const T*>(args.weight_H.data);
    const C* means = static_cast<const C*>(args.mean_T.data);
    const C* rstds = static_cast<const C*>(args.rstd_T.data);
    ForEachTask(*context, chunks, [&](int64_t chunk) {
      C* dweight = wants_weight ? weight_sums + chunk * width : nullptr;
      C* dbias = wants_bias ? bias_sums + chunk * width : nullptr;
      for (int64_t i = 0; i < width; ++i) {
        if (dweight != nullptr) dweight[i] = 0;
        if (dbias != nullptr) dbias[i] = 0;
      }
      for (int64_t r = chunk * grain; r < AtMost(rows, (chunk + 1) * grain); ++r) {
        const T *x_row = x(r), *dy_row = dy(r);
        const Vec center = Splat(kLayer ? means[r] : C(0)), scale = Splat(rstds[r]);
        Vec g_total = {}, gx_total = {};
        Sweep<C>(width, [&](int64_t i, int64_t n) {
          const Vec d = LoadSome(dy_row + i, n);
          const Vec g = d * LoadSome(weight + i, n);
          const Vec xhat = (LoadSome(x_row + i, n) - center) * scale;
          if constexpr (kLayer) g_total += g;
          gx_total = Fma(g, xhat, gx_total);
          if (dweight != nullptr)
            StoreSome(dweight + i, Fma(d, xhat, LoadSome<C>(dweight + i, n)), n);
          if (dbias != nullptr) StoreSome(dbias + i, LoadSome<C>(dbias + i, n) + d, n);
        });
        if (!dx) continue;
        const Vec g_mean = Splat(kLayer ? Sum(g_total) / static_cast<C>(width) : C(0));
        const Vec gx_mean = Splat(Sum(gx_total) / static_cast<C>(width));
        T* to = dx(r);
        const T* dsum_row = dsum ? dsum(r) : nullptr;
        Sweep<C>(width, [&](int64_t i, int64_t n) {
          const Vec g = LoadSome(dy_row + i, n) * LoadSome(weight + i, n);
          const Vec xhat = (LoadSome(x_row + i, n) - center) * scale;
          Vec v = (g - g_mean - xhat * gx_mean) * scale;
          if (dsum_row != nullptr) v += LoadSome(dsum_row + i, n);
          StoreSome(to + i, v, n);
        });
      }
    });
    const auto add = [&](const C* sums, const TensorView& grad) {
      C* to = static_cast<C*>(grad.data);
      for (int64_t i = 0; i < width; ++i) {
        C total = 0;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) total += sums[chunk * width + i];
        to[i] += total;
      }
    };
    if (wants_weight) add(weight_sums, args.grad_weight_H);
    if (wants_bias) add(bias_sums, args.grad_bias_H);
    return 0;
  }
};

}  // namespace omni::cpu::OMNI_SIMD
