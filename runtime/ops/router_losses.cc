#include "runtime/ops/router_losses.h"

#include "runtime/device/args/moe.h"
#include "runtime/ops/op_helpers.h"

namespace omni {

Var BalanceLoss(ExecContext& ctx, absl::Span<const Routing> layers,
                absl::Span<const int32_t> cu_sequences, BalanceSets sets, double scale) {
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

  BalanceLossForwardArgs args;
  args.cu_S1 = UploadNew<int32_t>(ctx, cu, {num_sets + 1});
  args.num_layers = pooled ? static_cast<int32_t>(layers.size()) : 1;
  args.scale = scale;
  const TensorView loss = ctx.New(dtype, {1});
  std::vector<Var> inputs;
  std::vector<TensorView> pairs;  // by layer
  for (const Routing& layer : layers) {
    OMNI_CHECK(layer.probs_TE.value.shape() == first.shape());
    const bool is_first = &layer == &layers.front(), is_last = &layer == &layers.back();
    args.probs_TE = layer.probs_TE.value;
    args.experts_TK = layer.experts_TK;
    if (is_first || !pooled) {
      args.pairs_SE = ctx.New(dtype, {num_sets, num_experts});
      args.prob_sums_SE = ctx.New(dtype, {num_sets, num_experts});
    }
    args.add_statistics = pooled && !is_first;
    args.loss = !pooled || is_last ? loss : TensorView{};
    args.add_loss = !pooled && !is_first;
    Launch(ctx, OpId::kBalanceLossForward, dtype, args);
    inputs.push_back(layer.probs_TE);
    pairs.push_back(args.pairs_SE);
  }
  if (!Recording(ctx, inputs, false)) return {.value = loss};
  ctx.tape->Save("balance_loss_cu", NeededBy::kBackwardInput, args.cu_S1);
  for (const TensorView& view : pairs)
    ctx.tape->Save("balance_loss_pairs", NeededBy::kBackwardInput, view);
  const auto backward = [args, pairs, dtype](Tape::BackwardContext& back) {
    for (size_t i = 0; i < pairs.size(); ++i) {
      const auto input = static_cast<int>(i);
      if (!back.needs_grad_input(input)) continue;
      Launch(back.ctx, OpId::kBalanceLossBackward, dtype,
             BalanceLossBackwardArgs{.grad_loss = back.grad_output(0),
                                     .pairs_SE = pairs[i],
                                     .cu_S1 = args.cu_S1,
                                     .grad_probs_TE = back.new_grad_input(input),
                                     .num_layers = args.num_layers,
                                     .scale = args.scale});
    }
  };
  return ctx.tape->Record("balance_loss", inputs, {&loss, 1}, false, backward)[0];
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
