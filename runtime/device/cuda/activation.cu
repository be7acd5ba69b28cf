// SwiGLU and GELU, forward and backward: one pass, bound by memory.
#include "runtime/device/args/activation.h"
#include "runtime/device/cuda/map.h"
#include "runtime/device/cuda/math.h"
#include "runtime/device/cuda/register.h"

namespace omni::cuda {
namespace {

// y = silu(gate) up.
template <typename T, int kCount>
struct SwiGluBody {
  Matrix<T> gate_up, y;
  int64_t width;
  __device__ void operator()(int64_t row, int64_t column) const {
    using C = ComputeOf<T>;
    T gate[kCount], up[kCount];
    LoadElements(gate_up.row(row) + column, gate);
    LoadElements(gate_up.row(row) + width + column, up);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const C g = Wide(gate[i]);
      gate[i] = Narrow<T>(g * Sigmoid(g) * Wide(up[i]));
    }
    StoreElements(y.row(row) + column, gate);
  }
};
template <typename T>
cudaError_t SwiGluForward(const SwiGluForwardArgs& args, const KernelContext* context) {
  return MapRows<SwiGluBody, T>(
      HaveWideRows(args.gate_up_T2F, args.y_TF), NumRowsOf(args.y_TF), WidthOf(args.y_TF),
      StreamOf(context), MatrixOf<T>(args.gate_up_T2F), MatrixOf<T>(args.y_TF), WidthOf(args.y_TF));
}

template <typename T, int kCount>
struct SwiGluBackwardBody {
  Matrix<T> gate_up, grad_y, grad_gate_up;
  int64_t width;
  __device__ void operator()(int64_t row, int64_t column) const {
    using C = ComputeOf<T>;
    T gate[kCount], up[kCount], grad[kCount];
    LoadElements(gate_up.row(row) + column, gate);
    LoadElements(gate_up.row(row) + width + column, up);
    LoadElements(grad_y.row(row) + column, grad);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const C g = Wide(gate[i]), d = Wide(grad[i]), s = Sigmoid(g), silu = g * s;
      gate[i] = Narrow<T>(d * Wide(up[i]) * (s + silu * (C{1} - s)));
      up[i] = Narrow<T>(d * silu);
    }
    StoreElements(grad_gate_up.row(row) + column, gate);
    StoreElements(grad_gate_up.row(row) + width + column, up);
  }
};
template <typename T>
cudaError_t SwiGluBackward(const SwiGluBackwardArgs& args, const KernelContext* context) {
  return MapRows<SwiGluBackwardBody, T>(
      HaveWideRows(args.gate_up_T2F, args.grad_y_TF, args.grad_gate_up_T2F),
      NumRowsOf(args.grad_y_TF), WidthOf(args.grad_y_TF), StreamOf(context),
      MatrixOf<T>(args.gate_up_T2F), MatrixOf<T>(args.grad_y_TF),
      MatrixOf<T>(args.grad_gate_up_T2F), WidthOf(args.grad_y_TF));
}

// The exact form, by erf; and the tanh form, (1 + tanh u) / 2 = sigmoid(2 u).
template <typename C>
struct GeluConstants {
  static constexpr C kSqrtHalf = C(0.70710678118654752440);
  static constexpr C kInverseSqrt2Pi = C(0.39894228040143267794);
  static constexpr C k2Sqrt2OverPi = C(2 * 0.79788456080286535588);
  static constexpr C kCubic = C(0.044715);
};

