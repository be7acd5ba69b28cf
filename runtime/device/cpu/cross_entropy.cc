// The language-model head with its loss, over chunks of rows that have a target: logits of one
// chunk (kChunkLogits elements) exist at a time, and while they do, their gradients are taken as
// well. 2 R H V FLOPs forward, 6 R H V with gradients; bound by the FMA units.
#include "runtime/device/args/cross_entropy.h"

#include <cmath>
#include <cstring>

#include "runtime/device/cpu/gemm.h"
#include "runtime/device/cpu/processor.h"
#include "runtime/device/cpu/register.h"
#include "runtime/device/cpu/softmax_row.h"
#include "runtime/device/cpu/widen.h"

namespace omni::cpu {
namespace {

constexpr int64_t kChunkLogits = int64_t{1} << 22;

template <typename T, ProductKernel kProduct>
struct CrossEntropy {
  using C = ComputeOf<T>;

  // Of one row: its loss and arg max. Logits become grad_scale (softmax - onehot(target)) if that
  // is not 0.
  static C Loss(C* logits, int64_t classes, int64_t target, C grad_scale, int32_t* argmax) {
    const SoftmaxRowFunctions<C> softmax =
        kProduct == ProductKernel::kAvx512 ? Avx512SoftmaxRow<C>() : Avx2SoftmaxRow<C>();
    const C target_logit = logits[target];
    SoftmaxRow<C> row{
        .logits = logits, .num_classes = classes, .keeps_exponentials = grad_scale != C(0)};
    softmax.exponentials(&row);
    *argmax = row.argmax;
    if (row.keeps_exponentials) {
      softmax.scale(logits, classes, grad_scale / row.sum);
      logits[target] -= grad_scale;
    }
    return std::log(row.sum) + (row.top - target_logit);
  }

  static int64_t Forward(const CrossEntropyForwardArgs& args, const KernelContext* context) {
    static constexpr KernelContext kNone = {};
    const KernelContext& ctx = context == nullptr ? kNone : *context;
    Scratch scratch(ctx.scratch);
    const int64_t tokens = args.hidden_TH.size(0), width = args.hidden_TH.size(1);
    const int64_t classes = args.head_VH.size(0);
    const int64_t most_rows = AtMost(tokens, AtLeast(64, kChunkLogits / AtLeast(1, classes)));
    const bool wants_hidden = !args.grad_hidden_TH.empty(), wants_head = !args.grad_head_VH.empty();
    const auto head = Widened<T>(ctx, args.head_VH, scratch);
    int32_t* rows = scratch.Take<int32_t>(tokens);  // that have a target
    C* hidden = scratch.Take<C>(most_rows * width);
    C* logits = scratch.Take<C>(most_rows * classes);
    C* dhidden = scratch.Take<C>(wants_hidden ? most_rows * width : 0);
    if (context == nullptr) return scratch.used();

    const int32_t* targets = args.targets_T.ptr<int32_t>();
    C* losses = args.losses_T.ptr<C>();
    int32_t* argmax = args.argmax_T.ptr<int32_t>();
    int64_t num_rows = 0;
    for (int64_t t = 0; t < tokens; ++t) {
      if (targets[t] >= classes) return kBadTarget;
      if (targets[t] >= 0) rows[num_rows++] = static_cast<int32_t>(t);
      losses[t] = 0;
      argmax[t] = -1;
    }
    const auto row_of = [](const TensorView& x, int64_t t) {
      return static_cast<T*>(x.data) + t * x.stride(0);
    };
    if (wants_hidden && num_rows < tokens) {
      ForEachRange(ctx, tokens, RowGrain(width), [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t)
          if (targets[t] < 0)
            std::memset(static_cast<void*>(row_of(args.grad_hidden_TH, t)), 0, width * sizeof(T));
      });
    }
    if (wants_head && num_rows == 0)
      std::memset(args.grad_head_VH.data, 0, args.grad_head_VH.num_bytes());

