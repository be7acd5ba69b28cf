// The softmax cross-entropy of rows whose classes are spread over ranks. Bound by the exponentials,
// 1 an element in the first step; the second is one pass over memory. Cut by rows.
#include <cmath>
#include <limits>

#include "runtime/device/args/cross_entropy.h"
#include "runtime/device/cpu/processor.h"
#include "runtime/device/cpu/register.h"
#include "runtime/device/cpu/softmax_row.h"
#include "runtime/device/cpu/tasks.h"

namespace omni::cpu {
namespace {

constexpr int32_t kMostClasses = 1 << 24;  // that fp32 can count

template <typename C>
struct Part {
  C top, sum, target_logit, argmax;
};

// A row's parts put together.
template <typename C>
struct Whole {
  C top = -std::numeric_limits<C>::infinity(), sum = 0, target_logit = 0;
  int32_t argmax = 0;

  // Part s is parts[s * stride].
  Whole(const Part<C>* parts, int64_t num_parts, int64_t stride) {
    for (int64_t s = 0; s < num_parts; ++s) {
      const Part<C>& part = parts[s * stride];
      target_logit += part.target_logit;
      if (!(part.top > top) && s > 0) continue;
      top = part.top;
      // Anything may lie here after an exchange that failed.
      argmax =
          part.argmax >= 0 && part.argmax <= kMostClasses ? static_cast<int32_t>(part.argmax) : -1;
    }
    for (int64_t s = 0; s < num_parts; ++s)
      if (parts[s * stride].sum != C(0)) sum += parts[s * stride].sum * Shift(parts[s * stride]);
  }
  C Shift(const Part<C>& part) const { return std::exp(part.top - top); }
  C loss() const { return std::log(sum) + (top - target_logit); }
};

template <typename C, bool kAvx512>
struct SoftmaxParts {
  static SoftmaxRowFunctions<C> Softmax() {
    return kAvx512 ? Avx512SoftmaxRow<C>() : Avx2SoftmaxRow<C>();
  }

  static int64_t Parts(const SoftmaxPartsArgs& args, const KernelContext* context) {
    if (context == nullptr) return 0;
    const int64_t num_rows = args.logits_RV.size(0), classes = args.logits_RV.size(1);
    const SoftmaxRowFunctions<C> softmax = Softmax();
    auto* parts = reinterpret_cast<Part<C>*>(args.parts_R4.ptr<C>());
    ForEachRange(*context, num_rows, RowGrain(classes), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        parts[r] = {-std::numeric_limits<C>::infinity(), C(0), C(0), C(0)};
        if (classes == 0) continue;
        C* logits = args.logits_RV.ptr<C>() + r * classes;
        const int32_t target = args.targets_R.ptr<int32_t>()[r];
        if (target >= 0 && target < classes) parts[r].target_logit = logits[target];
        SoftmaxRow<C> row{.logits = logits,
                          .num_classes = classes,
                          .keeps_exponentials = args.keep_exponentials != 0};
        softmax.exponentials(&row);
        parts[r].top = row.top;
        parts[r].sum = row.sum;
        parts[r].argmax = static_cast<C>(args.first_class + row.argmax);
      }
    });
    return 0;
  }

  static int64_t Join(const SoftmaxJoinArgs& args, const KernelContext* context) {
    if (context == nullptr) return 0;
    const int64_t num_parts = args.parts_SR4.size(0), num_rows = args.parts_SR4.size(1);
    const int64_t classes = args.logits_RV.empty() ? 0 : args.logits_RV.size(1);
    const SoftmaxRowFunctions<C> softmax = Softmax();
    const auto* parts = reinterpret_cast<const Part<C>*>(args.parts_SR4.ptr<C>());
    const int32_t* places = args.places_R.ptr<int32_t>();
    C* losses = args.losses_T.ptr<C>();
    ForEachRange(*context, num_rows, RowGrain(classes), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const Whole<C> whole(parts + r, num_parts, num_rows);
        if (places[r] >= 0) {
          losses[places[r]] = whole.loss();
          args.argmax_T.ptr<int32_t>()[places[r]] = whole.argmax;
        }
        if (classes == 0) continue;
        C* grads = args.logits_RV.ptr<C>() + r * classes;
        const C scale = static_cast<C>(args.scale);
        const int32_t target = args.targets_R.ptr<int32_t>()[r];
        softmax.scale(grads, classes,
                      scale / whole.sum * whole.Shift(parts[args.part * num_rows + r]));
        if (target >= 0 && target < classes) grads[target] -= scale;
      }
    });
    double sum = 0.0;
    for (int64_t r = 0; r < num_rows; ++r)
      if (places[r] >= 0) sum += static_cast<double>(losses[places[r]]);
    *args.loss.ptr<C>() += static_cast<C>(args.scale * sum);
    return 0;
  }

  static void Register(KernelRegistry& registry, DType dtype, const char* parts, const char* join) {
    const int32_t priority = kAvx512 ? 10 : 0;
    registry.Register(
        MakeEntry<SoftmaxPartsArgs, &Parts>(OpId::kSoftmaxParts, dtype, parts, priority));
    registry.Register(MakeEntry<SoftmaxJoinArgs, &Join>(OpId::kSoftmaxJoin, dtype, join, priority));
  }
};

}  // namespace

void RegisterSoftmaxPartKernels(KernelRegistry& registry) {
  SoftmaxParts<double, false>::Register(registry, DType::kFloat64, "f64_softmax_parts_cpu_avx2",
                                        "f64_softmax_join_cpu_avx2");
  SoftmaxParts<float, false>::Register(registry, DType::kFloat32, "f32_softmax_parts_cpu_avx2",
                                       "f32_softmax_join_cpu_avx2");
  if (!HasAvx512()) return;
  SoftmaxParts<double, true>::Register(registry, DType::kFloat64, "f64_softmax_parts_cpu_avx512",
                                       "f64_softmax_join_cpu_avx512");
  SoftmaxParts<float, true>::Register(registry, DType::kFloat32, "f32_softmax_parts_cpu_avx512",
                                      "f32_softmax_join_cpu_avx512");
}

}  // namespace omni::cpu