template <typename T, int kCount>
struct GeluBody {
  Matrix<T> x, y;
  bool tanh;
  __device__ void operator()(int64_t row, int64_t column) const {
    using C = ComputeOf<T>;
    using K = GeluConstants<C>;
    T values[kCount];
    LoadElements(x.row(row) + column, values);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const C v = Wide(values[i]);
      const C share = tanh ? Sigmoid(K::k2Sqrt2OverPi * (v + K::kCubic * v * v * v))
                           : C(0.5) * (C{1} + Erf(v * K::kSqrtHalf));
      values[i] = Narrow<T>(v * share);
    }
    StoreElements(y.row(row) + column, values);
  }
};
template <typename T>
cudaError_t GeluForward(const GeluForwardArgs& args, const KernelContext* context) {
  return MapRows<GeluBody, T>(HaveWideRows(args.x_TH, args.y_TH), NumRowsOf(args.x_TH),
                              WidthOf(args.x_TH), StreamOf(context), MatrixOf<T>(args.x_TH),
                              MatrixOf<T>(args.y_TH), args.tanh != 0);
}

template <typename T, int kCount>
struct GeluBackwardBody {
  Matrix<T> x, grad_y, grad_x;
  bool tanh;
  __device__ void operator()(int64_t row, int64_t column) const {
    using C = ComputeOf<T>;
    using K = GeluConstants<C>;
    T values[kCount], grad[kCount];
    LoadElements(x.row(row) + column, values);
    LoadElements(grad_y.row(row) + column, grad);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const C v = Wide(values[i]);
      C slope;
      if (tanh) {
        const C s = Sigmoid(K::k2Sqrt2OverPi * (v + K::kCubic * v * v * v));
        const C du = K::k2Sqrt2OverPi * (C{1} + C{3} * K::kCubic * v * v);
        slope = s + v * s * (C{1} - s) * du;
      } else {
        const C cdf = C(0.5) * (C{1} + Erf(v * K::kSqrtHalf));
        slope = cdf + v * K::kInverseSqrt2Pi * Exp(v * v * C(-0.5));
      }
      values[i] = Narrow<T>(Wide(grad[i]) * slope);
    }
    StoreElements(grad_x.row(row) + column, values);
  }
};
template <typename T>
cudaError_t GeluBackward(const GeluBackwardArgs& args, const KernelContext* context) {
  return MapRows<GeluBackwardBody, T>(HaveWideRows(args.x_TH, args.grad_y_TH, args.grad_x_TH),
                                      NumRowsOf(args.x_TH), WidthOf(args.x_TH), StreamOf(context),
                                      MatrixOf<T>(args.x_TH), MatrixOf<T>(args.grad_y_TH),
                                      MatrixOf<T>(args.grad_x_TH), args.tanh != 0);
}

template <typename T>
void RegisterAs(KernelRegistry& registry, DType dtype, const char* const (&names)[4]) {
  registry.Register(
      MakeEntry<SwiGluForwardArgs, SwiGluForward<T>>(OpId::kSwiGluForward, dtype, names[0]));
  registry.Register(
      MakeEntry<SwiGluBackwardArgs, SwiGluBackward<T>>(OpId::kSwiGluBackward, dtype, names[1]));
  registry.Register(
      MakeEntry<GeluForwardArgs, GeluForward<T>>(OpId::kGeluForward, dtype, names[2]));
  registry.Register(
      MakeEntry<GeluBackwardArgs, GeluBackward<T>>(OpId::kGeluBackward, dtype, names[3]));
}

}  // namespace

void RegisterActivations(KernelRegistry& registry) {
  RegisterAs<double>(
      registry, DType::kFloat64,
      {"f64_swiglu_fwd_cuda", "f64_swiglu_bwd_cuda", "f64_gelu_fwd_cuda", "f64_gelu_bwd_cuda"});
  RegisterAs<float>(
      registry, DType::kFloat32,
      {"f32_swiglu_fwd_cuda", "f32_swiglu_bwd_cuda", "f32_gelu_fwd_cuda", "f32_gelu_bwd_cuda"});
  RegisterAs<__nv_bfloat16>(
      registry, DType::kBFloat16,
      {"bf16_swiglu_fwd_cuda", "bf16_swiglu_bwd_cuda", "bf16_gelu_fwd_cuda", "bf16_gelu_bwd_cuda"});
}

}  // namespace omni::cuda