    for (int64_t first = 0; first < num_rows; first += most_rows) {
      const int64_t count = AtMost(most_rows, num_rows - first);
      const int32_t* chunk = rows + first;
      ForEachRange(ctx, count, RowGrain(width), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const T* from = row_of(args.hidden_TH, chunk[i]);
          for (int64_t j = 0; j < width; ++j) hidden[i * width + j] = static_cast<C>(from[j]);
        }
      });
      RunGemm<C>(ctx, {.m = count,
                       .n = classes,
                       .k = width,
                       .a = hidden,
                       .lda = width,
                       .b = head.data,
                       .ldb = head.stride,
                       .b_transposed = true,
                       .c = logits,
                       .ldc = classes,
                       .kernel = kProduct});
      ForEachRange(ctx, count, RowGrain(classes), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          losses[chunk[i]] =
              Loss(logits + i * classes, classes, targets[chunk[i]],
                   wants_hidden || wants_head ? C(args.scale) : C(0), &argmax[chunk[i]]);
        }
      });
      if (wants_hidden) {
        RunGemm<C>(ctx, {.m = count,
                         .n = width,
                         .k = classes,
                         .a = logits,
                         .lda = classes,
                         .b = head.data,
                         .ldb = head.stride,
                         .c = dhidden,
                         .ldc = width,
                         .kernel = kProduct});
        ForEachRange(ctx, count, RowGrain(width), [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            T* to = row_of(args.grad_hidden_TH, chunk[i]);
            for (int64_t j = 0; j < width; ++j) to[j] = static_cast<T>(dhidden[i * width + j]);
          }
        });
      }
      if (wants_head)
        RunGemm<C>(ctx, {.m = classes,
                         .n = width,
                         .k = count,
                         .a = logits,
                         .lda = classes,
                         .a_transposed = true,
                         .b = hidden,
                         .ldb = width,
                         .c = args.grad_head_VH.ptr<C>(),
                         .ldc = width,
                         .accumulate = first > 0,
                         .kernel = kProduct});
    }
    double sum = 0.0;
    for (int64_t t = 0; t < tokens; ++t) sum += static_cast<double>(losses[t]);
    *args.loss.ptr<C>() = static_cast<C>(args.scale * sum);
    return 0;
  }

  // T is the type of x and of y, or the type y is accumulated in.
  template <typename S>
  static void Scale(const KernelContext& ctx, const CrossEntropyBackwardArgs& args) {
    const C factor = *args.grad_loss.ptr<C>();
    const int64_t width = args.x.size(1);
    ForEachRange(ctx, args.x.size(0), RowGrain(width), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const S* x = static_cast<const S*>(args.x.data) + r * args.x.stride(0);
        S* y = static_cast<S*>(args.y.data) + r * args.y.stride(0);
        if (args.accumulate)
          for (int64_t i = 0; i < width; ++i)
            y[i] = static_cast<S>(static_cast<C>(y[i]) + factor * static_cast<C>(x[i]));
        else
          for (int64_t i = 0; i < width; ++i) y[i] = static_cast<S>(factor * static_cast<C>(x[i]));
      }
    });
  }

  static int64_t Backward(const CrossEntropyBackwardArgs& args, const KernelContext* context) {
    if (context == nullptr) return 0;
    if (args.x.dtype == DTypeOf<T>::value)
      Scale<T>(*context, args);
    else
      Scale<C>(*context, args);
    return 0;
  }
};

template <typename T>
void Register(KernelRegistry& registry, DType dtype, const char* avx2, const char* avx512,
              const char* backward) {
  registry.Register(
      MakeEntry<CrossEntropyForwardArgs, &CrossEntropy<T, ProductKernel::kAvx2>::Forward>(
          OpId::kCrossEntropyForward, dtype, avx2));
  if (HasAvx512())
    registry.Register(
        MakeEntry<CrossEntropyForwardArgs, &CrossEntropy<T, ProductKernel::kAvx512>::Forward>(
            OpId::kCrossEntropyForward, dtype, avx512, 10));
  registry.Register(
      MakeEntry<CrossEntropyBackwardArgs, &CrossEntropy<T, ProductKernel::kAvx2>::Backward>(
          OpId::kCrossEntropyBackward, dtype, backward));
}

}  // namespace

void RegisterCrossEntropyKernels(KernelRegistry& registry) {
  Register<double>(registry, DType::kFloat64, "f64_crossentropy_fwd_cpu_avx2",
                   "f64_crossentropy_fwd_cpu_avx512", "f64_crossentropy_bwd_cpu");
  Register<float>(registry, DType::kFloat32, "f32_crossentropy_fwd_cpu_avx2",
                  "f32_crossentropy_fwd_cpu_avx512", "f32_crossentropy_bwd_cpu");
  Register<BFloat16>(registry, DType::kBFloat16, "bf16_crossentropy_fwd_cpu_avx2",
                     "bf16_crossentropy_fwd_cpu_avx512", "bf16_crossentropy_bwd_cpu");
}

}  // namespace omni::cpu
