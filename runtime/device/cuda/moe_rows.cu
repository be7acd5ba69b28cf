// Rows of experts back to their tokens, and rows times a gate: one pass, bound by memory. A token's
// K rows are added in their order.
#include "runtime/device/args/moe.h"
#include "runtime/device/cuda/map.h"
#include "runtime/device/cuda/math.h"
#include "runtime/device/cuda/reduce.h"
#include "runtime/device/cuda/register.h"

namespace omni::cuda {
namespace {

// Weights of the pairs; all ones if there are none.
template <typename C>
struct PairWeights {
  const C* data;
  int64_t stride;
  __device__ C at(int64_t token, int64_t k) const {
    return data == nullptr ? C{1} : data[token * stride + k];
  }
};
template <typename C>
PairWeights<C> WeightsOf(const TensorView& weights_TK) {
  return {static_cast<const C*>(weights_TK.data), weights_TK.strides[0]};
}

template <typename T, int kCount>
struct CombineBody {
  using C = ComputeOf<T>;
  Matrix<T> x, y;
  const int32_t* rows;
  PairWeights<C> weights;
  int32_t top_k;
  __device__ void operator()(int64_t token, int64_t column) const {
    C sums[kCount] = {};
    for (int32_t k = 0; k < top_k; ++k) {
      T values[kCount];
      LoadElements(x.row(rows[token * top_k + k]) + column, values);
      const C weight = weights.at(token, k);
#pragma unroll
      for (int i = 0; i < kCount; ++i) sums[i] += weight * Wide(values[i]);
    }
    T values[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = Narrow<T>(sums[i]);
    StoreElements(y.row(token) + column, values);
  }
};
template <typename T>
cudaError_t CombineForward(const MoeCombineForwardArgs& args, const KernelContext* context) {
  return MapRows<CombineBody, T>(
      HaveWideRows(args.x_RH, args.y_TH), args.y_TH.sizes[0], WidthOf(args.y_TH), StreamOf(context),
      MatrixOf<T>(args.x_RH), MatrixOf<T>(args.y_TH),
      static_cast<const int32_t*>(args.rows_TK.data), WeightsOf<ComputeOf<T>>(args.weights_TK),
      static_cast<int32_t>(args.rows_TK.sizes[1]));
}

// A row times a factor, and its product with another row: what both backward passes are made of.
template <typename T>
__device__ __forceinline__ ComputeOf<T> ScaleAndDot(const T* x, const T* grad, ComputeOf<T> factor,
                                                    T* scaled, int64_t width) {
  ComputeOf<T> sum{0};
  for (int64_t i = threadIdx.x % 32; i < width; i += 32) {
    const ComputeOf<T> g = Wide(grad[i]);
    if (x != nullptr) sum += Wide(x[i]) * g;
    if (scaled != nullptr) scaled[i] = Narrow<T>(factor * g);
  }
  return WarpSum(sum);
}

// A warp for each pair.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    CombineBackwardKernel(Matrix<T> x, Matrix<T> grad_y, const int32_t* rows,
                          PairWeights<ComputeOf<T>> weights, Matrix<T> grad_x,
                          ComputeOf<T>* grad_weights, int32_t top_k, int64_t pairs, int64_t width) {
  const int64_t pair = ThreadNumber() / 32;
  if (pair >= pairs) return;  // a whole warp
  const auto k = static_cast<uint32_t>(pair) % static_cast<uint32_t>(top_k);
  const int64_t token = static_cast<uint32_t>(pair) / static_cast<uint32_t>(top_k);
  const int64_t row = rows[pair];
  const ComputeOf<T> dot = ScaleAndDot<T>(
      grad_weights == nullptr ? nullptr : x.row(row), grad_y.row(token), weights.at(token, k),
      grad_x.data == nullptr ? nullptr : grad_x.row(row), width);
  if (grad_weights != nullptr && threadIdx.x % 32 == 0) grad_weights[pair] = dot;
}
template <typename T>
cudaError_t CombineBackward(const MoeCombineBackwardArgs& args, const KernelContext* context) {
  using C = ComputeOf<T>;
  const int64_t top_k = args.rows_TK.sizes[1], pairs = args.rows_TK.sizes[0] * top_k;
  return Launch(CombineBackwardKernel<T>, ThreadEach(pairs * 32), StreamOf(context),
                MatrixOf<T>(args.x_RH), MatrixOf<T>(args.grad_y_TH),
                static_cast<const int32_t*>(args.rows_TK.data), WeightsOf<C>(args.weights_TK),
                MatrixOf<T>(args.grad_x_RH), static_cast<C*>(args.grad_weights_TK.data),
                static_cast<int32_t>(top_k), pairs, WidthOf(args.grad_y_TH));
}

template <typename T, int kCount>
struct GateBody {
  Matrix<T> x, gate, y;
  __device__ void operator()(int64_t row, int64_t column) const {
    const ComputeOf<T> factor = Sigmoid(Wide(*gate.row(row)));
    T values[kCount];
    LoadElements(x.row(row) + column, values);
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = Narrow<T>(factor * Wide(values[i]));
    StoreElements(y.row(row) + column, values);
  }
};
template <typename T>
cudaError_t GateForward(const SigmoidGateForwardArgs& args, const KernelContext* context) {
  return MapRows<GateBody, T>(HaveWideRows(args.x_TH, args.y_TH), args.y_TH.sizes[0],
                              WidthOf(args.y_TH), StreamOf(context), MatrixOf<T>(args.x_TH),
                              MatrixOf<T>(args.gate_T1), MatrixOf<T>(args.y_TH));
}

// A warp for each token.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    GateBackwardKernel(Matrix<T> x, Matrix<T> gate, Matrix<T> grad_y, Matrix<T> grad_x,
                       Matrix<T> grad_gate, int64_t tokens, int64_t width) {
  using C = ComputeOf<T>;
  const int64_t token = ThreadNumber() / 32;
  if (token >= tokens) return;  // a whole warp
  const C open = Sigmoid(Wide(*gate.row(token)));
  const C dot =
      ScaleAndDot<T>(grad_gate.data == nullptr ? nullptr : x.row(token), grad_y.row(token), open,
                     grad_x.data == nullptr ? nullptr : grad_x.row(token), width);
  if (grad_gate.data != nullptr && threadIdx.x % 32 == 0)
    *grad_gate.row(token) = Narrow<T>(open * (C{1} - open) * dot);
}
template <typename T>
cudaError_t GateBackward(const SigmoidGateBackwardArgs& args, const KernelContext* context) {
  const int64_t tokens = args.grad_y_TH.sizes[0];
  return Launch(GateBackwardKernel<T>, ThreadEach(tokens * 32), StreamOf(context),
                MatrixOf<T>(args.x_TH), MatrixOf<T>(args.gate_T1), MatrixOf<T>(args.grad_y_TH),
                MatrixOf<T>(args.grad_x_TH), MatrixOf<T>(args.grad_gate_T1), tokens,
                WidthOf(args.grad_y_TH));
}

template <typename T>
void RegisterAs(KernelRegistry& registry, DType dtype, const char* const (&names)[4]) {
  registry.Register(MakeEntry<MoeCombineForwardArgs, CombineForward<T>>(OpId::kMoeCombineForward,
                                                                        dtype, names[0]));
  registry.Register(MakeEntry<MoeCombineBackwardArgs, CombineBackward<T>>(OpId::kMoeCombineBackward,
                                                                          dtype, names[1]));
  registry.Register(MakeEntry<SigmoidGateForwardArgs, GateForward<T>>(OpId::kSigmoidGateForward,
                                                                      dtype, names[2]));
  registry.Register(MakeEntry<SigmoidGateBackwardArgs, GateBackward<T>>(OpId::kSigmoidGateBackward,
                                                                        dtype, names[3]));
}

}  // namespace

void RegisterMoeRows(KernelRegistry& registry) {
  RegisterAs<double>(registry, DType::kFloat64,
                     {"f64_moe_combine_fwd_cuda", "f64_moe_combine_bwd_cuda",
                      "f64_sigmoid_gate_fwd_cuda", "f64_sigmoid_gate_bwd_cuda"});
  RegisterAs<float>(registry, DType::kFloat32,
                    {"f32_moe_combine_fwd_cuda", "f32_moe_combine_bwd_cuda",
                     "f32_sigmoid_gate_fwd_cuda", "f32_sigmoid_gate_bwd_cuda"});
  RegisterAs<__nv_bfloat16>(registry, DType::kBFloat16,
                            {"bf16_moe_combine_fwd_cuda", "bf16_moe_combine_bwd_cuda",
                             "bf16_sigmoid_gate_fwd_cuda", "bf16_sigmoid_gate_bwd_cuda"});
}

}  // namespace omni::cuda
