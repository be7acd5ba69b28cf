// Losses on what routers do: sums over tokens in fp64, in an order that never changes. One pass
// over [T, E] or [T].
#include "runtime/device/args/moe.h"
#include "runtime/device/cuda/reduce.h"
#include "runtime/device/cuda/register.h"

namespace omni::cuda {
namespace {

template <typename C>
struct StatisticsFields {
  Matrix<C> probs, pairs, prob_sums;
  const int32_t *experts, *cu;
  int32_t num_experts, top_k;
  bool add;
};
// A block for each run, a thread for each expert.
template <typename C>
__global__ void __launch_bounds__(kThreads)
    Statistics(const __grid_constant__ StatisticsFields<C> f) {
  const int64_t run = blockIdx.x;
  for (int e = threadIdx.x; e < f.num_experts; e += kThreads) {
    double probs = 0, pairs = 0;
    for (int64_t t = f.cu[run]; t < f.cu[run + 1]; ++t) {
      probs += static_cast<double>(f.probs.row(t)[e]);
      for (int k = 0; k < f.top_k; ++k) pairs += f.experts[t * f.top_k + k] == e ? 1.0 : 0.0;
    }
    C *const pair_sum = f.pairs.row(run) + e, *const prob_sum = f.prob_sums.row(run) + e;
    *pair_sum = static_cast<C>(pairs) + (f.add ? *pair_sum : C{0});
    *prob_sum = static_cast<C>(probs) + (f.add ? *prob_sum : C{0});
  }
}
template <typename C>
cudaError_t BalanceStatistics(const BalanceStatisticsArgs& args, const KernelContext* context) {
  const StatisticsFields<C> f{.probs = MatrixOf<C>(args.probs_TE),
                              .pairs = MatrixOf<C>(args.pairs_SE),
                              .prob_sums = MatrixOf<C>(args.prob_sums_SE),
                              .experts = static_cast<const int32_t*>(args.experts_TK.data),
                              .cu = static_cast<const int32_t*>(args.cu_S1.data),
                              .num_experts = static_cast<int32_t>(args.probs_TE.sizes[1]),
                              .top_k = static_cast<int32_t>(args.experts_TK.sizes[1]),
                              .add = args.add != 0};
  return Launch(Statistics<C>, {static_cast<unsigned>(args.cu_S1.sizes[0] - 1), kThreads},
                StreamOf(context), f);
}

// One block. loss (+)= scale sum over s of E sum over e of pairs probs / n^2.
template <typename C>
__global__ void __launch_bounds__(kThreads)
    BalanceLoss(Matrix<C> pairs, Matrix<C> prob_sums, const int32_t* tokens, int32_t runs,
                int32_t num_experts, double num_layers, double scale, bool add, C* loss) {
  double sum = 0;
  for (int s = 0; s < runs; ++s) {
    const double n = num_layers * tokens[s];
    if (n == 0) continue;  // for the whole block
    double products = 0;
    for (int e = threadIdx.x; e < num_experts; e += kThreads)
      products += static_cast<double>(pairs.row(s)[e]) * static_cast<double>(prob_sums.row(s)[e]);
    sum += num_experts * BlockSum(products) / (n * n);
  }
  if (threadIdx.x == 0) *loss = static_cast<C>(scale * sum) + (add ? *loss : C{0});
}
template <typename C>
cudaError_t BalanceForward(const BalanceLossForwardArgs& args, const KernelContext* context) {
  return Launch(BalanceLoss<C>, {1, kThreads}, StreamOf(context), MatrixOf<C>(args.pairs_SE),
                MatrixOf<C>(args.prob_sums_SE), static_cast<const int32_t*>(args.tokens_S.data),
                static_cast<int32_t>(args.pairs_SE.sizes[0]),
                static_cast<int32_t>(args.pairs_SE.sizes[1]), static_cast<double>(args.num_layers),
                args.scale, args.add_loss != 0, static_cast<C*>(args.loss.data));
}

// A block for each run.
template <typename C>
__global__ void __launch_bounds__(kThreads)
    BalanceGrad(const C* grad_loss, Matrix<C> pairs, const int32_t* tokens, const int32_t* cu,
                Matrix<C> grad_probs, int32_t num_experts, double num_layers, double scale) {
  const int64_t run = blockIdx.x;
  const double n = num_layers * tokens[run];
  const C factor = static_cast<C>(static_cast<double>(*grad_loss) * scale * num_experts / (n * n));
  for (int32_t e = threadIdx.x; e < num_experts; e += kThreads) {
    const C grad = factor * pairs.row(run)[e];
    for (int64_t t = cu[run]; t < cu[run + 1]; ++t) grad_probs.row(t)[e] = grad;
  }
}
template <typename C>
cudaError_t BalanceBackward(const BalanceLossBackwardArgs& args, const KernelContext* context) {
  return Launch(BalanceGrad<C>, {static_cast<unsigned>(args.cu_S1.sizes[0] - 1), kThreads},
                StreamOf(context), static_cast<const C*>(args.grad_loss.data),
                MatrixOf<C>(args.pairs_SE), static_cast<const int32_t*>(args.tokens_S.data),
                static_cast<const int32_t*>(args.cu_S1.data), MatrixOf<C>(args.grad_probs_TE),
                static_cast<int32_t>(args.pairs_SE.sizes[1]), static_cast<double>(args.num_layers),
                args.scale);
}

// One block.
template <typename C>
__global__ void __launch_bounds__(kThreads)
    ZLoss(const C* lse, int64_t tokens, double scale, bool add, C* loss) {
  double sum = 0;
  for (int64_t t = threadIdx.x; t < tokens; t += kThreads)
    sum += static_cast<double>(lse[t]) * static_cast<double>(lse[t]);
  sum = BlockSum(sum);
  if (threadIdx.x == 0) *loss = static_cast<C>(scale * sum) + (add ? *loss : C{0});
}
template <typename C>
cudaError_t ZForward(const ZLossForwardArgs& args, const KernelContext* context) {
  return Launch(ZLoss<C>, {1, kThreads}, StreamOf(context), static_cast<const C*>(args.lse_T.data),
                args.lse_T.sizes[0], args.scale, args.add_loss != 0,
                static_cast<C*>(args.loss.data));
}

template <typename C>
__global__ void __launch_bounds__(kThreads)
    ZGrad(const C* grad_loss, const C* lse, int64_t tokens, C scale, C* grad_lse) {
  const int64_t t = ThreadNumber();
  if (t < tokens) grad_lse[t] = scale * *grad_loss * lse[t];
}
template <typename C>
cudaError_t ZBackward(const ZLossBackwardArgs& args, const KernelContext* context) {
  return Launch(ZGrad<C>, ThreadEach(args.lse_T.sizes[0]), StreamOf(context),
                static_cast<const C*>(args.grad_loss.data), static_cast<const C*>(args.lse_T.data),
                args.lse_T.sizes[0], static_cast<C>(2.0 * args.scale),
                static_cast<C*>(args.grad_lse_T.data));
}

template <typename C>
void RegisterAs(KernelRegistry& registry, DType dtype, const char* const (&names)[5]) {
  registry.Register(MakeEntry<BalanceStatisticsArgs, BalanceStatistics<C>>(OpId::kBalanceStatistics,
                                                                           dtype, names[0]));
  registry.Register(MakeEntry<BalanceLossForwardArgs, BalanceForward<C>>(OpId::kBalanceLossForward,
                                                                         dtype, names[1]));
  registry.Register(MakeEntry<BalanceLossBackwardArgs, BalanceBackward<C>>(
      OpId::kBalanceLossBackward, dtype, names[2]));
  registry.Register(MakeEntry<ZLossForwardArgs, ZForward<C>>(OpId::kZLossForward, dtype, names[3]));
  registry.Register(
      MakeEntry<ZLossBackwardArgs, ZBackward<C>>(OpId::kZLossBackward, dtype, names[4]));
}

}  // namespace

void RegisterRouterLosses(KernelRegistry& registry) {
  RegisterAs<double>(registry, DType::kFloat64,
                     {"f64_balance_statistics_cuda", "f64_balance_loss_fwd_cuda",
                      "f64_balance_loss_bwd_cuda", "f64_z_loss_fwd_cuda", "f64_z_loss_bwd_cuda"});
  RegisterAs<float>(registry, DType::kFloat32,
                    {"f32_balance_statistics_cuda", "f32_balance_loss_fwd_cuda",
                     "f32_balance_loss_bwd_cuda", "f32_z_loss_fwd_cuda", "f32_z_loss_bwd_cuda"});
}

}  // namespace omni::cuda
