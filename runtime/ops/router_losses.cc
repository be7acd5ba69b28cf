#include "runtime/ops/router_losses.h"

#include <numeric>

#include "runtime/device/args/moe.h"
#include "runtime/ops/op_helpers.h"

namespace omni {
namespace {

// The tokens of each set, those on other ranks included.
std::vector<int32_t> SetTokens(absl::Span<const int32_t> cu, bool pooled,
                               const SharedSequences* shared) {
  std::vector<int64_t> tokens;
  for (size_t s = 0; s + 1 < cu.size(); ++s) tokens.push_back(cu[s + 1] - cu[s]);
  if (shared != nullptr) {
    const std::vector<int64_t> here = tokens;
    tokens.assign(shared->lengths.begin(), shared->lengths.end());
    if (pooled) tokens = {std::accumulate(tokens.begin(), tokens.end(), int64_t{0})};
    OMNI_CHECK_EQ(tokens.size(), here.size());
    for (size_t s = 0; s < here.size(); ++s) OMNI_CHECK_LE(here[s], tokens[s]);
  }
  return {tokens.begin(), tokens.end()};
}

}  // namespace

Var BalanceLoss(ExecContext& ctx, absl::Span<const Routing> layers,
                absl::Span<const int32_t> cu_sequences, BalanceSets sets, double scale,
                const SharedSequences* shared) {
  OMNI_CHECK(!layers.empty());
  const TensorView& first = layers[0].probs_TE.value;
  const DType dtype = first.dtype;
  const int64_t num_experts = first.size(1);
  const bool pooled = sets == BalanceSets::kPooled;
  std::vector<int32_t> cu(cu_sequences.begin(), cu_sequences.end());
  if (pooled) cu = {0, static_cast<int32_t>(first.size(0))};
  OMNI_CHECK(!cu.empty());
  OMNI_CHECK_EQ(int64_t{cu.front()}, 0);
  OMNI_CHECK_EQ(int64_t{cu.back()}, first.size(0));
  const auto num_sets = static_cast<int64_t>(cu.size()) - 1;

  const std::vector<int32_t> tokens = SetTokens(cu, pooled, shared);
  // Statistics of each layer, or of all when pooled.
  const int64_t num_statistics = pooled ? 1 : static_cast<int64_t>(layers.size());
  const TensorView pairs = ctx.New(dtype, {num_statistics, num_sets, num_experts});
  const TensorView prob_sums = ctx.New(dtype, {num_statistics, num_sets, num_experts});
  const auto at = [num_sets, num_experts](const TensorView& statistics, int64_t index) {
    return statistics.Rows(index, 1).Reshape({num_sets, num_experts});
  };
  const TensorView cu_S1 = UploadNew<int32_t>(ctx, cu, {num_sets + 1});
  std::vector<Var> inputs;
  for (size_t i = 0; i < layers.size(); ++i) {
    OMNI_CHECK(layers[i].probs_TE.value.shape() == first.shape());
    const int64_t index = pooled ? 0 : static_cast<int64_t>(i);
    Launch(ctx, OpId::kBalanceStatistics, dtype,
           BalanceStatisticsArgs{.probs_TE = layers[i].probs_TE.value,
                                 .experts_TK = layers[i].experts_TK,
                                 .cu_S1 = cu_S1,
                                 .pairs_SE = at(pairs, index),
                                 .prob_sums_SE = at(prob_sums, index),
                                 .add = pooled && i > 0});
    inputs.push_back(layers[i].probs_TE);
  }
  if (shared != nullptr) shared->sum_pairs(ctx, pairs);
  BalanceLossForwardArgs args;
  args.tokens_S = UploadNew<int32_t>(ctx, tokens, {num_sets});
  args.loss = ctx.New(dtype, {1});
  args.num_layers = pooled ? static_cast<int32_t>(layers.size()) : 1;
  args.scale = scale;
  for (int64_t i = 0; i < num_statistics; ++i) {
    args.pairs_SE = at(pairs, i);
    args.prob_sums_SE = at(prob_sums, i);
    args.add_loss = i > 0;
    Launch(ctx, OpId::kBalanceLossForward, dtype, args);
  }
  if (!Recording(ctx, inputs, false)) return {.value = args.loss};
  for (const TensorView& view : {cu_S1, args.tokens_S, pairs})
    ctx.tape->Save("balance_loss", NeededBy::kBackwardInput, view);
  const auto backward = [args, cu_S1, pairs, at, pooled, dtype,
                         num_layers = layers.size()](Tape::BackwardContext& back) {
    for (size_t i = 0; i < num_layers; ++i) {
      const auto input = static_cast<int>(i);
      if (!back.needs_grad_input(input)) continue;
      Launch(back.ctx, OpId::kBalanceLossBackward, dtype,
             BalanceLossBackwardArgs{.grad_loss = back.grad_output(0),
                                     .pairs_SE = at(pairs, pooled ? 0 : input),
                                     .tokens_S = args.tokens_S,
                                     .cu_S1 = cu_S1,
                                     .grad_probs_TE = back.new_grad_input(input),
                                     .num_layers = args.num_layers,
                                     .scale = args.scale});
    }
  };
  return ctx.tape->Record("balance_loss", inputs, {&args.loss, 1}, false, backward)[0];
}

Var RouterZLoss(ExecContext& ctx, absl::Span<const Routing> layers, double scale) {
  OMNI_CHECK(!layers.empty());
  const DType dtype = layers[0].lse_T.value.dtype;
  ZLossForwardArgs args;
  args.loss = ctx.New(dtype, {1});
  args.scale = scale;
  std::vector<Var> inputs;
  for (const Routing& layer : layers) {
    args.lse_T = layer.lse_T.value;
    args.add_loss = &layer != &layers.front();
    Launch(ctx, OpId::kZLossForward, dtype, args);
    inputs.push_back(layer.lse_T);
  }
  if (!Recording(ctx, inputs, false)) return {.value = args.loss};
  for (const Var& lse : inputs) ctx.tape->Save("z_loss_lse", NeededBy::kBackwardInput, lse.value);
  const auto backward = [inputs, scale, dtype](Tape::BackwardContext& back) {
    for (size_t i = 0; i < inputs.size(); ++i) {
      const auto input = static_cast<int>(i);
      if (!back.needs_grad_input(input)) continue;
      Launch(back.ctx, OpId::kZLossBackward, dtype,
             ZLossBackwardArgs{.grad_loss = back.grad_output(0),
                               .lse_T = inputs[i].value,
                               .grad_lse_T = back.new_grad_input(input),
                               .scale = scale});
    }
  };
  return ctx.tape->Record("z_loss", inputs, {&args.loss, 1}, false, backward)[0];
}

}  // namespace omni
