// 1-D convolution and mean pooling over packed segments; normalising of uint8 patches.
//
// A convolution lays the frames under the kernel side by side, [F', k C], once for all segments,
// and is then one matrix product: 2 F' O C k FLOPs, bound by the FMA units; the copy is
// k / stride of the input. Pooling and normalising are bound by memory.
#include "runtime/device/args/conv.h"

#include <cstring>
#include <vector>

#include "runtime/device/cpu/column_sums.h"
#include "runtime/device/cpu/gemm.h"
#include "runtime/device/cpu/processor.h"
#include "runtime/device/cpu/register.h"
#include "runtime/device/cpu/widen.h"

namespace omni::cpu {
namespace {

// Rows of one segment before and after the op.
struct Segment {
  int64_t in, in_count, out, out_count;
};
Segment SegmentAt(const TensorView& cu_in, const TensorView& cu_out, int64_t s) {
  const int32_t *in = cu_in.ptr<int32_t>(), *out = cu_out.ptr<int32_t>();
  return {in[s], in[s + 1] - in[s], out[s], out[s + 1] - out[s]};
}

// body(segment, count): every segment, with the number of its rows before or after the op.
template <typename Body>
void ForEachPiece(const KernelContext& ctx, const TensorView& cu_in, const TensorView& cu_out,
                  bool over_inputs, const Body& body) {
  ForEachTask(ctx, cu_in.size(0) - 1, [&](int64_t s) {
    const Segment segment = SegmentAt(cu_in, cu_out, s);
    body(segment, over_inputs ? segment.in_count : segment.out_count);
  });
}

template <typename T, ProductKernel kProduct>
struct Conv {
  using C = ComputeOf<T>;

  // frames [F', k, C] of packed x [F, C]
  static void Unfold(const KernelContext& ctx, const Matrix<const C>& x, const TensorView& cu_in,
                     const TensorView& cu_out, int64_t kernel, int64_t stride, int64_t padding,
                     C* frames) {
    const int64_t width = x.columns;
    ForEachPiece(ctx, cu_in, cu_out, false, [&](const Segment& segment, int64_t count) {
      for (int64_t f = 0; f < count; ++f) {
        C* to = frames + (segment.out + f) * kernel * width;
        for (int64_t j = 0; j < kernel; ++j, to += width) {
          const int64_t i = f * stride + j - padding;
          if (i < 0 || i >= segment.in_count)
            std::memset(to, 0, width * sizeof(C));
          else
            std::memcpy(to, x.data + (segment.in + i) * x.stride, width * sizeof(C));
        }
      }
    });
  }

  // weight [O, C, k] as [O, k, C]
  static void PermuteWeight(const TensorView& weight, C* to) {
    const T* from = weight.ptr<T>();
    const int64_t outs = weight.size(0), channels = weight.size(1), kernel = weight.size(2);
    for (int64_t o = 0; o < outs; ++o)
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t j = 0; j < kernel; ++j)
          to[(o * kernel + j) * channels + c] = static_cast<C>(*from++);
  }

  static int64_t Forward(const Conv1dForwardArgs& args, const KernelContext* context) {
    static constexpr KernelContext kNone = {};
    const KernelContext& ctx = context == nullptr ? kNone : *context;
    Scratch scratch(ctx.scratch);
    const int64_t outs = args.weight_OCk.size(0), kernel = args.weight_OCk.size(2);
    const int64_t depth = args.weight_OCk.size(1) * kernel, rows = args.y_FO.size(0);
    const auto x = Widened<T>(ctx, args.x_FC, scratch);
    const auto bias = Widened<T>(ctx, args.bias_O, scratch);
    const auto y = Target<T>(args.y_FO, scratch);
    C* frames = scratch.Take<C>(rows * depth);
    C* weight = scratch.Take<C>(outs * depth);
    if (context == nullptr) return scratch.used();
    PermuteWeight(args.weight_OCk, weight);
    Unfold(ctx, x, args.cu_seqlens, args.cu_outlens, kernel, args.stride, args.padding, frames);
    RunGemm<C>(ctx, {.m = rows,
                     .n = outs,
                     .k = depth,
                     .a = frames,
                     .lda = depth,
                     .b = weight,
                     .ldb = depth,
                     .b_transposed = true,
                     .c = y.data,
                     .ldc = y.stride,
                     .bias = bias.data,
                     .kernel = kProduct});
    Rounded<T>(ctx, y, args.y_FO);
    return 0;
  }

