// Rotary embedding. One pass over x: 3 FLOPs per element at 2 reads and 1 write (cos and sin are
// shared by a token's heads), so bound by memory.
#include "runtime/device/cpu/rope.h"

#include "runtime/device/args/rope.h"

namespace omni::cpu {
namespace {

constexpr int64_t kElementsPerTask = 1 << 15;

template <typename S, typename C, bool kBackward>
struct RopeRun {
  const RopeArgs* args;
  int64_t tokens_per_task;

  static void Task(void* self, int64_t index) {
    const auto& run = *static_cast<const RopeRun*>(self);
    const RopeArgs& args = *run.args;
    const auto x = args.x_TND.as<const S, 3>(), y = args.y_TND.as<const S, 3>();
    const auto cos_TR = args.cos_TR.as<const C, 2>(), sin_TR = args.sin_TR.as<const C, 2>();
    const int64_t half = x.sizes[2] / 2;
    const int64_t begin = index * run.tokens_per_task;
    const int64_t end =
        begin + run.tokens_per_task < x.sizes[0] ? begin + run.tokens_per_task : x.sizes[0];
    for (int64_t t = begin; t < end; ++t) {
      const C* cos = cos_TR.row(t);
      const C* sin = sin_TR.row(t);
      for (int64_t n = 0; n < x.sizes[1]; ++n) {
        const S* from = x.row(t) + n * x.strides[1];
        S* to = const_cast<S*>(y.row(t)) + n * y.strides[1];
        // y may be x: each pair is read before it is written.
#pragma GCC ivdep
        for (int64_t i = 0; i < half; ++i) {
          const C a = static_cast<C>(from[i]), b = static_cast<C>(from[i + half]);
          const C s = kBackward ? -sin[i] : sin[i];
          to[i] = static_cast<S>(a * cos[i] - b * s);
          to[i + half] = static_cast<S>(b * cos[i] + a * s);
        }
      }
    }
  }

  static int32_t Run(const void* untyped, const KernelContext* context) {
    const auto& args = *static_cast<const RopeArgs*>(untyped);
    const int64_t row = args.x_TND.sizes[1] * args.x_TND.sizes[2];
    const int64_t tokens = args.x_TND.sizes[0];
    if (tokens == 0 || row == 0) return 0;
    RopeRun run{&args, row < kElementsPerTask ? kElementsPerTask / row : 1};
    const int64_t num_tasks = (tokens + run.tokens_per_task - 1) / run.tokens_per_task;
    context->parallel_for(context->pool, num_tasks, &RopeRun::Task, &run);
    return 0;
  }
};

template <typename S, typename C>
void RegisterPair(KernelRegistry& registry, DType dtype, const char* forward,
                  const char* backward) {
  registry.Register({OpId::kRopeForward, DeviceKind::kCpu, dtype, forward, 0,
                     &RopeRun<S, C, false>::Run, nullptr, nullptr});
  registry.Register({OpId::kRopeBackward, DeviceKind::kCpu, dtype, backward, 0,
                     &RopeRun<S, C, true>::Run, nullptr, nullptr});
}

}  // namespace

void RegisterRopeKernels(KernelRegistry& registry) {
  RegisterPair<double, double>(registry, DType::kFloat64, "f64_rope_fwd_cpu", "f64_rope_bwd_cpu");
  RegisterPair<float, float>(registry, DType::kFloat32, "f32_rope_fwd_cpu", "f32_rope_bwd_cpu");
  RegisterPair<BFloat16, float>(registry, DType::kBFloat16, "bf16_rope_fwd_cpu",
                                "bf16_rope_bwd_cpu");
}

}  // namespace omni::cpu
