#include "runtime/ops/cross_entropy.h"

#include "runtime/device/args/cross_entropy.h"
#include "runtime/ops/op_helpers.h"

namespace omni {

// The forward kernel leaves the gradients of a unit loss gradient (runtime/device/args/
// cross_entropy.h says why); backward multiplies by the real one, which is 1 at the end of a
// training step.
CrossEntropyResult LinearCrossEntropy(ExecContext& ctx, const Var& hidden_TH, const Weight& head_VH,
                                      const TensorView& targets_T, double scale) {
  const TensorView& hidden = hidden_TH.value;
  CheckRank(hidden, 2);
  CheckRank(head_VH.value, 2);
  const int64_t tokens = hidden.size(0);
  CheckWeight(head_VH, {head_VH.value.size(0), hidden.size(1)}, hidden.dtype);
  CheckRank(targets_T, 1);
  OMNI_CHECK_EQ(targets_T.size(0), tokens);
  OMNI_CHECK(targets_T.dtype == DType::kInt32);
  const DType loss_type = AccumulationType(hidden.dtype);
  const Var inputs[] = {hidden_TH};
  const bool recording = Recording(ctx, inputs, head_VH.trainable());
  CrossEntropyForwardArgs args;
  args.hidden_TH = hidden;
  args.head_VH = head_VH.value;
  args.targets_T = targets_T;
  args.loss = ctx.New(loss_type, {1});
  args.losses_T = ctx.New(loss_type, {tokens});
  args.argmax_T = ctx.New(DType::kInt32, {tokens});
  if (recording && hidden_TH.needs_grad())
    args.grad_hidden_TH = ctx.New(hidden.dtype, hidden.shape());
  if (recording && head_VH.trainable())
    args.grad_head_VH = ctx.New(loss_type, head_VH.value.shape());
  args.scale = scale;
  Launch(ctx, OpId::kCrossEntropyForward, hidden.dtype, args);
  CrossEntropyResult result{
      .loss = {.value = args.loss}, .losses_T = args.losses_T, .argmax_T = args.argmax_T};
  if (!recording) return result;

  const auto backward_input = [saved = args.grad_hidden_TH](Tape::BackwardContext& back) {
    if (!back.needs_grad_input(0)) return;
    Launch(back.ctx, OpId::kCrossEntropyBackward, saved.dtype,
           CrossEntropyBackwardArgs{
               .grad_loss = back.grad_output(0), .x = saved, .y = back.new_grad_input(0)});
  };
  const auto weight_grad = [saved = args.grad_head_VH, grad = head_VH.grad,
                            dtype = hidden.dtype](Tape::BackwardContext& back) {
    Launch(back.ctx, OpId::kCrossEntropyBackward, dtype,
           CrossEntropyBackwardArgs{
               .grad_loss = back.grad_output(0), .x = saved, .y = grad, .accumulate = 1});
  };
  if (hidden_TH.needs_grad())
    ctx.tape->Save("cross_entropy_grad_hidden", NeededBy::kBackwardInput, args.grad_hidden_TH);
  if (head_VH.trainable())
    ctx.tape->Save("cross_entropy_grad_head", NeededBy::kWeightGrad, args.grad_head_VH);
  result.loss = ctx.tape->Record("cross_entropy", inputs, {&args.loss, 1}, head_VH.trainable(),
                                 backward_input, weight_grad)[0];
  return result;
}

}  // namespace omni