  static int64_t Backward(const Conv1dBackwardArgs& args, const KernelContext* context) {
    static constexpr KernelContext kNone = {};
    const KernelContext& ctx = context == nullptr ? kNone : *context;
    Scratch scratch(ctx.scratch);
    const int64_t outs = args.weight_OCk.size(0), channels = args.weight_OCk.size(1);
    const int64_t kernel = args.weight_OCk.size(2), depth = channels * kernel;
    const int64_t rows = args.grad_y_FO.size(0);
    const bool wants_input = !args.grad_x_FC.empty(), wants_weight = !args.grad_weight_OCk.empty();
    const auto dy = Widened<T>(ctx, args.grad_y_FO, scratch);
    const auto x = wants_weight ? Widened<T>(ctx, args.x_FC, scratch) : Matrix<const C>{};
    const auto dx = wants_input ? Target<T>(args.grad_x_FC, scratch) : Matrix<C>{};
    C* frames = scratch.Take<C>(rows * depth);
    C* weight = scratch.Take<C>(outs * depth);
    if (context == nullptr) return scratch.used();

    if (wants_input) {
      PermuteWeight(args.weight_OCk, weight);
      RunGemm<C>(ctx, {.m = rows,
                       .n = depth,
                       .k = outs,
                       .a = dy.data,
                       .lda = dy.stride,
                       .b = weight,
                       .ldb = depth,
                       .c = frames,
                       .ldc = depth,
                       .kernel = kProduct});
      // Each frame sums, by ascending tap, what it gave to the outputs it lay under.
      ForEachPiece(ctx, args.cu_seqlens, args.cu_outlens, true,
                   [&](const Segment& segment, int64_t count) {
                     for (int64_t i = 0; i < count; ++i) {
                       C* to = dx.data + (segment.in + i) * dx.stride;
                       std::memset(to, 0, channels * sizeof(C));
                       for (int64_t j = 0; j < kernel; ++j) {
                         const int64_t start = i + args.padding - j;
                         if (start < 0 || start % args.stride != 0) continue;
                         const int64_t f = start / args.stride;
                         if (f >= segment.out_count) continue;
                         const C* from = frames + ((segment.out + f) * kernel + j) * channels;
                         for (int64_t c = 0; c < channels; ++c) to[c] += from[c];
                       }
                     }
                   });
      Rounded<T>(ctx, dx, args.grad_x_FC);
    }
    if (wants_weight && rows > 0) {
      Unfold(ctx, x, args.cu_seqlens, args.cu_outlens, kernel, args.stride, args.padding, frames);
      RunGemm<C>(ctx, {.m = outs,
                       .n = depth,
                       .k = rows,
                       .a = dy.data,
                       .lda = dy.stride,
                       .a_transposed = true,
                       .b = frames,
                       .ldb = depth,
                       .c = weight,
                       .ldc = depth,
                       .kernel = kProduct});
      C* grad = args.grad_weight_OCk.ptr<C>();
      for (int64_t o = 0; o < outs; ++o)
        for (int64_t c = 0; c < channels; ++c)
          for (int64_t j = 0; j < kernel; ++j) *grad++ += weight[(o * kernel + j) * channels + c];
    }
    if (!args.grad_bias_O.empty()) AddColumnSums<C>(ctx, dy, args.grad_bias_O.ptr<C>());
    return 0;
  }

  static int64_t Normalize(const PatchNormalizeArgs& args, const KernelContext* context) {
    if (context == nullptr) return 0;
    const int64_t width = args.patches_PI.size(1), per_channel = width / args.num_channels;
    // A byte has 256 values: divide once for each.
    std::vector<T> table(args.num_channels * 256);
    for (int32_t c = 0; c < args.num_channels; ++c)
      for (int32_t byte = 0; byte < 256; ++byte)
        table[c * 256 + byte] =
            static_cast<T>((static_cast<C>(byte) / C(255) - static_cast<C>(args.mean[c])) /
                           static_cast<C>(args.std[c]));
    ForEachRange(
        *context, args.patches_PI.size(0), RowGrain(width), [&](int64_t begin, int64_t end) {
          for (int64_t r = begin; r < end; ++r) {
            const uint8_t* from = args.patches_PI.ptr<uint8_t>() + r * args.patches_PI.stride(0);
            T* to = static_cast<T*>(args.y_PI.data) + r * args.y_PI.stride(0);
            for (int32_t c = 0; c < args.num_channels; ++c)
              for (int64_t i = 0; i < per_channel; ++i) *to++ = table[c * 256 + *from++];
          }
        });
    return 0;
  }

  static int64_t PoolForward(const AvgPool1dForwardArgs& args, const KernelContext* context) {
    if (context == nullptr) return 0;
    const int64_t width = args.x_FH.size(1);
    ForEachPiece(*context, args.cu_seqlens, args.cu_outlens, false,
                 [&](const Segment& segment, int64_t count) {
                   for (int64_t f = 0; f < count; ++f) {
                     T* to =
                         static_cast<T*>(args.y_FH.data) + (segment.out + f) * args.y_FH.stride(0);
                     const T* from = static_cast<const T*>(args.x_FH.data) +
                                     (segment.in + f * args.kernel) * args.x_FH.stride(0);
                     for (int64_t i = 0; i < width; ++i) {
                       C sum = 0;
                       for (int32_t j = 0; j < args.kernel; ++j)
                         sum += static_cast<C>(from[j * args.x_FH.stride(0) + i]);
                       to[i] = static_cast<T>(sum / static_cast<C>(args.kernel));
                     }
                   }
                 });
    return 0;
  }

