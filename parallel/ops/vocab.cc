#include "parallel/ops/vocab.h"

#include <algorithm>
#include <vector>

#include "parallel/ops/row_exchange.h"
#include "runtime/device/args/cross_entropy.h"
#include "runtime/device/args/linear.h"
#include "runtime/device/args/rows.h"
#include "runtime/ops/copy.h"
#include "runtime/ops/embedding.h"
#include "runtime/ops/op_helpers.h"

namespace omni::parallel {
namespace {

void CheckRange(const VocabRange& range, const Weight& weight_VH) {
  CheckRank(weight_VH.value, 2);
  CheckWeight(weight_VH, {weight_VH.value.size(0), weight_VH.value.size(1)}, weight_VH.value.dtype);
  OMNI_CHECK_GE(range.begin, 0);
  OMNI_CHECK_LE(range.begin + weight_VH.value.size(0), range.total);
}

// A device list of row numbers.
TensorView UploadList(ExecContext& ctx, const std::vector<int32_t>& list) {
  return UploadNew<int32_t>(ctx, list, {static_cast<int64_t>(list.size())});
}

}  // namespace

Var VocabEmbedding(ExecContext& ctx, absl::Span<const int32_t> token_ids, const Weight& table_VH,
                   const VocabRange& range, const Group& group, absl::Span<const int64_t> counts) {
  CheckRange(range, table_VH);
  const int64_t tokens = SumOf(counts), width = table_VH.value.size(1);
  OMNI_CHECK_EQ(static_cast<int64_t>(token_ids.size()), tokens);
  if (group.is_alone()) {
    OMNI_CHECK_EQ(table_VH.value.size(0), range.total);
    return Embedding(ctx, UploadNew<int32_t>(ctx, token_ids, {tokens}), table_VH);
  }
  std::vector<int32_t> ids, rows;  // of the tokens this rank's part of the table has
  for (int64_t t = 0; t < tokens; ++t) {
    OMNI_CHECK(token_ids[t] >= 0 && token_ids[t] < range.total);
    const int64_t local = token_ids[t] - range.begin;
    if (local < 0 || local >= table_VH.value.size(0)) continue;
    ids.push_back(static_cast<int32_t>(local));
    rows.push_back(static_cast<int32_t>(t));
  }
  const DType dtype = table_VH.value.dtype;
  const TensorView ids_R = UploadList(ctx, ids), rows_R = UploadList(ctx, rows);
  TensorArena scratch(ctx.device);
  ExecContext temporary{.device = ctx.device, .stream = ctx.stream, .arena = &scratch};
  const TensorView found_RH = temporary.New(dtype, {ids_R.size(0), width});
  const TensorView all_TH = temporary.New(dtype, {tokens, width});
  Launch(ctx, OpId::kEmbeddingForward, dtype,
         EmbeddingForwardArgs{.ids_T = ids_R, .table_VH = table_VH.value, .y_TH = found_RH});
  Launch(
      ctx, OpId::kScatterAddRows, dtype,
      ScatterAddRowsArgs{.source_RH = found_RH, .rows_R = rows_R, .y_TH = all_TH, .zero_first = 1});
  const TensorView y_LH = ReduceScatter(ctx, all_TH, group, counts);
  if (!Recording(ctx, {}, table_VH.trainable())) return {.value = y_LH};
  ctx.tape->Save("vocab_embedding_ids", NeededBy::kBackwardInput, ids_R);
  ctx.tape->Save("vocab_embedding_rows", NeededBy::kBackwardInput, rows_R);
  const auto backward = [group, kept = std::vector<int64_t>(counts.begin(), counts.end()), ids_R,
                         rows_R, grad = table_VH.grad](Tape::BackwardContext& back) {
    const TensorView all_TH = GatherAll(back.ctx, back.grad_output(0), group, kept);
    const TensorView own_RH = back.ctx.New(all_TH.dtype, {rows_R.size(0), all_TH.size(1)});
    Launch(back.ctx, OpId::kGatherRows, all_TH.dtype,
           GatherRowsArgs{.x_TH = all_TH, .rows_R = rows_R, .y_RH = own_RH});
    Launch(back.ctx, OpId::kEmbeddingBackward, all_TH.dtype,
           EmbeddingBackwardArgs{.ids_T = ids_R, .grad_y_TH = own_RH, .grad_table_VH = grad});
  };
  return ctx.tape->Record("vocab_embedding", {}, {&y_LH, 1}, true, backward)[0];
}

namespace {

// The rows of the group that have a target, in the order of the group's rows.
struct TargetRows {
  std::vector<int64_t> counts;   // of each rank
  std::vector<int32_t> own;      // this rank's, as rows of its hidden
  std::vector<int32_t> targets;  // of all, counted from the first class of this rank
  std::vector<int32_t> places;   // of all: the row of this rank's hidden, -1 for other ranks'
};

TargetRows FindTargets(absl::Span<const int32_t> targets, const VocabRange& range,
                       const Group& group, absl::Span<const int64_t> counts) {
  TargetRows found;
  size_t next = 0;
  for (int32_t rank = 0; rank < group.size(); ++rank) {
    found.counts.push_back(0);
    for (int64_t row = 0; row < counts[rank]; ++row) {
      const int32_t target = targets[next++];
      if (target < 0) continue;
      OMNI_CHECK_LT(int64_t{target}, range.total);
      ++found.counts.back();
      const bool is_own = rank == group.rank();
      if (is_own) found.own.push_back(static_cast<int32_t>(row));
      found.targets.push_back(static_cast<int32_t>(target - range.begin));
      found.places.push_back(is_own ? static_cast<int32_t>(row) : -1);
    }
  }
  return found;
}

// Logits at a time, as of runtime/device/cpu/cross_entropy.cc. The same rows on all ranks, whose
// shards may differ: counted by the average shard.
int64_t ChunkRows(const VocabRange& range, int32_t num_ranks) {
  constexpr int64_t kChunkLogits = int64_t{1} << 22;
  const int64_t classes = (range.total + num_ranks - 1) / num_ranks;
  return std::max<int64_t>(64, kChunkLogits / std::max<int64_t>(1, classes));
}

// What the pass over the chunks reads and writes. Wide: fp32, or fp64 in fp64.
struct Pass {
  const Group& group;
  VocabRange range;
  double scale;
  TensorView hidden_RH;  // all rows with a target
  TensorView head_VH;
  TensorView targets_R, places_R;  // TargetRows
  CrossEntropyResult* result;      // filled for this rank's rows
  TensorView grad_hidden_RH;       // what this rank's classes contribute; empty: not wanted
  TensorView grad_head_VH;         // wide, starts at 0; empty: not wanted
};

void RunChunks(ExecContext& ctx, const Pass& pass) {
  const DType dtype = pass.hidden_RH.dtype, wide = AccumulationType(dtype);
  const int64_t num_rows = pass.hidden_RH.size(0), classes = pass.head_VH.size(0);
  const int64_t num_ranks = pass.group.size();
  const int64_t most_rows = std::min(num_rows, ChunkRows(pass.range, pass.group.size()));
  const bool wants_grads = !pass.grad_hidden_RH.empty() || !pass.grad_head_VH.empty();
  const TensorView logits = ctx.New(wide, {most_rows, classes});
  const TensorView own_parts = ctx.New(wide, {most_rows, 4});
  const TensorView all_parts = ctx.New(wide, {num_ranks * most_rows, 4});
  for (int64_t first = 0; first < num_rows; first += most_rows) {
    const int64_t count = std::min(most_rows, num_rows - first);
    const TensorView hidden_CH = pass.hidden_RH.Rows(first, count);
    const TensorView logits_CV = logits.Rows(0, count);
    const TensorView targets_C = pass.targets_R.Rows(first, count);
    const TensorView parts_C4 = own_parts.Rows(0, count);
    const TensorView parts_SC4 = all_parts.Rows(0, num_ranks * count);
    if (classes > 0)
      Launch(ctx, OpId::kLinearForward, dtype,
             LinearForwardArgs{.x_TI = hidden_CH, .weight_OI = pass.head_VH, .y_TO = logits_CV});
    Launch(ctx, OpId::kSoftmaxParts, wide,
           SoftmaxPartsArgs{.logits_RV = logits_CV,
                            .targets_R = targets_C,
                            .parts_R4 = parts_C4,
                            .first_class = pass.range.begin,
                            .keep_exponentials = wants_grads});
    pass.group.comm->AllGather(parts_C4, parts_SC4, std::vector<int64_t>(num_ranks, 4 * count))
        ->Wait(ctx.stream);
    Launch(ctx, OpId::kSoftmaxJoin, wide,
           SoftmaxJoinArgs{.parts_SR4 = parts_SC4.Reshape({num_ranks, count, 4}),
                           .part = pass.group.rank(),
                           .logits_RV = wants_grads ? logits_CV : TensorView{},
                           .targets_R = targets_C,
                           .places_R = pass.places_R.Rows(first, count),
                           .loss = pass.result->loss.value,
                           .losses_T = pass.result->losses_T,
                           .argmax_T = pass.result->argmax_T,
                           .scale = pass.scale});
    if (classes == 0) continue;
    if (!pass.grad_hidden_RH.empty())
      Launch(ctx, OpId::kLinearBackwardInput, dtype,
             LinearBackwardInputArgs{.grad_y_TO = logits_CV,
                                     .weight_OI = pass.head_VH,
                                     .grad_x_TI = pass.grad_hidden_RH.Rows(first, count)});
    if (!pass.grad_head_VH.empty())
      Launch(ctx, OpId::kLinearBackwardWeight, dtype,
             LinearBackwardWeightArgs{
                 .x_TI = hidden_CH, .grad_y_TO = logits_CV, .grad_weight_OI = pass.grad_head_VH});
  }
  if (classes == 0 && !pass.grad_hidden_RH.empty()) FillWith(ctx, 0.0, pass.grad_hidden_RH);
}

TensorView NewFilled(ExecContext& ctx, DType dtype, std::initializer_list<int64_t> sizes,
                     double value) {
  const TensorView view = ctx.New(dtype, sizes);
  FillWith(ctx, value, view);
  return view;
}

}  // namespace

CrossEntropyResult VocabCrossEntropy(ExecContext& ctx, const Var& hidden_LH, const Weight& head_VH,
                                     const VocabRange& range, absl::Span<const int32_t> targets,
                                     double scale, const Group& group,
                                     absl::Span<const int64_t> counts) {
  CheckRank(hidden_LH.value, 2);
  CheckRange(range, head_VH);
  const int64_t width = hidden_LH.value.size(1), local_rows = hidden_LH.value.size(0);
  const DType dtype = hidden_LH.value.dtype, wide = AccumulationType(dtype);
  CheckWeight(head_VH, {head_VH.value.size(0), width}, dtype);
  OMNI_CHECK_EQ(static_cast<int32_t>(counts.size()), group.size());
  OMNI_CHECK_EQ(local_rows, counts[group.rank()]);
  OMNI_CHECK_EQ(static_cast<int64_t>(targets.size()), SumOf(counts));
  if (group.is_alone()) {
    OMNI_CHECK_EQ(head_VH.value.size(0), range.total);
    return LinearCrossEntropy(ctx, hidden_LH, head_VH,
                              UploadNew<int32_t>(ctx, targets, {local_rows}), scale);
  }
  OMNI_CHECK_LE(range.total, int64_t{1} << 24);  // arg max travels as fp32
  const TargetRows rows = FindTargets(targets, range, group, counts);
  const auto num_rows = static_cast<int64_t>(rows.targets.size());
  const Var inputs[] = {hidden_LH};
  const bool recording = Recording(ctx, inputs, head_VH.trainable());
  const bool wants_hidden = recording && hidden_LH.needs_grad();
  const bool wants_head = recording && head_VH.trainable();

  CrossEntropyResult result{.loss = {.value = NewFilled(ctx, wide, {1}, 0.0)},
                            .losses_T = NewFilled(ctx, wide, {local_rows}, 0.0),
                            .argmax_T = NewFilled(ctx, DType::kInt32, {local_rows}, -1.0)};
  const TensorView own_R = UploadList(ctx, rows.own);
  TensorArena scratch(ctx.device);
  ExecContext temporary{.device = ctx.device, .stream = ctx.stream, .arena = &scratch};
  const TensorView own_RH = temporary.New(dtype, {own_R.size(0), width});
  Launch(ctx, OpId::kGatherRows, dtype,
         GatherRowsArgs{.x_TH = hidden_LH.value, .rows_R = own_R, .y_RH = own_RH});
  Pass pass{.group = group, .range = range, .scale = scale};
  pass.hidden_RH = GatherAll(temporary, own_RH, group, rows.counts);
  pass.head_VH = head_VH.value;
  pass.targets_R = UploadList(temporary, rows.targets);
  pass.places_R = UploadList(temporary, rows.places);
  pass.result = &result;
  if (wants_hidden) pass.grad_hidden_RH = temporary.New(dtype, {num_rows, width});
  if (wants_head) pass.grad_head_VH = NewFilled(ctx, wide, {head_VH.value.size(0), width}, 0.0);
  RunChunks(temporary, pass);
  TensorView grad_own_RH;
  if (wants_hidden) grad_own_RH = ReduceScatter(ctx, pass.grad_hidden_RH, group, rows.counts);
  if (!recording) return result;

  const auto backward_input = [grad_own_RH, own_R](Tape::BackwardContext& back) {
    if (!back.needs_grad_input(0)) return;
    const DType dtype = grad_own_RH.dtype;
    const TensorView scaled_RH = back.ctx.New(dtype, grad_own_RH.shape());
    Launch(back.ctx, OpId::kCrossEntropyBackward, dtype,
           CrossEntropyBackwardArgs{
               .grad_loss = back.grad_output(0), .x = grad_own_RH, .y = scaled_RH});
    Launch(back.ctx, OpId::kScatterAddRows, dtype,
           ScatterAddRowsArgs{.source_RH = scaled_RH,
                              .rows_R = own_R,
                              .y_TH = back.new_grad_input(0),
                              .zero_first = 1});
  };
  const auto weight_grad = [saved = pass.grad_head_VH, grad = head_VH.grad,
                            dtype](Tape::BackwardContext& back) {
    Launch(back.ctx, OpId::kCrossEntropyBackward, dtype,
           CrossEntropyBackwardArgs{
               .grad_loss = back.grad_output(0), .x = saved, .y = grad, .accumulate = 1});
  };
  if (wants_hidden) {
    ctx.tape->Save("vocab_cross_entropy_rows", NeededBy::kBackwardInput, own_R);
    ctx.tape->Save("vocab_cross_entropy_grad_hidden", NeededBy::kBackwardInput, grad_own_RH);
  }
  if (wants_head)
    ctx.tape->Save("vocab_cross_entropy_grad_head", NeededBy::kWeightGrad, pass.grad_head_VH);
  const TensorView loss = result.loss.value;
  result.loss = ctx.tape->Record("vocab_cross_entropy", inputs, {&loss, 1}, head_VH.trainable(),
                                 backward_input, weight_grad)[0];
  return result;
}

}  // namespace omni::parallel
