#include "runtime/ops/embedding.h"

#include "runtime/device/args/rows.h"
#include "runtime/ops/op_helpers.h"

namespace omni {

Var Embedding(ExecContext& ctx, const TensorView& ids_T, const Weight& table_VH) {
  CheckRank(ids_T, 1);
  OMNI_CHECK(ids_T.dtype == DType::kInt32);
  CheckRank(table_VH.value, 2);
  const DType dtype = table_VH.value.dtype;
  CheckWeight(table_VH, {table_VH.value.size(0), table_VH.value.size(1)}, dtype);
  EmbeddingForwardArgs args;
  args.ids_T = ids_T;
  args.table_VH = table_VH.value;
  args.y_TH = ctx.New(dtype, {ids_T.size(0), table_VH.value.size(1)});
  Launch(ctx, OpId::kEmbeddingForward, dtype, args);
  if (!Recording(ctx, {}, table_VH.trainable())) return {.value = args.y_TH};
  ctx.tape->Save("embedding_ids", NeededBy::kWeightGrad, ids_T);
  const auto weight_grad = [ids_T, dtype, grad = table_VH.grad](Tape::BackwardContext& back) {
    Launch(back.ctx, OpId::kEmbeddingBackward, dtype,
           EmbeddingBackwardArgs{
               .ids_T = ids_T, .grad_y_TH = back.grad_output(0), .grad_table_VH = grad});
  };
  return ctx.tape->Record("embedding", {}, {&args.y_TH, 1}, true, nullptr, weight_grad)[0];
}

Var InterpolateRows(ExecContext& ctx, const Weight& table_VH, const TensorView& taps_PK,
                    const TensorView& weights_PK) {
  CheckRank(table_VH.value, 2);
  CheckRank(taps_PK, 2);
  const DType dtype = table_VH.value.dtype;
  CheckWeight(table_VH, {table_VH.value.size(0), table_VH.value.size(1)}, dtype);
  OMNI_CHECK(taps_PK.dtype == DType::kInt32 && taps_PK.is_dense());
  OMNI_CHECK(weights_PK.dtype == AccumulationType(dtype) && weights_PK.is_dense());
  OMNI_CHECK(weights_PK.shape() == taps_PK.shape());
  InterpolateRowsForwardArgs args;
  args.table_VH = table_VH.value;
  args.taps_PK = taps_PK;
  args.weights_PK = weights_PK;
  args.y_PH = ctx.New(dtype, {taps_PK.size(0), table_VH.value.size(1)});
  Launch(ctx, OpId::kInterpolateRowsForward, dtype, args);
  if (!Recording(ctx, {}, table_VH.trainable())) return {.value = args.y_PH};
  ctx.tape->Save("interpolate_taps", NeededBy::kWeightGrad, taps_PK);
  ctx.tape->Save("interpolate_weights", NeededBy::kWeightGrad, weights_PK);
  const auto weight_grad = [taps_PK, weights_PK, dtype,
                            grad = table_VH.grad](Tape::BackwardContext& back) {
    Launch(back.ctx, OpId::kInterpolateRowsBackward, dtype,
           InterpolateRowsBackwardArgs{.taps_PK = taps_PK,
                                       .weights_PK = weights_PK,
                                       .grad_y_PH = back.grad_output(0),
                                       .grad_table_VH = grad});
  };
  return ctx.tape->Record("interpolate_rows", {}, {&args.y_PH, 1}, true, nullptr, weight_grad)[0];
}

}  // namespace omni
