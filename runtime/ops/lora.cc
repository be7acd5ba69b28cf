#include "runtime/ops/lora.h"

#include "runtime/device/args/elementwise.h"
#include "runtime/device/args/grouped_linear.h"
#include "runtime/device/args/linear.h"
#include "runtime/ops/op_helpers.h"

namespace omni {
namespace {

// Columns of the low-rank activations, columns of y, and rows of B that belong together.
struct PartViews {
  TensorView low, y, b;
};
PartViews ViewsOf(const LoraAdapter& lora, size_t part, const TensorView& low_TR,
                  const TensorView& y_TO, const TensorView& b) {
  int64_t b_row = 0;
  for (size_t i = 0; i < part; ++i) b_row += lora.parts[i].num_rows;
  const LoraAdapter::Part& p = lora.parts[part];
  return {.low = low_TR.Columns(static_cast<int64_t>(part) * lora.rank(), lora.rank()),
          .y = y_TO.Columns(p.row_begin, p.num_rows),
          .b = b.empty() ? b : b.Slice(b.num_dims - 2, b_row, p.num_rows)};
}

// Products with one matrix, or with an expert's for each run of rows.
class Products {
 public:
  explicit Products(const TensorView& offsets_E1) : offsets_E1_(offsets_E1) {}

  bool grouped() const { return offsets_E1_.num_dims > 0; }
  const TensorView& offsets_E1() const { return offsets_E1_; }

  void Forward(ExecContext& ctx, const TensorView& x, const TensorView& w,
               const TensorView& y) const {
    if (grouped()) {
      Launch(ctx, OpId::kGroupedLinearForward, x.dtype,
             GroupedLinearForwardArgs{
                 .x_RI = x, .weight_EOI = w, .offsets_E1 = offsets_E1_, .y_RO = y});
    } else {
      Launch(ctx, OpId::kLinearForward, x.dtype,
             LinearForwardArgs{.x_TI = x, .weight_OI = w, .bias_O = {}, .y_TO = y});
    }
  }
  void BackwardInput(ExecContext& ctx, const TensorView& grad_y, const TensorView& w,
                     const TensorView& grad_x) const {
    if (grouped()) {
      Launch(ctx, OpId::kGroupedLinearBackwardInput, w.dtype,
             GroupedLinearBackwardInputArgs{.grad_y_RO = grad_y,
                                            .weight_EOI = w,
                                            .offsets_E1 = offsets_E1_,
                                            .grad_x_RI = grad_x});
    } else {
      Launch(ctx, OpId::kLinearBackwardInput, w.dtype,
             LinearBackwardInputArgs{.grad_y_TO = grad_y, .weight_OI = w, .grad_x_TI = grad_x});
    }
  }
  void BackwardWeight(ExecContext& ctx, const TensorView& x, const TensorView& grad_y,
                      const TensorView& grad_w) const {
    if (grouped()) {
      Launch(ctx, OpId::kGroupedLinearBackwardWeight, x.dtype,
             GroupedLinearBackwardWeightArgs{.x_RI = x,
                                             .grad_y_RO = grad_y,
                                             .offsets_E1 = offsets_E1_,
                                             .grad_weight_EOI = grad_w});
    } else {
      Launch(ctx, OpId::kLinearBackwardWeight, x.dtype,
             LinearBackwardWeightArgs{
                 .x_TI = x, .grad_y_TO = grad_y, .grad_weight_OI = grad_w, .grad_bias_O = {}});
    }
  }

 private:
  TensorView offsets_E1_;
};

void CheckAdapter(const LoraAdapter& lora, const TensorView& x, const Products& products) {
  const int64_t low = static_cast<int64_t>(lora.parts.size()) * lora.rank();
  if (products.grouped()) {
    CheckWeight(lora.a, {products.offsets_E1().size(0) - 1, low, x.size(1)}, x.dtype);
  } else {
    CheckWeight(lora.a, {low, x.size(1)}, x.dtype);
  }
}

}  // namespace

Var AddLora(ExecContext& ctx, const Var& y_TO, const Var& x_TI, const LoraAdapter& lora,
            const TensorView& offsets_E1) {
  const TensorView& x = x_TI.value;
  const TensorView& y = y_TO.value;
  const Products products(offsets_E1);
  CheckAdapter(lora, x, products);
  const auto num_parts = static_cast<int64_t>(lora.parts.size());
  // s x A^T, one part's columns after the other.
  const TensorView low_TR = ctx.New(x.dtype, {x.size(0), num_parts * lora.rank()});
  products.Forward(ctx, x, lora.a.value, low_TR);
  Launch(ctx, OpId::kScale, x.dtype, ScaleArgs{.x = low_TR, .alpha = lora.scale});
  for (size_t i = 0; i < lora.parts.size(); ++i) {
    const PartViews part = ViewsOf(lora, i, low_TR, y, lora.b.value);
    const TensorView term = ctx.New(x.dtype, {x.size(0), lora.parts[i].num_rows});
    products.Forward(ctx, part.low, part.b, term);
    Launch(ctx, OpId::kAdd, x.dtype, AddArgs{.a = part.y, .b = term, .out = part.y});
  }

  const Var inputs[] = {y_TO, x_TI};
  const bool trains = lora.a.trainable() || lora.b.trainable();
  if (!Recording(ctx, inputs, trains)) return y_TO;
  ctx.tape->Save("lora_input", NeededBy::kBackwardInput, x);
  ctx.tape->Save("lora_low", NeededBy::kBackwardInput, low_TR);
  if (products.grouped()) {
    ctx.tape->Save("grouped_linear_offsets", NeededBy::kBackwardInput, offsets_E1);
  }
  // Both halves at once: the weights' gradients are small products of what the input's needs.
  const auto backward = [x, low_TR, lora, products](Tape::BackwardContext& back) {
    const TensorView grad_y = back.grad_output(0);
    const TensorView grad_low_TR = back.ctx.New(x.dtype, low_TR.shape());
    for (size_t i = 0; i < lora.parts.size(); ++i) {
      const PartViews part = ViewsOf(lora, i, grad_low_TR, grad_y, lora.b.value);
      products.BackwardInput(back.ctx, part.y, part.b, part.low);
      if (!lora.b.trainable()) continue;
      const PartViews weight = ViewsOf(lora, i, low_TR, grad_y, lora.b.grad);
      products.BackwardWeight(back.ctx, weight.low, weight.y, weight.b);
    }
    Launch(back.ctx, OpId::kScale, x.dtype, ScaleArgs{.x = grad_low_TR, .alpha = lora.scale});
    if (lora.a.trainable()) products.BackwardWeight(back.ctx, x, grad_low_TR, lora.a.grad);
    if (back.needs_grad_input(1)) {
      products.BackwardInput(back.ctx, grad_low_TR, lora.a.value, back.new_grad_input(1));
    }
    if (back.needs_grad_input(0)) back.set_grad_input(0, grad_y);
  };
  return ctx.tape->Record("lora", inputs, {&y, 1}, trains, backward)[0];
}

}  // namespace omni
