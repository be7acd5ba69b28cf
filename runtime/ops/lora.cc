#include "runtime/ops/lora.h"

#include "runtime/device/args/elementwise.h"
#include "runtime/device/args/linear.h"
#include "runtime/ops/op_helpers.h"

namespace omni {
namespace {

// Columns of the low-rank activations, columns of y, and rows of B that belong together.
struct PartViews {
  TensorView low, y, b;
};
PartViews ViewsOf(const LoraAdapter& lora, size_t part, const TensorView& low_TR,
                  const TensorView& y_TO, const TensorView& b_OR) {
  int64_t b_row = 0;
  for (size_t i = 0; i < part; ++i) b_row += lora.parts[i].num_rows;
  const LoraAdapter::Part& p = lora.parts[part];
  return {.low = low_TR.Columns(static_cast<int64_t>(part) * lora.rank(), lora.rank()),
          .y = y_TO.Columns(p.row_begin, p.num_rows),
          .b = b_OR.empty() ? b_OR : b_OR.Rows(b_row, p.num_rows)};
}

}  // namespace

Var AddLora(ExecContext& ctx, const Var& y_TO, const Var& x_TI, const LoraAdapter& lora) {
  const TensorView& x = x_TI.value;
  const TensorView& y = y_TO.value;
  const auto num_parts = static_cast<int64_t>(lora.parts.size());
  CheckWeight(lora.a, {num_parts * lora.rank(), x.size(1)}, x.dtype);
  // s x A^T, one rank's columns after the other.
  const TensorView low_TR = ctx.New(x.dtype, {x.size(0), num_parts * lora.rank()});
  Launch(ctx, OpId::kLinearForward, x.dtype,
         LinearForwardArgs{.x_TI = x, .weight_OI = lora.a.value, .bias_O = {}, .y_TO = low_TR});
  Launch(ctx, OpId::kScale, x.dtype, ScaleArgs{.x = low_TR, .alpha = lora.scale});
  for (size_t i = 0; i < lora.parts.size(); ++i) {
    const PartViews part = ViewsOf(lora, i, low_TR, y, lora.b.value);
    const TensorView term = ctx.New(x.dtype, {x.size(0), lora.parts[i].num_rows});
    Launch(ctx, OpId::kLinearForward, x.dtype,
           LinearForwardArgs{.x_TI = part.low, .weight_OI = part.b, .bias_O = {}, .y_TO = term});
    Launch(ctx, OpId::kAdd, x.dtype, AddArgs{.a = part.y, .b = term, .out = part.y});
  }

  const Var inputs[] = {y_TO, x_TI};
  const bool trains = lora.a.trainable() || lora.b.trainable();
  if (!Recording(ctx, inputs, trains)) return y_TO;
  ctx.tape->Save("lora_input", NeededBy::kBackwardInput, x);
  ctx.tape->Save("lora_low", NeededBy::kBackwardInput, low_TR);
  // Both halves at once: the weights' gradients are small products of what the input's needs.
  const auto backward = [x, low_TR, lora](Tape::BackwardContext& back) {
    const TensorView grad_y = back.grad_output(0);
    const TensorView grad_low_TR = back.ctx.New(x.dtype, low_TR.shape());
    for (size_t i = 0; i < lora.parts.size(); ++i) {
      const PartViews part = ViewsOf(lora, i, grad_low_TR, grad_y, lora.b.value);
      Launch(
          back.ctx, OpId::kLinearBackwardInput, x.dtype,
          LinearBackwardInputArgs{.grad_y_TO = part.y, .weight_OI = part.b, .grad_x_TI = part.low});
      if (!lora.b.trainable()) continue;
      const PartViews weight = ViewsOf(lora, i, low_TR, grad_y, lora.b.grad);
      Launch(back.ctx, OpId::kLinearBackwardWeight, x.dtype,
             LinearBackwardWeightArgs{.x_TI = weight.low,
                                      .grad_y_TO = weight.y,
                                      .grad_weight_OI = weight.b,
                                      .grad_bias_O = {}});
    }
    Launch(back.ctx, OpId::kScale, x.dtype, ScaleArgs{.x = grad_low_TR, .alpha = lora.scale});
    if (lora.a.trainable()) {
      Launch(back.ctx, OpId::kLinearBackwardWeight, x.dtype,
             LinearBackwardWeightArgs{.x_TI = x,
                                      .grad_y_TO = grad_low_TR,
                                      .grad_weight_OI = lora.a.grad,
                                      .grad_bias_O = {}});
    }
    if (back.needs_grad_input(1)) {
      Launch(back.ctx, OpId::kLinearBackwardInput, x.dtype,
             LinearBackwardInputArgs{.grad_y_TO = grad_low_TR,
                                     .weight_OI = lora.a.value,
                                     .grad_x_TI = back.new_grad_input(1)});
    }
    if (back.needs_grad_input(0)) back.set_grad_input(0, grad_y);
  };
  return ctx.tape->Record("lora", inputs, {&y, 1}, trains, backward)[0];
}

}  // namespace omni
