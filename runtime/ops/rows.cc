#include "runtime/ops/rows.h"

#include "runtime/device/args/rows.h"
#include "runtime/ops/copy.h"
#include "runtime/ops/op_helpers.h"

namespace omni {
namespace {

void CheckRows(const TensorView& rows) {
  CheckRank(rows, 1);
  OMNI_CHECK(rows.dtype == DType::kInt32);
}

// One row of `source` for each of `rows`, which are rows of `base`.
void CheckSource(const Var& base_TH, const Var& source_RH, const TensorView& rows) {
  CheckRank(base_TH.value, 2);
  CheckRank(source_RH.value, 2);
  CheckRows(rows);
  OMNI_CHECK_EQ(source_RH.value.size(0), rows.size(0));
  OMNI_CHECK_EQ(source_RH.value.size(1), base_TH.value.size(1));
  OMNI_CHECK(source_RH.value.dtype == base_TH.value.dtype);
}

}  // namespace

Var GatherRows(ExecContext& ctx, const Var& x_TH, const TensorView& rows) {
  CheckRank(x_TH.value, 2);
  CheckRows(rows);
  const DType dtype = x_TH.value.dtype;
  GatherRowsArgs args;
  args.x_TH = x_TH.value;
  args.rows_R = rows;
  args.y_RH = ctx.New(dtype, {rows.size(0), x_TH.value.size(1)});
  Launch(ctx, OpId::kGatherRows, dtype, args);
  const Var inputs[] = {x_TH};
  if (!Recording(ctx, inputs, false)) return {.value = args.y_RH};
  ctx.tape->Save("gather_rows", NeededBy::kBackwardInput, rows);
  const auto backward = [rows, dtype](Tape::BackwardContext& back) {
    Launch(back.ctx, OpId::kScatterAddRows, dtype,
           ScatterAddRowsArgs{.source_RH = back.grad_output(0),
                              .rows_R = rows,
                              .y_TH = back.new_grad_input(0),
                              .zero_first = 1});
  };
  return ctx.tape->Record("gather_rows", inputs, {&args.y_RH, 1}, false, backward)[0];
}

Var ScatterRows(ExecContext& ctx, const Var& base_TH, const Var& source_RH,
                const TensorView& rows) {
  CheckSource(base_TH, source_RH, rows);
  const DType dtype = base_TH.value.dtype;
  ScatterRowsArgs args;
  args.base_TH = base_TH.value;
  args.source_RH = source_RH.value;
  args.rows_R = rows;
  args.y_TH = ctx.New(dtype, base_TH.value.shape());
  Launch(ctx, OpId::kScatterRows, dtype, args);
  const Var inputs[] = {base_TH, source_RH};
  if (!Recording(ctx, inputs, false)) return {.value = args.y_TH};
  ctx.tape->Save("scatter_rows", NeededBy::kBackwardInput, rows);
  const auto backward = [rows, dtype](Tape::BackwardContext& back) {
    if (back.needs_grad_input(0))
      Launch(back.ctx, OpId::kScatterRows, dtype,
             ScatterRowsArgs{.base_TH = back.grad_output(0),
                             .source_RH = {},
                             .rows_R = rows,
                             .y_TH = back.new_grad_input(0)});
    if (back.needs_grad_input(1))
      Launch(back.ctx, OpId::kGatherRows, dtype,
             GatherRowsArgs{
                 .x_TH = back.grad_output(0), .rows_R = rows, .y_RH = back.new_grad_input(1)});
  };
  return ctx.tape->Record("scatter_rows", inputs, {&args.y_TH, 1}, false, backward)[0];
}

Var AddRows(ExecContext& ctx, const Var& base_TH, const Var& source_RH, const TensorView& rows) {
  CheckSource(base_TH, source_RH, rows);
  const DType dtype = base_TH.value.dtype;
  const TensorView y_TH = ctx.New(dtype, base_TH.value.shape());
  CopyTo(ctx, base_TH.value, y_TH);
  Launch(ctx, OpId::kScatterAddRows, dtype,
         ScatterAddRowsArgs{.source_RH = source_RH.value, .rows_R = rows, .y_TH = y_TH});
  const Var inputs[] = {base_TH, source_RH};
  if (!Recording(ctx, inputs, false)) return {.value = y_TH};
  ctx.tape->Save("add_rows", NeededBy::kBackwardInput, rows);
  const auto backward = [rows, dtype](Tape::BackwardContext& back) {
    if (back.needs_grad_input(0)) back.set_grad_input(0, back.grad_output(0));
    if (back.needs_grad_input(1))
      Launch(back.ctx, OpId::kGatherRows, dtype,
             GatherRowsArgs{
                 .x_TH = back.grad_output(0), .rows_R = rows, .y_RH = back.new_grad_input(1)});
  };
  return ctx.tape->Record("add_rows", inputs, {&y_TH, 1}, false, backward)[0];
}

Var Reshape(ExecContext& ctx, const Var& x, std::initializer_list<int64_t> sizes) {
  const TensorView view = x.value.Reshape(sizes);
  const Var inputs[] = {x};
  if (!Recording(ctx, inputs, false)) return {.value = view};
  const auto backward = [input = x.value](Tape::BackwardContext& back) {
    TensorView grad = back.grad_output(0);
    if (!grad.is_dense()) {
      const TensorView dense = back.ctx.New(grad.dtype, grad.shape());
      CopyTo(back.ctx, grad, dense);
      grad = dense;
    }
    back.set_grad_input(0, grad.Reshape(input.shape()));
  };
  return ctx.tape->Record("reshape", inputs, {&view, 1}, false, backward)[0];
}

Var Columns(ExecContext& ctx, const Var& x_TC, int64_t begin, int64_t count) {
  CheckRank(x_TC.value, 2);
  const TensorView view = x_TC.value.Columns(begin, count);
  const Var inputs[] = {x_TC};
  if (!Recording(ctx, inputs, false)) return {.value = view};
  const auto backward = [begin, count](Tape::BackwardContext& back) {
    const TensorView grad = back.new_grad_input(0);
    const int64_t end = begin + count, width = grad.size(1);
    if (begin > 0) FillWith(back.ctx, 0.0, grad.Columns(0, begin));
    if (end < width) FillWith(back.ctx, 0.0, grad.Columns(end, width - end));
    CopyTo(back.ctx, back.grad_output(0), grad.Columns(begin, count));
  };
  return ctx.tape->Record("columns", inputs, {&view, 1}, false, backward)[0];
}

}  // namespace omni
