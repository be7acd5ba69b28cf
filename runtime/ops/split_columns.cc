#include "runtime/ops/copy.h"
#include "runtime/ops/rows.h"

namespace omni {

std::vector<Var> SplitColumns(ExecContext& ctx, const Var& x_TC,
                              std::initializer_list<int64_t> counts) {
  std::vector<TensorView> parts;
  int64_t begin = 0;
  for (const int64_t count : counts) {
    parts.push_back(x_TC.value.Columns(begin, count));
    begin += count;
  }
  OMNI_CHECK_EQ(begin, x_TC.value.size(1));
  const Var inputs[] = {x_TC};
  if (ctx.tape == nullptr || !Tape::Records(inputs, /*trains_weights=*/false)) {
    std::vector<Var> vars;
    for (const TensorView& part : parts) vars.push_back({.value = part});
    return vars;
  }
  const std::vector<int64_t> widths(counts);
  const auto backward = [widths](Tape::BackwardContext& back) {
    const TensorView grad_TC = back.new_grad_input(0);
    int64_t first = 0;
    for (size_t i = 0; i < widths.size(); ++i) {
      const TensorView out = grad_TC.Columns(first, widths[i]);
      const TensorView grad = back.grad_output(static_cast<int>(i));
      if (grad.empty()) {
        FillWith(back.ctx, 0.0, out);
      } else {
        CopyTo(back.ctx, grad, out);
      }
      first += widths[i];
    }
  };
  return ctx.tape->Record("split_columns", inputs, parts, /*trains_weights=*/false, backward);
}

}  // namespace omni
