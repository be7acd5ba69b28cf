// Routing of tokens to experts: softmax, choice of the best K, and back. T E exponentials; nothing
// beside the experts' products.
#include <algorithm>
#include <cmath>

#include "runtime/device/args/moe.h"
#include "runtime/device/cpu/register.h"
#include "runtime/device/cpu/tasks.h"

namespace omni::cpu {
namespace {

// Keeps a sum of chosen probabilities that all underflowed (a selection bias may choose such) from
// being zero; nothing to any other.
constexpr double kTiny = 1e-20;

template <typename C>
struct Route {
  static C* Row(const TensorView& x, int64_t t) {
    return static_cast<C*>(x.data) + t * x.stride(0);
  }

  // Softmax of one row; returns log sum exp.
  static C Softmax(const C* logits, int64_t num_experts, C* probs) {
    const C top = *std::max_element(logits, logits + num_experts);
    C sum = 0;
    for (int64_t e = 0; e < num_experts; ++e) sum += probs[e] = std::exp(logits[e] - top);
    for (int64_t e = 0; e < num_experts; ++e) probs[e] /= sum;
    return std::log(sum) + top;
  }

  // The top_k best by score(e), not chosen twice; NaN is never better.
  template <typename Score>
  static void Choose(int64_t num_experts, int64_t top_k, const Score& score, int32_t* chosen) {
    for (int64_t k = 0; k < top_k; ++k) {
      int64_t best = -1;
      for (int64_t e = 0; e < num_experts; ++e) {
        if (std::find(chosen, chosen + k, static_cast<int32_t>(e)) != chosen + k) continue;
        if (best < 0 || score(e) > score(best)) best = e;
      }
      chosen[k] = static_cast<int32_t>(best);
    }
  }

  static int64_t Forward(const MoeRouteForwardArgs& args, const KernelContext* context) {
    if (context == nullptr) return 0;
    const int64_t tokens = args.logits_TE.size(0), num_experts = args.logits_TE.size(1);
    const int64_t top_k = args.experts_TK.size(1);
    const C* bias = args.selection_bias_E.empty() ? nullptr : args.selection_bias_E.ptr<C>();
    ForEachRange(*context, tokens, RowGrain(8 * num_experts), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const C* logits = Row(args.logits_TE, t);
        C* probs = Row(args.probs_TE, t);
        args.lse_T.ptr<C>()[t] = Softmax(logits, num_experts, probs);
        int32_t* chosen = args.experts_TK.ptr<int32_t>() + t * top_k;
        // Logits are in the order of the probabilities, and tell apart what rounds to one.
        if (bias == nullptr)
          Choose(
              num_experts, top_k, [&](int64_t e) { return logits[e]; }, chosen);
        else
          Choose(
              num_experts, top_k, [&](int64_t e) { return probs[e] + bias[e]; }, chosen);
        C* weights = Row(args.weights_TK, t);
        C sum = static_cast<C>(kTiny);
        for (int64_t k = 0; k < top_k; ++k) sum += weights[k] = probs[chosen[k]];
        if (args.normalize)
          for (int64_t k = 0; k < top_k; ++k) weights[k] /= sum;
      }
    });
    return 0;
  }

  static int64_t Backward(const MoeRouteBackwardArgs& args, const KernelContext* context) {
    if (context == nullptr) return 0;
    const int64_t tokens = args.probs_TE.size(0), num_experts = args.probs_TE.size(1);
    const int64_t top_k = args.experts_TK.size(1);
    ForEachRange(*context, tokens, RowGrain(8 * num_experts), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const C* probs = Row(args.probs_TE, t);
        C* grad = Row(args.grad_logits_TE, t);  // first of the probabilities
        for (int64_t e = 0; e < num_experts; ++e)
          grad[e] = args.grad_probs_TE.empty() ? C(0) : Row(args.grad_probs_TE, t)[e];
        if (!args.grad_weights_TK.empty()) {
          const int32_t* chosen = args.experts_TK.ptr<int32_t>() + t * top_k;
          const C* grad_weights = Row(args.grad_weights_TK, t);
          C sum = static_cast<C>(kTiny), mean = 0;
          if (args.normalize)
            for (int64_t k = 0; k < top_k; ++k) {
              sum += probs[chosen[k]];
              mean += grad_weights[k] * Row(args.weights_TK, t)[k];
            }
          for (int64_t k = 0; k < top_k; ++k)
            grad[chosen[k]] += args.normalize ? (grad_weights[k] - mean) / sum : grad_weights[k];
        }
        C mean = args.grad_lse_T.empty() ? C(0) : -args.grad_lse_T.ptr<C>()[t];
        for (int64_t e = 0; e < num_experts; ++e) mean += probs[e] * grad[e];
        for (int64_t e = 0; e < num_experts; ++e) grad[e] = probs[e] * (grad[e] - mean);
      }
    });
    return 0;
  }

  static void Register(KernelRegistry& registry, DType dtype, const char* forward,
                       const char* backward) {
    registry.Register(
        MakeEntry<MoeRouteForwardArgs, &Forward>(OpId::kMoeRouteForward, dtype, forward));
    registry.Register(
        MakeEntry<MoeRouteBackwardArgs, &Backward>(OpId::kMoeRouteBackward, dtype, backward));
  }
};

int64_t Sort(const MoeSortArgs& args, const KernelContext* context) {
  const int64_t num_experts = args.offsets_E1.size(0) - 1;
  const int64_t top_k = args.experts_TK.size(1), pairs = args.tokens_R.size(0);
  Scratch scratch(context == nullptr ? nullptr : context->scratch);
  int32_t* next = scratch.Take<int32_t>(num_experts);  // the row of an expert's next pair
  if (context == nullptr) return scratch.used();
  const int32_t* experts = args.experts_TK.ptr<int32_t>();
  int32_t* offsets = args.offsets_E1.ptr<int32_t>();
  std::fill(offsets, offsets + num_experts + 1, 0);
  for (int64_t p = 0; p < pairs; ++p) {
    if (experts[p] < 0 || experts[p] >= num_experts) return kBadExpert;
    ++offsets[experts[p] + 1];
  }
  for (int64_t e = 0; e < num_experts; ++e) {
    next[e] = offsets[e];
    offsets[e + 1] += offsets[e];
  }
  int32_t *tokens = args.tokens_R.ptr<int32_t>(), *rows = args.rows_TK.ptr<int32_t>();
  for (int64_t p = 0; p < pairs; ++p) {
    rows[p] = next[experts[p]]++;
    tokens[rows[p]] = static_cast<int32_t>(p / top_k);
  }
  return 0;
}

}  // namespace

void RegisterMoeRouteKernels(KernelRegistry& registry) {
  Route<double>::Register(registry, DType::kFloat64, "f64_moe_route_fwd_cpu",
                          "f64_moe_route_bwd_cpu");
  Route<float>::Register(registry, DType::kFloat32, "f32_moe_route_fwd_cpu",
                         "f32_moe_route_bwd_cpu");
  registry.Register(
      MakeEntry<MoeSortArgs, &Sort>(OpId::kMoeSort, DType::kInt32, "i32_moe_sort_cpu"));
}

}  // namespace omni::cpu
