// Losses on what routers do. One pass over [T, E] or [T]; sums in fp64, in the order of the tokens.
#include "runtime/device/args/moe.h"
#include "runtime/device/cpu/register.h"
#include "runtime/device/cpu/tasks.h"

namespace omni::cpu {
namespace {

template <typename C>
struct RouterLosses {
  static C* Row(const TensorView& x, int64_t i) {
    return static_cast<C*>(x.data) + i * x.stride(0);
  }

  // The (token, layer) pairs of run s.
  static double Count(const TensorView& tokens_S, int64_t s, int32_t num_layers) {
    return static_cast<double>(num_layers) * tokens_S.ptr<int32_t>()[s];
  }

  static int64_t BalanceStatistics(const BalanceStatisticsArgs& args,
                                   const KernelContext* context) {
    if (context == nullptr) return 0;
    constexpr int64_t kColumns = 64;
    const int64_t runs = args.cu_S1.size(0) - 1, num_experts = args.probs_TE.size(1);
    const int64_t top_k = args.experts_TK.size(1), blocks = CeilDiv(num_experts, kColumns);
    const int32_t* cu = args.cu_S1.ptr<int32_t>();
    ForEachTask(*context, runs * blocks, [&](int64_t task) {
      const int64_t s = task / blocks, first = task % blocks * kColumns;
      const int64_t count = AtMost(kColumns, num_experts - first);
      double probs[kColumns] = {}, pairs[kColumns] = {};
      for (int64_t t = cu[s]; t < cu[s + 1]; ++t) {
        const C* row = Row(args.probs_TE, t) + first;
        for (int64_t e = 0; e < count; ++e) probs[e] += static_cast<double>(row[e]);
        for (int64_t k = 0; k < top_k; ++k) {
          const int64_t e = args.experts_TK.ptr<int32_t>()[t * top_k + k] - first;
          if (e >= 0 && e < count) pairs[e] += 1.0;
        }
      }
      C *prob_sums = Row(args.prob_sums_SE, s) + first, *pair_sums = Row(args.pairs_SE, s) + first;
      for (int64_t e = 0; e < count; ++e) {
        prob_sums[e] = static_cast<C>(probs[e]) + (args.add ? prob_sums[e] : C(0));
        pair_sums[e] = static_cast<C>(pairs[e]) + (args.add ? pair_sums[e] : C(0));
      }
    });
    return 0;
  }

  static int64_t BalanceForward(const BalanceLossForwardArgs& args, const KernelContext* context) {
    if (context == nullptr) return 0;
    const int64_t runs = args.pairs_SE.size(0), num_experts = args.pairs_SE.size(1);
    double sum = 0.0;
    for (int64_t s = 0; s < runs; ++s) {
      const double n = Count(args.tokens_S, s, args.num_layers);
      if (n == 0) continue;
      double products = 0.0;
      for (int64_t e = 0; e < num_experts; ++e)
        products += static_cast<double>(Row(args.pairs_SE, s)[e]) *
                    static_cast<double>(Row(args.prob_sums_SE, s)[e]);
      sum += static_cast<double>(num_experts) * products / (n * n);
    }
    C* loss = args.loss.ptr<C>();
    *loss = static_cast<C>(args.scale * sum) + (args.add_loss ? *loss : C(0));
    return 0;
  }

  static int64_t BalanceBackward(const BalanceLossBackwardArgs& args,
                                 const KernelContext* context) {
    if (context == nullptr) return 0;
    const int64_t runs = args.cu_S1.size(0) - 1, num_experts = args.pairs_SE.size(1);
    const int32_t* cu = args.cu_S1.ptr<int32_t>();
    ForEachTask(*context, runs, [&](int64_t s) {
      const double n = Count(args.tokens_S, s, args.num_layers);
      const C factor = static_cast<C>(static_cast<double>(*args.grad_loss.ptr<C>()) * args.scale *
                                      static_cast<double>(num_experts) / (n * n));
      for (int64_t t = cu[s]; t < cu[s + 1]; ++t) {
        C* grad = Row(args.grad_probs_TE, t);
        for (int64_t e = 0; e < num_experts; ++e) grad[e] = factor * Row(args.pairs_SE, s)[e];
      }
    });
    return 0;
  }

  static int64_t ZForward(const ZLossForwardArgs& args, const KernelContext* context) {
    if (context == nullptr) return 0;
    double sum = 0.0;
    for (int64_t t = 0; t < args.lse_T.size(0); ++t) {
      const double lse = static_cast<double>(args.lse_T.ptr<C>()[t]);
      sum += lse * lse;
    }
    C* loss = args.loss.ptr<C>();
    *loss = static_cast<C>(args.scale * sum) + (args.add_loss ? *loss : C(0));
    return 0;
  }

  static int64_t ZBackward(const ZLossBackwardArgs& args, const KernelContext* context) {
    if (context == nullptr) return 0;
    const C factor = static_cast<C>(2.0 * args.scale) * *args.grad_loss.ptr<C>();
    for (int64_t t = 0; t < args.lse_T.size(0); ++t)
      args.grad_lse_T.ptr<C>()[t] = factor * args.lse_T.ptr<C>()[t];
    return 0;
  }

  static void Register(KernelRegistry& registry, DType dtype, const char* const (&names)[5]) {
    registry.Register(MakeEntry<BalanceStatisticsArgs, &BalanceStatistics>(OpId::kBalanceStatistics,
                                                                           dtype, names[4]));
    registry.Register(MakeEntry<BalanceLossForwardArgs, &BalanceForward>(OpId::kBalanceLossForward,
                                                                         dtype, names[0]));
    registry.Register(MakeEntry<BalanceLossBackwardArgs, &BalanceBackward>(
        OpId::kBalanceLossBackward, dtype, names[1]));
    registry.Register(MakeEntry<ZLossForwardArgs, &ZForward>(OpId::kZLossForward, dtype, names[2]));
    registry.Register(
        MakeEntry<ZLossBackwardArgs, &ZBackward>(OpId::kZLossBackward, dtype, names[3]));
  }
};

}  // namespace

void RegisterRouterLossKernels(KernelRegistry& registry) {
  RouterLosses<double>::Register(
      registry, DType::kFloat64,
      {"f64_balance_loss_fwd_cpu", "f64_balance_loss_bwd_cpu", "f64_z_loss_fwd_cpu",
       "f64_z_loss_bwd_cpu", "f64_balance_statistics_cpu"});
  RouterLosses<float>::Register(
      registry, DType::kFloat32,
      {"f32_balance_loss_fwd_cpu", "f32_balance_loss_bwd_cpu", "f32_z_loss_fwd_cpu",
       "f32_z_loss_bwd_cpu", "f32_balance_statistics_cpu"});
}

}  // namespace omni::cpu
