// One product per expert over its own rows, all tiles in one round of tasks: 2 R I O FLOPs in all,
// whatever the rows' distribution. Bound by the FMA units where experts have many rows, else by
// packing and reading the weights. Tiles follow from the experts' row counts, not from the threads.
#include "runtime/device/args/grouped_linear.h"

#include <algorithm>

#include "runtime/device/cpu/gemm.h"
#include "runtime/device/cpu/processor.h"
#include "runtime/device/cpu/register.h"
#include "runtime/device/cpu/widen.h"

namespace omni::cpu {
namespace {

bool Partition(const TensorView& offsets_E1, int64_t rows) {
  const int32_t* begin = offsets_E1.ptr<int32_t>();
  const int32_t* end = begin + offsets_E1.size(0);
  return *begin == 0 && end[-1] == rows && std::is_sorted(begin, end);
}

// Each Run is also its own scratch_bytes: with no context it only takes scratch.
template <typename T, ProductKernel kProduct>
struct GroupedLinear {
  using C = ComputeOf<T>;

  // The products' places in scratch; make(e, first row, rows) says what they are.
  struct Products {
    Gemm<C>* gemms;
    int64_t* first_tasks;
    int64_t count;

    Products(const TensorView& offsets_E1, Scratch& scratch)
        : gemms(scratch.Take<Gemm<C>>(offsets_E1.size(0) - 1)),
          first_tasks(scratch.Take<int64_t>(offsets_E1.size(0))),
          count(offsets_E1.size(0) - 1) {}

    template <typename Make>
    void Run(const KernelContext& ctx, const TensorView& offsets_E1, const Make& make) const {
      const int32_t* offsets = offsets_E1.ptr<int32_t>();
      for (int64_t e = 0; e < count; ++e)
        gemms[e] = make(e, int64_t{offsets[e]}, int64_t{offsets[e + 1]} - offsets[e]);
      RunGemms<C>(ctx, gemms, count, first_tasks);
    }
  };

  static int64_t Forward(const GroupedLinearForwardArgs& args, const KernelContext* context) {
    static constexpr KernelContext kNone = {};
    const KernelContext& ctx = context == nullptr ? kNone : *context;
    Scratch scratch(ctx.scratch);
    const Products products(args.offsets_E1, scratch);
    const auto x = Widened<T>(ctx, args.x_RI, scratch);
    const auto w = Widened<T>(ctx, args.weight_EOI, scratch);
    const auto y = Target<T>(args.y_RO, scratch);
    if (context == nullptr) return scratch.used();
    if (!Partition(args.offsets_E1, args.x_RI.size(0))) return kBadOffsets;
    products.Run(ctx, args.offsets_E1, [&](int64_t e, int64_t first, int64_t rows) -> Gemm<C> {
      return {.m = rows,
              .n = args.weight_EOI.size(1),
              .k = args.weight_EOI.size(2),
              .a = x.data + first * x.stride,
              .lda = x.stride,
              .b = w.data + e * w.stride,
              .ldb = args.weight_EOI.size(2),
              .b_transposed = true,
              .c = y.data + first * y.stride,
              .ldc = y.stride,
              .kernel = kProduct};
    });
    Rounded<T>(ctx, y, args.y_RO);
    return 0;
  }

  static int64_t BackwardInput(const GroupedLinearBackwardInputArgs& args,
                               const KernelContext* context) {
    static constexpr KernelContext kNone = {};
    const KernelContext& ctx = context == nullptr ? kNone : *context;
    Scratch scratch(ctx.scratch);
    const Products products(args.offsets_E1, scratch);
    const auto dy = Widened<T>(ctx, args.grad_y_RO, scratch);
    const auto w = Widened<T>(ctx, args.weight_EOI, scratch);
    const auto dx = Target<T>(args.grad_x_RI, scratch);
    if (context == nullptr) return scratch.used();
    if (!Partition(args.offsets_E1, args.grad_y_RO.size(0))) return kBadOffsets;
    products.Run(ctx, args.offsets_E1, [&](int64_t e, int64_t first, int64_t rows) -> Gemm<C> {
      return {.m = rows,
              .n = args.weight_EOI.size(2),
              .k = args.weight_EOI.size(1),
              .a = dy.data + first * dy.stride,
              .lda = dy.stride,
              .b = w.data + e * w.stride,
              .ldb = args.weight_EOI.size(2),
              .c = dx.data + first * dx.stride,
              .ldc = dx.stride,
              .kernel = kProduct};
    });
    Rounded<T>(ctx, dx, args.grad_x_RI);
    return 0;
  }

