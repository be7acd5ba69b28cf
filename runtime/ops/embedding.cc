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

}  // namespace omni
