// y = x W^T + b, dx = dy W, dW += dy^T x, db += column sums of dy. 2 T I O FLOPs each; bound by
// the FMA units unless T is tiny. bf16 operands are widened first and results rounded once.
#include "runtime/device/args/linear.h"

#include "runtime/device/cpu/column_sums.h"
#include "runtime/device/cpu/gemm.h"
#include "runtime/device/cpu/processor.h"
#include "runtime/device/cpu/register.h"
#include "runtime/device/cpu/widen.h"

namespace omni::cpu {
namespace {

// Each Run is also its own scratch_bytes: with no context it only takes scratch.
template <typename T, ProductKernel kProduct>
struct Linear {
  using C = ComputeOf<T>;

  static int64_t Forward(const LinearForwardArgs& args, const KernelContext* context) {
    static constexpr KernelContext kNone = {};
    const KernelContext& ctx = context == nullptr ? kNone : *context;
    Scratch scratch(ctx.scratch);
    const auto x = Widened<T>(ctx, args.x_TI, scratch);
    const auto w = Widened<T>(ctx, args.weight_OI, scratch);
    const auto bias = Widened<T>(ctx, args.bias_O, scratch);
    const auto y = Target<T>(args.y_TO, scratch);
    if (context == nullptr) return scratch.used();
    RunGemm<C>(ctx, {.m = x.rows,
                     .n = w.rows,
                     .k = x.columns,
                     .a = x.data,
                     .lda = x.stride,
                     .b = w.data,
                     .ldb = w.stride,
                     .b_transposed = true,
                     .c = y.data,
                     .ldc = y.stride,
                     .bias = bias.data,
                     .kernel = kProduct});
    Rounded<T>(ctx, y, args.y_TO);
    return 0;
  }

  static int64_t BackwardInput(const LinearBackwardInputArgs& args, const KernelContext* context) {
    static constexpr KernelContext kNone = {};
    const KernelContext& ctx = context == nullptr ? kNone : *context;
    Scratch scratch(ctx.scratch);
    const auto dy = Widened<T>(ctx, args.grad_y_TO, scratch);
    const auto w = Widened<T>(ctx, args.weight_OI, scratch);
    const auto dx = Target<T>(args.grad_x_TI, scratch);
    if (context == nullptr) return scratch.used();
    RunGemm<C>(ctx, {.m = dy.rows,
                     .n = w.columns,
                     .k = dy.columns,
                     .a = dy.data,
                     .lda = dy.stride,
                     .b = w.data,
                     .ldb = w.stride,
                     .c = dx.data,
                     .ldc = dx.stride,
                     .kernel = kProduct});
    Rounded<T>(ctx, dx, args.grad_x_TI);
    return 0;
  }

  static int64_t BackwardWeight(const LinearBackwardWeightArgs& args,
                                const KernelContext* context) {
    static constexpr KernelContext kNone = {};
    const KernelContext& ctx = context == nullptr ? kNone : *context;
    Scratch scratch(ctx.scratch);
    const auto x = Widened<T>(ctx, args.x_TI, scratch);
    const auto dy = Widened<T>(ctx, args.grad_y_TO, scratch);
    if (context == nullptr) return scratch.used();
    if (dy.rows == 0) return 0;
    if (!args.grad_weight_OI.empty())
      RunGemm<C>(ctx, {.m = dy.columns,
                       .n = x.columns,
                       .k = x.rows,
                       .a = dy.data,
                       .lda = dy.stride,
                       .a_transposed = true,
                       .b = x.data,
                       .ldb = x.stride,
                       .c = args.grad_weight_OI.ptr<C>(),
                       .ldc = args.grad_weight_OI.stride(0),
                       .accumulate = true,
                       .kernel = kProduct});
    if (!args.grad_bias_O.empty()) AddColumnSums<C>(ctx, dy, args.grad_bias_O.ptr<C>());
    return 0;
  }

  static void Register(KernelRegistry& registry, DType dtype, int32_t priority, const char* forward,
                       const char* backward_input, const char* backward_weight) {
    registry.Register(MakeEntry<LinearForwardArgs, &Linear::Forward>(OpId::kLinearForward, dtype,
                                                                     forward, priority));
    registry.Register(MakeEntry<LinearBackwardInputArgs, &Linear::BackwardInput>(
        OpId::kLinearBackwardInput, dtype, backward_input, priority));
    registry.Register(MakeEntry<LinearBackwardWeightArgs, &Linear::BackwardWeight>(
        OpId::kLinearBackwardWeight, dtype, backward_weight, priority));
  }
};

}  // namespace

void RegisterLinearKernels(KernelRegistry& registry) {
  Linear<double, ProductKernel::kOpenBlas>::Register(
      registry, DType::kFloat64, 0, "f64_linear_fwd_cpu_openblas",
      "f64_linear_bwd_input_cpu_openblas", "f64_linear_bwd_weight_cpu_openblas");
  Linear<float, ProductKernel::kOpenBlas>::Register(
      registry, DType::kFloat32, 0, "f32_linear_fwd_cpu_openblas",
      "f32_linear_bwd_input_cpu_openblas", "f32_linear_bwd_weight_cpu_openblas");
  Linear<BFloat16, ProductKernel::kOpenBlas>::Register(
      registry, DType::kBFloat16, 0, "bf16_linear_fwd_cpu_openblas",
      "bf16_linear_bwd_input_cpu_openblas", "bf16_linear_bwd_weight_cpu_openblas");
  Linear<float, ProductKernel::kAvx2>::Register(
      registry, DType::kFloat32, 5, "f32_linear_fwd_cpu_avx2", "f32_linear_bwd_input_cpu_avx2",
      "f32_linear_bwd_weight_cpu_avx2");
  Linear<BFloat16, ProductKernel::kAvx2>::Register(
      registry, DType::kBFloat16, 5, "bf16_linear_fwd_cpu_avx2", "bf16_linear_bwd_input_cpu_avx2",
      "bf16_linear_bwd_weight_cpu_avx2");
  if (!HasAvx512()) return;
  Linear<float, ProductKernel::kAvx512>::Register(
      registry, DType::kFloat32, 10, "f32_linear_fwd_cpu_avx512", "f32_linear_bwd_input_cpu_avx512",
      "f32_linear_bwd_weight_cpu_avx512");
  Linear<BFloat16, ProductKernel::kAvx512>::Register(
      registry, DType::kBFloat16, 10, "bf16_linear_fwd_cpu_avx512",
      "bf16_linear_bwd_input_cpu_avx512", "bf16_linear_bwd_weight_cpu_avx512");
}

}  // namespace omni::cpu