  static int64_t PoolBackward(const AvgPool1dBackwardArgs& args, const KernelContext* context) {
    if (context == nullptr) return 0;
    const int64_t width = args.grad_x_FH.size(1);
    ForEachPiece(*context, args.cu_seqlens, args.cu_outlens, true,
                 [&](const Segment& segment, int64_t count) {
                   for (int64_t i = 0; i < count; ++i) {
                     T* to = static_cast<T*>(args.grad_x_FH.data) +
                             (segment.in + i) * args.grad_x_FH.stride(0);
                     const int64_t f = i / args.kernel;
                     const T* from = static_cast<const T*>(args.grad_y_FH.data) +
                                     (segment.out + f) * args.grad_y_FH.stride(0);
                     const bool used = f < segment.out_count;  // not in the remainder
                     for (int64_t h = 0; h < width; ++h)
                       to[h] = static_cast<T>(
                           used ? static_cast<C>(from[h]) / static_cast<C>(args.kernel) : C(0));
                   }
                 });
    return 0;
  }

  static void RegisterConv(KernelRegistry& registry, DType dtype, int32_t priority,
                           const char* forward, const char* backward) {
    registry.Register(MakeEntry<Conv1dForwardArgs, &Conv::Forward>(OpId::kConv1dForward, dtype,
                                                                   forward, priority));
    registry.Register(MakeEntry<Conv1dBackwardArgs, &Conv::Backward>(OpId::kConv1dBackward, dtype,
                                                                     backward, priority));
  }
  static void RegisterOthers(KernelRegistry& registry, DType dtype, const char* normalize,
                             const char* pool_forward, const char* pool_backward) {
    registry.Register(
        MakeEntry<PatchNormalizeArgs, &Conv::Normalize>(OpId::kPatchNormalize, dtype, normalize));
    registry.Register(MakeEntry<AvgPool1dForwardArgs, &Conv::PoolForward>(OpId::kAvgPool1dForward,
                                                                          dtype, pool_forward));
    registry.Register(MakeEntry<AvgPool1dBackwardArgs, &Conv::PoolBackward>(
        OpId::kAvgPool1dBackward, dtype, pool_backward));
  }
};

}  // namespace

void RegisterConvKernels(KernelRegistry& registry) {
  using F64 = Conv<double, ProductKernel::kOpenBlas>;
  using F32 = Conv<float, ProductKernel::kOpenBlas>;
  using BF16 = Conv<BFloat16, ProductKernel::kOpenBlas>;
  F64::RegisterConv(registry, DType::kFloat64, 0, "f64_conv1d_fwd_cpu_openblas",
                    "f64_conv1d_bwd_cpu_openblas");
  F32::RegisterConv(registry, DType::kFloat32, 0, "f32_conv1d_fwd_cpu_openblas",
                    "f32_conv1d_bwd_cpu_openblas");
  BF16::RegisterConv(registry, DType::kBFloat16, 0, "bf16_conv1d_fwd_cpu_openblas",
                     "bf16_conv1d_bwd_cpu_openblas");
  F64::RegisterOthers(registry, DType::kFloat64, "f64_patchnormalize_fwd_cpu",
                      "f64_avgpool1d_fwd_cpu", "f64_avgpool1d_bwd_cpu");
  F32::RegisterOthers(registry, DType::kFloat32, "f32_patchnormalize_fwd_cpu",
                      "f32_avgpool1d_fwd_cpu", "f32_avgpool1d_bwd_cpu");
  BF16::RegisterOthers(registry, DType::kBFloat16, "bf16_patchnormalize_fwd_cpu",
                       "bf16_avgpool1d_fwd_cpu", "bf16_avgpool1d_bwd_cpu");
  Conv<float, ProductKernel::kAvx2>::RegisterConv(
      registry, DType::kFloat32, 5, "f32_conv1d_fwd_cpu_avx2", "f32_conv1d_bwd_cpu_avx2");
  Conv<BFloat16, ProductKernel::kAvx2>::RegisterConv(
      registry, DType::kBFloat16, 5, "bf16_conv1d_fwd_cpu_avx2", "bf16_conv1d_bwd_cpu_avx2");
  if (!HasAvx512()) return;
  Conv<float, ProductKernel::kAvx512>::RegisterConv(
      registry, DType::kFloat32, 10, "f32_conv1d_fwd_cpu_avx512", "f32_conv1d_bwd_cpu_avx512");
  Conv<BFloat16, ProductKernel::kAvx512>::RegisterConv(
      registry, DType::kBFloat16, 10, "bf16_conv1d_fwd_cpu_avx512", "bf16_conv1d_bwd_cpu_avx512");
}

}  // namespace omni::cpu
