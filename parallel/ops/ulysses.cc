#include "parallel/ops/ulysses.h"

#include <vector>

#include "parallel/ops/row_exchange.h"
#include "runtime/device/args/elementwise.h"
#include "runtime/ops/copy.h"
#include "runtime/ops/op_helpers.h"

namespace omni::parallel {
namespace {

// How the rows of each rank and the heads are dealt over the group.
struct HeadExchange {
  Group group;
  std::vector<int64_t> row_counts;
  int64_t num_heads = 0;  // N
  int64_t head_dim = 0;

  int64_t size() const { return group.size(); }
  int64_t local_heads() const { return num_heads >= size() ? num_heads / size() : 1; }
  // The first head of `rank`; the same for several ranks if there are fewer heads than ranks.
  int64_t FirstHead(int64_t rank) const { return rank * num_heads / size(); }
  bool has_copies() const { return num_heads < size(); }
  int64_t local_rows() const { return row_counts[group.rank()]; }
};

HeadExchange MakeExchange(const Group& group, absl::Span<const int64_t> row_counts,
                          int64_t num_heads, int64_t head_dim) {
  OMNI_CHECK_EQ(static_cast<int32_t>(row_counts.size()), group.size());
  OMNI_CHECK_GE(num_heads, 1);
  const int64_t size = group.size();
  OMNI_CHECK_EQ(num_heads >= size ? num_heads % size : size % num_heads, 0);
  return {.group = group,
          .row_counts = {row_counts.begin(), row_counts.end()},
          .num_heads = num_heads,
          .head_dim = head_dim};
}

// The heads of `rank` within x [L, N, D].
TensorView HeadsOf(const HeadExchange& exchange, const TensorView& x_LND, int64_t rank) {
  TensorView heads = x_LND;
  heads.sizes[1] = exchange.local_heads();
  heads.data = static_cast<std::byte*>(x_LND.data) +
               exchange.FirstHead(rank) * x_LND.stride(1) * SizeOf(x_LND.dtype);
  return heads;
}

// [L, N, D] -> [T, n, D]: what is sent is packed by rank; what is received lies as it should.
TensorView ToHeads(ExecContext& ctx, const HeadExchange& exchange, const TensorView& x_LND) {
  const int64_t size = exchange.size(), rows = exchange.local_rows();
  OMNI_CHECK_EQ(x_LND.size(0), rows);
  const TensorView packed =
      ctx.New(x_LND.dtype, {size * rows, exchange.local_heads(), exchange.head_dim});
  for (int64_t rank = 0; rank < size; ++rank) {
    CopyTo(ctx, HeadsOf(exchange, x_LND, rank), packed.Rows(rank * rows, rows));
  }
  return AllToAll(ctx, packed, exchange.group, std::vector<int64_t>(size, rows),
                  exchange.row_counts);
}

// [T, n, D] -> [L, N, D]: the transpose. Copies of a head are summed.
TensorView ToRows(ExecContext& ctx, const HeadExchange& exchange, const TensorView& x_TND) {
  const int64_t size = exchange.size(), rows = exchange.local_rows();
  const TensorView received =
      AllToAll(ctx, x_TND, exchange.group, exchange.row_counts, std::vector<int64_t>(size, rows));
  const DType dtype = x_TND.dtype;
  const DType sum_type = exchange.has_copies() ? AccumulationType(dtype) : dtype;
  const TensorView sum = ctx.New(sum_type, {rows, exchange.num_heads, exchange.head_dim});
  for (int64_t rank = 0; rank < size; ++rank) {
    const TensorView from = received.Rows(rank * rows, rows), to = HeadsOf(exchange, sum, rank);
    if (rank > 0 && exchange.FirstHead(rank) == exchange.FirstHead(rank - 1))
      Launch(ctx, OpId::kAxpy, sum_type, AxpyArgs{.x = from, .y = to, .alpha = 1.0});
    else
      CopyTo(ctx, from, to);
  }
  if (sum_type == dtype) return sum;
  const TensorView rounded = ctx.New(dtype, sum.shape());
  CopyTo(ctx, sum, rounded);
  return rounded;
}

using HeadsExchanger = TensorView (*)(ExecContext&, const HeadExchange&, const TensorView&);

Var Exchanged(ExecContext& ctx, const char* name, const Var& x, const HeadExchange& exchange,
              HeadsExchanger forward, HeadsExchanger backward) {
  const TensorView y = forward(ctx, exchange, x.value);
  const Var inputs[] = {x};
  if (!Recording(ctx, inputs, false)) return {.value = y};
  const auto run_backward = [exchange, backward](Tape::BackwardContext& back) {
    back.set_grad_input(0, backward(back.ctx, exchange, back.grad_output(0)));
  };
  return ctx.tape->Record(name, inputs, {&y, 1}, false, run_backward)[0];
}

}  // namespace

Var RowsToHeads(ExecContext& ctx, const Var& x_LND, const Group& group,
                absl::Span<const int64_t> row_counts) {
  if (group.is_alone()) return x_LND;
  CheckRank(x_LND.value, 3);
  const HeadExchange exchange =
      MakeExchange(group, row_counts, x_LND.value.size(1), x_LND.value.size(2));
  return Exchanged(ctx, "rows_to_heads", x_LND, exchange, ToHeads, ToRows);
}

Var HeadsToRows(ExecContext& ctx, const Var& x_TND, const Group& group,
                absl::Span<const int64_t> row_counts) {
  if (group.is_alone()) return x_TND;
  CheckRank(x_TND.value, 3);
  const HeadExchange exchange =
      MakeExchange(group, row_counts, x_TND.value.size(1) * group.size(), x_TND.value.size(2));
  return Exchanged(ctx, "heads_to_rows", x_TND, exchange, ToRows, ToHeads);
}

}  // namespace omni::parallel
