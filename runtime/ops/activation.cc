#include "runtime/ops/activation.h"

#include "runtime/device/args/activation.h"
#include "runtime/ops/op_helpers.h"

namespace omni {

Var SwiGlu(ExecContext& ctx, const Var& gate_up_T2F) {
  const TensorView& x = gate_up_T2F.value;
  CheckRank(x, 2);
  OMNI_CHECK_EQ(x.size(1) % 2, 0);
  SwiGluForwardArgs args;
  args.gate_up_T2F = x;
  args.y_TF = ctx.New(x.dtype, {x.size(0), x.size(1) / 2});
  Launch(ctx, OpId::kSwiGluForward, x.dtype, args);
  const Var inputs[] = {gate_up_T2F};
  if (!Recording(ctx, inputs, false)) return {.value = args.y_TF};
  ctx.tape->Save("swiglu_input", NeededBy::kBackwardInput, x);
  const auto backward = [x](Tape::BackwardContext& back) {
    Launch(back.ctx, OpId::kSwiGluBackward, x.dtype,
           SwiGluBackwardArgs{.gate_up_T2F = x,
                              .grad_y_TF = back.grad_output(0),
                              .grad_gate_up_T2F = back.new_grad_input(0)});
  };
  return ctx.tape->Record("swiglu", inputs, {&args.y_TF, 1}, false, backward)[0];
}

Var Gelu(ExecContext& ctx, const Var& x_TH, GeluKind kind) {
  const TensorView& x = x_TH.value;
  CheckRank(x, 2);
  GeluForwardArgs args;
  args.x_TH = x;
  args.y_TH = ctx.New(x.dtype, x.shape());
  args.tanh = kind == GeluKind::kTanh ? 1 : 0;
  Launch(ctx, OpId::kGeluForward, x.dtype, args);
  const Var inputs[] = {x_TH};
  if (!Recording(ctx, inputs, false)) return {.value = args.y_TH};
  ctx.tape->Save("gelu_input", NeededBy::kBackwardInput, x);
  const auto backward = [x, tanh = args.tanh](Tape::BackwardContext& back) {
    Launch(back.ctx, OpId::kGeluBackward, x.dtype,
           GeluBackwardArgs{.x_TH = x,
                            .grad_y_TH = back.grad_output(0),
                            .grad_x_TH = back.new_grad_input(0),
                            .tanh = tanh});
  };
  return ctx.tape->Record("gelu", inputs, {&args.y_TH, 1}, false, backward)[0];
}

}  // namespace omni
