#include "parallel/ops/row_exchange.h"

#include <vector>

#include "runtime/ops/copy.h"

namespace omni::parallel {
namespace {

TensorView NewRows(ExecContext& ctx, const TensorView& like, int64_t num_rows) {
  OMNI_CHECK_GE(static_cast<int>(like.num_dims), 1);
  std::vector<int64_t> sizes(like.shape().begin(), like.shape().end());
  sizes[0] = num_rows;
  return ctx.New(like.dtype, sizes);
}

// Communicators count elements.
std::vector<int64_t> Elements(absl::Span<const int64_t> counts, const TensorView& rows) {
  int64_t row_elements = 1;
  for (int dim = 1; dim < rows.num_dims; ++dim) row_elements *= rows.size(dim);
  std::vector<int64_t> elements(counts.begin(), counts.end());
  for (int64_t& count : elements) count *= row_elements;
  return elements;
}

void CheckCounts(const Group& group, absl::Span<const int64_t> counts) {
  OMNI_CHECK(!group.is_alone());
  OMNI_CHECK_EQ(static_cast<int32_t>(counts.size()), group.size());
}

}  // namespace

TensorView MakeDense(ExecContext& ctx, const TensorView& view) {
  if (view.is_dense()) return view;
  const TensorView dense = ctx.New(view.dtype, view.shape());
  CopyTo(ctx, view, dense);
  return dense;
}

TensorView GatherAll(ExecContext& ctx, const TensorView& rows, const Group& group,
                     absl::Span<const int64_t> counts) {
  CheckCounts(group, counts);
  OMNI_CHECK_EQ(rows.size(0), counts[group.rank()]);
  const TensorView all = NewRows(ctx, rows, SumOf(counts));
  group.comm->AllGather(MakeDense(ctx, rows), all, Elements(counts, rows))->Wait(ctx.stream);
  return all;
}

TensorView ReduceScatter(ExecContext& ctx, const TensorView& rows, const Group& group,
                         absl::Span<const int64_t> counts) {
  CheckCounts(group, counts);
  OMNI_CHECK_EQ(rows.size(0), SumOf(counts));
  const TensorView own = NewRows(ctx, rows, counts[group.rank()]);
  group.comm->ReduceScatter(MakeDense(ctx, rows), own, Elements(counts, rows), ReduceOp::kSum)
      ->Wait(ctx.stream);
  return own;
}

TensorView AllToAll(ExecContext& ctx, const TensorView& rows, const Group& group,
                    absl::Span<const int64_t> send_counts, absl::Span<const int64_t> recv_counts) {
  CheckCounts(group, send_counts);
  CheckCounts(group, recv_counts);
  OMNI_CHECK_EQ(rows.size(0), SumOf(send_counts));
  const TensorView received = NewRows(ctx, rows, SumOf(recv_counts));
  group.comm
      ->AllToAll(MakeDense(ctx, rows), Elements(send_counts, rows), received,
                 Elements(recv_counts, rows))
      ->Wait(ctx.stream);
  return received;
}

}  // namespace omni::parallel