  static int64_t BackwardWeight(const GroupedLinearBackwardWeightArgs& args,
                                const KernelContext* context) {
    static constexpr KernelContext kNone = {};
    const KernelContext& ctx = context == nullptr ? kNone : *context;
    Scratch scratch(ctx.scratch);
    const Products products(args.offsets_E1, scratch);
    const auto x = Widened<T>(ctx, args.x_RI, scratch);
    const auto dy = Widened<T>(ctx, args.grad_y_RO, scratch);
    if (context == nullptr) return scratch.used();
    if (!Partition(args.offsets_E1, args.x_RI.size(0))) return kBadOffsets;
    const int64_t outs = args.grad_weight_EOI.size(1), ins = args.grad_weight_EOI.size(2);
    products.Run(ctx, args.offsets_E1, [&](int64_t e, int64_t first, int64_t rows) -> Gemm<C> {
      return {.m = rows == 0 ? 0 : outs,
              .n = ins,
              .k = rows,
              .a = dy.data + first * dy.stride,
              .lda = dy.stride,
              .a_transposed = true,
              .b = x.data + first * x.stride,
              .ldb = x.stride,
              .c = args.grad_weight_EOI.ptr<C>() + e * args.grad_weight_EOI.stride(0),
              .ldc = ins,
              .accumulate = true,
              .kernel = kProduct};
    });
    return 0;
  }

  static void Register(KernelRegistry& registry, DType dtype, int32_t priority, const char* forward,
                       const char* backward_input, const char* backward_weight) {
    registry.Register(MakeEntry<GroupedLinearForwardArgs, &GroupedLinear::Forward>(
        OpId::kGroupedLinearForward, dtype, forward, priority));
    registry.Register(MakeEntry<GroupedLinearBackwardInputArgs, &GroupedLinear::BackwardInput>(
        OpId::kGroupedLinearBackwardInput, dtype, backward_input, priority));
    registry.Register(MakeEntry<GroupedLinearBackwardWeightArgs, &GroupedLinear::BackwardWeight>(
        OpId::kGroupedLinearBackwardWeight, dtype, backward_weight, priority));
  }
};

}  // namespace

void RegisterGroupedLinearKernels(KernelRegistry& registry) {
  GroupedLinear<double, ProductKernel::kOpenBlas>::Register(
      registry, DType::kFloat64, 0, "f64_grouped_linear_fwd_cpu_openblas",
      "f64_grouped_linear_bwd_input_cpu_openblas", "f64_grouped_linear_bwd_weight_cpu_openblas");
  GroupedLinear<float, ProductKernel::kOpenBlas>::Register(
      registry, DType::kFloat32, 0, "f32_grouped_linear_fwd_cpu_openblas",
      "f32_grouped_linear_bwd_input_cpu_openblas", "f32_grouped_linear_bwd_weight_cpu_openblas");
  GroupedLinear<BFloat16, ProductKernel::kOpenBlas>::Register(
      registry, DType::kBFloat16, 0, "bf16_grouped_linear_fwd_cpu_openblas",
      "bf16_grouped_linear_bwd_input_cpu_openblas", "bf16_grouped_linear_bwd_weight_cpu_openblas");
  GroupedLinear<float, ProductKernel::kAvx2>::Register(
      registry, DType::kFloat32, 5, "f32_grouped_linear_fwd_cpu_avx2",
      "f32_grouped_linear_bwd_input_cpu_avx2", "f32_grouped_linear_bwd_weight_cpu_avx2");
  GroupedLinear<BFloat16, ProductKernel::kAvx2>::Register(
      registry, DType::kBFloat16, 5, "bf16_grouped_linear_fwd_cpu_avx2",
      "bf16_grouped_linear_bwd_input_cpu_avx2", "bf16_grouped_linear_bwd_weight_cpu_avx2");
  if (!HasAvx512()) return;
  GroupedLinear<float, ProductKernel::kAvx512>::Register(
      registry, DType::kFloat32, 10, "f32_grouped_linear_fwd_cpu_avx512",
      "f32_grouped_linear_bwd_input_cpu_avx512", "f32_grouped_linear_bwd_weight_cpu_avx512");
  GroupedLinear<BFloat16, ProductKernel::kAvx512>::Register(
      registry, DType::kBFloat16, 10, "bf16_grouped_linear_fwd_cpu_avx512",
      "bf16_grouped_linear_bwd_input_cpu_avx512", "bf16_grouped_linear_bwd_weight_cpu_avx512");
}

}  // namespace omni::cpu
