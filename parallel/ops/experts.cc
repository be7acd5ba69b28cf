#include "parallel/ops/experts.h"

#include <algorithm>

#include "parallel/ops/row_exchange.h"
#include "runtime/device/args/rows.h"
#include "runtime/ops/copy.h"
#include "runtime/ops/op_helpers.h"

namespace omni::parallel {
namespace {

// offsets [size][E + 1]: where each rank's rows of each expert begin. What a communicator leaves
// after a failure may be anything.
bool AreOffsets(absl::Span<const int32_t> offsets, int64_t num_experts) {
  for (size_t first = 0; first < offsets.size(); first += num_experts + 1) {
    const auto of_rank = offsets.subspan(first, num_experts + 1);
    if (of_rank.front() != 0 || !std::is_sorted(of_rank.begin(), of_rank.end())) return false;
  }
  return true;
}

TensorView UploadInts(ExecContext& ctx, const std::vector<int32_t>& values) {
  return UploadNew<int32_t>(ctx, values, {static_cast<int64_t>(values.size())});
}

// What goes where, from all ranks' offsets. Received rows lie by (source, expert, token); by expert
// they lie by (expert, source, token).
void Plan(ExecContext& ctx, absl::Span<const int32_t> offsets, int64_t num_experts,
          ExpertExchange* exchange) {
  const int64_t size = exchange->group.size(), rank = exchange->group.rank();
  const int64_t local = num_experts / size;
  const auto offset = [&](int64_t source, int64_t expert) {
    return offsets[source * (num_experts + 1) + expert];
  };
  std::vector<int64_t> source_begin;  // of the rows received
  for (int64_t other = 0; other < size; ++other) {
    source_begin.push_back(exchange->num_rows);
    exchange->send_counts.push_back(offset(rank, (other + 1) * local) -
                                    offset(rank, other * local));
    exchange->recv_counts.push_back(offset(other, (rank + 1) * local) -
                                    offset(other, rank * local));
    exchange->num_rows += exchange->recv_counts.back();
  }
  std::vector<int32_t> offsets_E1 = {0}, by_expert, by_source(exchange->num_rows);
  by_expert.reserve(exchange->num_rows);
  for (int64_t expert = rank * local; expert < (rank + 1) * local; ++expert) {
    for (int64_t source = 0; source < size; ++source) {
      const int64_t shift = source_begin[source] - offset(source, rank * local);
      for (int64_t row = offset(source, expert); row < offset(source, expert + 1); ++row) {
        by_source[row + shift] = static_cast<int32_t>(by_expert.size());
        by_expert.push_back(static_cast<int32_t>(row + shift));
      }
    }
    offsets_E1.push_back(static_cast<int32_t>(by_expert.size()));
  }
  exchange->offsets_E1 = UploadInts(ctx, offsets_E1);
  exchange->by_expert_R = UploadInts(ctx, by_expert);
  exchange->by_source_R = UploadInts(ctx, by_source);
}

TensorView Gathered(ExecContext& ctx, const TensorView& x, const TensorView& rows) {
  const TensorView y = ctx.New(x.dtype, {rows.size(0), x.size(1)});
  Launch(ctx, OpId::kGatherRows, x.dtype, GatherRowsArgs{.x_TH = x, .rows_R = rows, .y_RH = y});
  return y;
}

TensorView ToExperts(ExecContext& ctx, const ExpertExchange& exchange, const TensorView& rows_RH) {
  OMNI_CHECK_EQ(rows_RH.size(0), exchange.num_sorted_rows);
  if (exchange.failed) return ctx.New(rows_RH.dtype, {0, rows_RH.size(1)});
  return Gathered(
      ctx, AllToAll(ctx, rows_RH, exchange.group, exchange.send_counts, exchange.recv_counts),
      exchange.by_expert_R);
}

TensorView FromExperts(ExecContext& ctx, const ExpertExchange& exchange,
                       const TensorView& rows_RH) {
  OMNI_CHECK_EQ(rows_RH.size(0), exchange.num_rows);
  if (exchange.failed) {
    const TensorView zeros = ctx.New(rows_RH.dtype, {exchange.num_sorted_rows, rows_RH.size(1)});
    FillWith(ctx, 0.0, zeros);
    return zeros;
  }
  return AllToAll(ctx, Gathered(ctx, rows_RH, exchange.by_source_R), exchange.group,
                  exchange.recv_counts, exchange.send_counts);
}

using ExpertsExchanger = TensorView (*)(ExecContext&, const ExpertExchange&, const TensorView&);

Var Exchanged(ExecContext& ctx, const char* name, const Var& rows_RH,
              const ExpertExchange& exchange, ExpertsExchanger forward, ExpertsExchanger backward) {
  CheckRank(rows_RH.value, 2);
  const TensorView y = forward(ctx, exchange, rows_RH.value);
  const Var inputs[] = {rows_RH};
  if (!Recording(ctx, inputs, false)) return {.value = y};
  for (const TensorView& view : {exchange.by_expert_R, exchange.by_source_R})
    ctx.tape->Save("expert_exchange", NeededBy::kBackwardInput, view);
  const auto run_backward = [exchange, backward](Tape::BackwardContext& back) {
    back.set_grad_input(0, backward(back.ctx, exchange, back.grad_output(0)));
  };
  return ctx.tape->Record(name, inputs, {&y, 1}, false, run_backward)[0];
}

}  // namespace

ExpertExchange ExchangeExperts(ExecContext& ctx, const ExpertOrder& order, const Group& group) {
  const int64_t num_experts = order.offsets_E1.size(0) - 1, size = group.size();
  OMNI_CHECK_EQ(num_experts % size, 0);
  ExpertExchange exchange{.group = group, .num_sorted_rows = order.tokens_R.size(0)};
  if (group.is_alone()) {
    exchange.offsets_E1 = order.offsets_E1;
    exchange.num_rows = exchange.num_sorted_rows;
    return exchange;
  }
  const TensorView all =
      GatherAll(ctx, order.offsets_E1, group, std::vector<int64_t>(size, num_experts + 1));
  std::vector<int32_t> offsets = HostRead<int32_t>(ctx, all);
  exchange.failed =
      !group.comm->status().ok() || !AreOffsets(offsets, num_experts) ||
      offsets[group.rank() * (num_experts + 1) + num_experts] != exchange.num_sorted_rows;
  if (exchange.failed) std::fill(offsets.begin(), offsets.end(), 0);
  Plan(ctx, offsets, num_experts, &exchange);
  return exchange;
}

Var DispatchRows(ExecContext& ctx, const Var& rows_RH, const ExpertExchange& exchange) {
  if (exchange.group.is_alone()) return rows_RH;
  return Exchanged(ctx, "dispatch_rows", rows_RH, exchange, ToExperts, FromExperts);
}

Var CombineRows(ExecContext& ctx, const Var& rows_RH, const ExpertExchange& exchange) {
  if (exchange.group.is_alone()) return rows_RH;
  return Exchanged(ctx, "combine_rows", rows_RH, exchange, FromExperts, ToExperts);
}

}  // namespace omni::parallel
