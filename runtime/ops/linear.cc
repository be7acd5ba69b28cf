#include "runtime/ops/linear.h"

#include "runtime/device/args/elementwise.h"
#include "runtime/device/args/linear.h"
#include "runtime/ops/lora.h"
#include "runtime/ops/op_helpers.h"

namespace omni {
namespace {

Var LinearTo(ExecContext& ctx, const Var& x_TI, const Weight& weight_OI, const Weight* bias_O,
             DType dtype) {
  const TensorView& x = x_TI.value;
  CheckRank(x, 2);
  const int64_t outs = weight_OI.value.size(0);
  CheckWeight(weight_OI, {outs, x.size(1)}, x.dtype);
  if (bias_O != nullptr) CheckWeight(*bias_O, {outs}, x.dtype);
  LinearForwardArgs args;
  args.x_TI = x;
  args.weight_OI = weight_OI.value;
  if (bias_O != nullptr) args.bias_O = bias_O->value;
  args.y_TO = ctx.New(dtype, {x.size(0), outs});
  Launch(ctx, OpId::kLinearForward, x.dtype, args);

  const Var inputs[] = {x_TI};
  const bool trains = weight_OI.trainable() || Trains(bias_O);
  if (!Recording(ctx, inputs, trains)) return {.value = args.y_TO};
  if (trains) ctx.tape->Save("linear_input", NeededBy::kWeightGrad, x);
  const auto backward_input = [weight = weight_OI.value](Tape::BackwardContext& back) {
    if (!back.needs_grad_input(0)) return;
    Launch(back.ctx, OpId::kLinearBackwardInput, weight.dtype,
           LinearBackwardInputArgs{.grad_y_TO = back.grad_output(0),
                                   .weight_OI = weight,
                                   .grad_x_TI = back.new_grad_input(0)});
  };
  const TensorView grad_weight = weight_OI.grad;
  const TensorView grad_bias = bias_O == nullptr ? TensorView{} : bias_O->grad;
  const auto weight_grad = [x, grad_weight, grad_bias](Tape::BackwardContext& back) {
    Launch(back.ctx, OpId::kLinearBackwardWeight, x.dtype,
           LinearBackwardWeightArgs{.x_TI = x,
                                    .grad_y_TO = back.grad_output(0),
                                    .grad_weight_OI = grad_weight,
                                    .grad_bias_O = grad_bias});
  };
  return ctx.tape->Record("linear", inputs, {&args.y_TO, 1}, trains, backward_input,
                          weight_grad)[0];
}

}  // namespace

namespace {

Var PlainLinear(ExecContext& ctx, const Var& x_TI, const Weight& weight_OI, const Weight* bias_O) {
  return LinearTo(ctx, x_TI, weight_OI, bias_O, x_TI.value.dtype);
}

}  // namespace

Var Linear(ExecContext& ctx, const Var& x_TI, const Weight& weight_OI, const Weight* bias_O) {
  const Var y_TO = PlainLinear(ctx, x_TI, weight_OI, bias_O);
  return weight_OI.lora == nullptr ? y_TO : AddLora(ctx, y_TO, x_TI, *weight_OI.lora);
}

Var WideLinear(ExecContext& ctx, const Var& x_TI, const Weight& weight_OI) {
  return LinearTo(ctx, x_TI, weight_OI, nullptr, AccumulationType(x_TI.value.dtype));
}

Var Add(ExecContext& ctx, const Var& x_TH, const Var& y_TH) {
  OMNI_CHECK(x_TH.value.shape() == y_TH.value.shape());
  OMNI_CHECK(x_TH.value.dtype == y_TH.value.dtype);
  AddArgs args;
  args.a = x_TH.value;
  args.b = y_TH.value;
  args.out = ctx.New(args.a.dtype, args.a.shape());
  Launch(ctx, OpId::kAdd, args.a.dtype, args);
  const Var inputs[] = {x_TH, y_TH};
  if (!Recording(ctx, inputs, false)) return {.value = args.out};
  const auto backward = [](Tape::BackwardContext& back) {
    for (int i = 0; i < 2; ++i)
      if (back.needs_grad_input(i)) back.set_grad_input(i, back.grad_output(0));
  };
  return ctx.tape->Record("add", inputs, {&args.out, 1}, false, backward)[0];
}

}  // namespace omni
