#include "runtime/ops/grouped_linear.h"

#include "runtime/device/args/grouped_linear.h"
#include "runtime/ops/lora.h"
#include "runtime/ops/op_helpers.h"

namespace omni {

namespace {

Var PlainGroupedLinear(ExecContext& ctx, const Var& x_RI, const Weight& weight_EOI,
                       const TensorView& offsets_E1) {
  const TensorView& x = x_RI.value;
  CheckRank(x, 2);
  CheckRank(weight_EOI.value, 3);
  const int64_t groups = weight_EOI.value.size(0), outs = weight_EOI.value.size(1);
  CheckWeight(weight_EOI, {groups, outs, x.size(1)}, x.dtype);
  CheckRank(offsets_E1, 1);
  OMNI_CHECK(offsets_E1.dtype == DType::kInt32);
  OMNI_CHECK_EQ(offsets_E1.size(0), groups + 1);
  GroupedLinearForwardArgs args;
  args.x_RI = x;
  args.weight_EOI = weight_EOI.value;
  args.offsets_E1 = offsets_E1;
  args.y_RO = ctx.New(x.dtype, {x.size(0), outs});
  Launch(ctx, OpId::kGroupedLinearForward, x.dtype, args);

  const Var inputs[] = {x_RI};
  const bool trains = weight_EOI.trainable();
  if (!Recording(ctx, inputs, trains)) return {.value = args.y_RO};
  if (x_RI.needs_grad())
    ctx.tape->Save("grouped_linear_offsets", NeededBy::kBackwardInput, offsets_E1);
  if (trains) {
    ctx.tape->Save("grouped_linear_input", NeededBy::kWeightGrad, x);
    ctx.tape->Save("grouped_linear_offsets", NeededBy::kWeightGrad, offsets_E1);
  }
  const auto backward_input = [weight = weight_EOI.value, offsets_E1](Tape::BackwardContext& back) {
    if (!back.needs_grad_input(0)) return;
    Launch(back.ctx, OpId::kGroupedLinearBackwardInput, weight.dtype,
           GroupedLinearBackwardInputArgs{.grad_y_RO = back.grad_output(0),
                                          .weight_EOI = weight,
                                          .offsets_E1 = offsets_E1,
                                          .grad_x_RI = back.new_grad_input(0)});
  };
  const auto weight_grad = [x, offsets_E1, grad = weight_EOI.grad](Tape::BackwardContext& back) {
    Launch(back.ctx, OpId::kGroupedLinearBackwardWeight, x.dtype,
           GroupedLinearBackwardWeightArgs{.x_RI = x,
                                           .grad_y_RO = back.grad_output(0),
                                           .offsets_E1 = offsets_E1,
                                           .grad_weight_EOI = grad});
  };
  return ctx.tape->Record("grouped_linear", inputs, {&args.y_RO, 1}, trains, backward_input,
                          weight_grad)[0];
}

}  // namespace

Var GroupedLinear(ExecContext& ctx, const Var& x_RI, const Weight& weight_EOI,
                  const TensorView& offsets_E1) {
  const Var y_RO = PlainGroupedLinear(ctx, x_RI, weight_EOI, offsets_E1);
  const LoraAdapter* lora = weight_EOI.lora;
  return lora == nullptr ? y_RO : AddLora(ctx, y_RO, x_RI, *lora, offsets_E1);
}

}  // namespace omni
