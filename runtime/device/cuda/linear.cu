// y = x W^T + b, dx = dy W, dW += dy^T x by cuBLASLt, dW summed in the product (beta 1). Where y or
// its gradient is fp32 and the rest bf16 (a router's logits), gradients are products in fp32 of
// widened operands. db += column sums of dy, in two stages in a fixed order.
#include "runtime/device/args/linear.h"
#include "runtime/device/cuda/bias.h"
#include "runtime/device/cuda/matmul.h"
#include "runtime/device/cuda/register.h"
#include "runtime/device/cuda/sums.h"

namespace omni::cuda {
namespace {

template <typename From, typename To>
struct Convert {
  template <typename T, int kCount>
  struct Body {
    Matrix<From> from;
    Matrix<To> to;
    __device__ void operator()(int64_t row, int64_t column) const {
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        to.row(row)[column + i] =
            Narrow<To>(static_cast<ComputeOf<To>>(Wide(from.row(row)[column + i])));
    }
  };
};

// Scratch of an operand that is widened to fp32, dense.
int64_t WideBytes(const TensorView& view) { return PieceBytes(view.num_elements() * 4); }
template <typename T>
cudaError_t Widen(const TensorView& view, void* to, cudaStream_t stream) {
  const int64_t width = WidthOf(view);
  return MapRows<Convert<T, float>::template Body, float>(
      false, view.sizes[0], width, stream, MatrixOf<T>(view),
      Matrix<float>{.data = static_cast<float*>(to), .stride = width});
}

template <typename T>
cudaError_t Forward(const LinearForwardArgs& args, const KernelContext* context) {
  const bool is_wide = args.y_TO.dtype != args.x_TI.dtype, has_bias = !args.bias_O.empty();
  const bool fuses_bias = has_bias && !is_wide && args.x_TI.dtype != DType::kFloat64;
  const cudaError_t error = Multiply(context, {.m = args.x_TI.sizes[0],
                                               .n = args.weight_OI.sizes[0],
                                               .k = args.x_TI.sizes[1],
                                               .dtype = args.x_TI.dtype,
                                               .c_dtype = args.y_TO.dtype,
                                               .a = args.x_TI.data,
                                               .lda = args.x_TI.strides[0],
                                               .b = args.weight_OI.data,
                                               .ldb = args.weight_OI.strides[0],
                                               .b_transposed = true,
                                               .c = args.y_TO.data,
                                               .ldc = args.y_TO.strides[0],
                                               .bias = fuses_bias ? args.bias_O.data : nullptr});
  if (error != cudaSuccess || !has_bias || fuses_bias) return error;
  return is_wide ? AddBias<ComputeOf<T>, T>(args.y_TO, args.bias_O, StreamOf(context))
                 : AddBias<T, T>(args.y_TO, args.bias_O, StreamOf(context));
}

int64_t BackwardInputScratch(const LinearBackwardInputArgs& args) {
  if (args.grad_y_TO.dtype == args.weight_OI.dtype) return 0;
  return WideBytes(args.weight_OI) + WideBytes(args.grad_x_TI);
}
template <typename T>
cudaError_t BackwardInput(const LinearBackwardInputArgs& args, const KernelContext* context) {
  Product product{.m = args.grad_y_TO.sizes[0],
                  .n = args.weight_OI.sizes[1],
                  .k = args.weight_OI.sizes[0],
                  .dtype = args.grad_y_TO.dtype,
                  .c_dtype = args.grad_y_TO.dtype,
                  .a = args.grad_y_TO.data,
                  .lda = args.grad_y_TO.strides[0],
                  .b = args.weight_OI.data,
                  .ldb = args.weight_OI.strides[0],
                  .c = args.grad_x_TI.data,
                  .ldc = args.grad_x_TI.strides[0]};
  if (args.grad_y_TO.dtype == args.weight_OI.dtype) return Multiply(context, product);
  auto* const weight = static_cast<std::byte*>(context->scratch);
  auto* const grad = reinterpret_cast<float*>(weight + WideBytes(args.weight_OI));
  cudaError_t error = Widen<T>(args.weight_OI, weight, StreamOf(context));
  if (error != cudaSuccess) return error;
  product.b = weight;
  product.ldb = product.n;
  product.c = grad;
  product.ldc = product.n;
  error = Multiply(context, product);
  if (error != cudaSuccess) return error;
  return MapRows<Convert<float, T>::template Body, float>(
      false, product.m, product.n, StreamOf(context),
      Matrix<float>{.data = grad, .stride = product.n}, MatrixOf<T>(args.grad_x_TI));
}

int64_t WideInputBytes(const LinearBackwardWeightArgs& args) {
  return args.x_TI.dtype == args.grad_y_TO.dtype ? 0 : WideBytes(args.x_TI);
}
template <typename T>
int64_t BackwardWeightScratch(const LinearBackwardWeightArgs& args) {
  return WideInputBytes(args) +
         (args.grad_bias_O.empty() ? 0 : ColumnSumsScratch<ComputeOf<T>>(args.grad_y_TO));
}
template <typename T>
cudaError_t BackwardWeight(const LinearBackwardWeightArgs& args, const KernelContext* context) {
  using C = ComputeOf<T>;
  const bool is_wide = args.x_TI.dtype != args.grad_y_TO.dtype;
  cudaError_t error = cudaSuccess;
  if (!args.grad_weight_OI.empty()) {
    Product product{.m = args.grad_y_TO.sizes[1],
                    .n = args.x_TI.sizes[1],
                    .k = args.x_TI.sizes[0],
                    .dtype = args.grad_y_TO.dtype,
                    .c_dtype = args.grad_weight_OI.dtype,
                    .a = args.grad_y_TO.data,
                    .lda = args.grad_y_TO.strides[0],
                    .a_transposed = true,
                    .b = args.x_TI.data,
                    .ldb = args.x_TI.strides[0],
                    .c = args.grad_weight_OI.data,
                    .ldc = args.grad_weight_OI.strides[0],
                    .beta = 1.0};
    if (is_wide) {
      error = Widen<T>(args.x_TI, context->scratch, StreamOf(context));
      product.b = context->scratch;
      product.ldb = product.n;
    }
    if (error == cudaSuccess) error = Multiply(context, product);
  }
  if (error != cudaSuccess || args.grad_bias_O.empty()) return error;
  void* const partial = static_cast<std::byte*>(context->scratch) + WideInputBytes(args);
  auto* const bias = static_cast<C*>(args.grad_bias_O.data);
  return is_wide ? AddColumnSums<C>(args.grad_y_TO, bias, partial, StreamOf(context))
                 : AddColumnSums<T>(args.grad_y_TO, bias, partial, StreamOf(context));
}

template <typename T>
void Register(KernelRegistry& registry, DType dtype, const char* forward, const char* input,
              const char* weight) {
  registry.Register(MakeEntry<LinearForwardArgs, Forward<T>>(OpId::kLinearForward, dtype, forward));
  registry.Register(MakeEntry<LinearBackwardInputArgs, BackwardInput<T>, BackwardInputScratch>(
      OpId::kLinearBackwardInput, dtype, input));
  registry.Register(
      MakeEntry<LinearBackwardWeightArgs, BackwardWeight<T>, BackwardWeightScratch<T>>(
          OpId::kLinearBackwardWeight, dtype, weight));
}

}  // namespace

void RegisterLinear(KernelRegistry& registry) {
  Register<double>(registry, DType::kFloat64, "f64_linear_fwd_cuda_lt",
                   "f64_linear_bwd_input_cuda_lt", "f64_linear_bwd_weight_cuda_lt");
  Register<float>(registry, DType::kFloat32, "f32_linear_fwd_cuda_lt",
                  "f32_linear_bwd_input_cuda_lt", "f32_linear_bwd_weight_cuda_lt");
  Register<__nv_bfloat16>(registry, DType::kBFloat16, "bf16_linear_fwd_cuda_lt",
                          "bf16_linear_bwd_input_cuda_lt", "bf16_linear_bwd_weight_cuda_lt");
}

}  // namespace omni::cuda
