// Muon on matrices that are whole on their rank, and on those cut over the tensor ranks.
//
// The latter go in rounds of one matrix for each tensor rank, costliest first, so that the work of
// a round is even and no more than one whole matrix is held. In a round every rank takes the
// momentum step on its parts of all the matrices; one all-to-all brings the parts of the j-th
// matrix to tensor rank j (of copies, the first holder's), which orthogonalises it; another takes
// the parts back, copies too.
#include <algorithm>
#include <cmath>

#include "runtime/base/status.h"
#include "runtime/device/args/optimizer.h"
#include "runtime/ops/copy.h"
#include "trainer/optimizer/sharded_optimizer.h"

namespace omni::trainer {
namespace {

using parallel::Bucket;
using parallel::IndexRange;
using parallel::Matrix2d;

int64_t PartElements(const Matrix2d& matrix, int32_t tensor_rank) {
  const int64_t length = matrix.parts[tensor_rank].size();
  return length * (matrix.cut_dim == 0 ? matrix.whole_cols : matrix.whole_rows);
}

bool IsFirstHolder(const Matrix2d& matrix, int32_t tensor_rank) {
  return tensor_rank == 0 || matrix.parts[tensor_rank] != matrix.parts[tensor_rank - 1];
}

TensorView PartOf(const Matrix2d& matrix, const TensorView& whole, int32_t tensor_rank) {
  const IndexRange& part = matrix.parts[tensor_rank];
  return matrix.cut_dim == 0 ? whole.Rows(part.begin, part.size())
                             : whole.Columns(part.begin, part.size());
}

double Cost(const Matrix2d& matrix) {
  const double n = static_cast<double>(std::min(matrix.whole_rows, matrix.whole_cols));
  const double m = static_cast<double>(std::max(matrix.whole_rows, matrix.whole_cols));
  return n * n * (2 * m + n);
}

int64_t Sum(const std::vector<int64_t>& counts) {
  int64_t sum = 0;
  for (const int64_t count : counts) sum += count;
  return sum;
}

// Consecutive pieces of a flat buffer.
class Pieces {
 public:
  explicit Pieces(const TensorView& flat) : flat_(flat) {}
  TensorView Next(int64_t rows, int64_t cols) {
    const TensorView piece = flat_.Rows(at_, rows * cols).Reshape({rows, cols});
    at_ += rows * cols;
    return piece;
  }

 private:
  const TensorView flat_;
  int64_t at_ = 0;
};

}  // namespace

void ShardedOptimizer::MuonDirection(ExecContext& ctx, const Shard& shard, const Matrix2d& matrix,
                                     const MuonStep& step, const TensorView& direction) {
  const int64_t begin = matrix.offset - shard.begin, count = matrix.rows * matrix.cols;
  Launch(ctx, OpId::kMuonMomentum, direction.dtype,
         MuonMomentumArgs{.grad = shard.grad.Rows(begin, count),
                          .buffer = shard.first.Rows(begin, count),
                          .direction = direction,
                          .grad_scale = step.grad_scale,
                          .momentum = config_.momentum});
}

void ShardedOptimizer::MuonApply(ExecContext& ctx, const Shard& shard, const Matrix2d& matrix,
                                 const MuonStep& step, const TensorView& direction) {
  // An orthogonal matrix has entries of RMS 1/sqrt(max(rows, cols)); times this, 0.2, about that
  // of AdamW's update, so both share one rate (Liu et al. 2025, arXiv 2502.16982).
  const int64_t longest = std::max(matrix.whole_rows, matrix.whole_cols);
  const double scale = 0.2 * std::sqrt(static_cast<double>(longest));
  const int64_t begin = matrix.offset - shard.begin, count = matrix.rows * matrix.cols;
  Launch(ctx, OpId::kMuonApply, direction.dtype,
         MuonApplyArgs{.weight = shard.master.Rows(begin, count),
                       .direction = direction,
                       .lr = step.lr,
                       .weight_decay = config_.weight_decay,
                       .scale = scale});
}

void ShardedOptimizer::UpdateMuon(ExecContext& ctx, const Bucket& bucket, const Shard& shard,
                                  const MuonStep& step) {
  const int32_t rank = group(bucket).rank();
  std::vector<const Matrix2d*> cut;
  for (const Matrix2d& matrix : bucket.matrices) {
    if (matrix.owner != rank) continue;
    if (matrix.cut_dim >= 0) {
      cut.push_back(&matrix);
      continue;
    }
    TensorArena temporary(ctx.device);
    const TensorView direction = temporary.New(shard.master.dtype, {matrix.rows, matrix.cols});
    MuonDirection(ctx, shard, matrix, step, direction);
    Launch(ctx, OpId::kNewtonSchulz, direction.dtype,
           NewtonSchulzArgs{.direction = direction, .steps = config_.newton_schulz_steps});
    MuonApply(ctx, shard, matrix, step, direction);
  }
  std::stable_sort(cut.begin(), cut.end(),
                   [](const Matrix2d* a, const Matrix2d* b) { return Cost(*a) > Cost(*b); });
  const size_t at_once = groups_.tensor.size();
  for (size_t i = 0; i < cut.size(); i += at_once) {
    UpdateCutMatrices(ctx, shard, absl::MakeSpan(cut).subspan(i, at_once), step);
  }
}

void ShardedOptimizer::UpdateCutMatrices(ExecContext& ctx, const Shard& shard,
                                         absl::Span<const Matrix2d* const> matrices,
                                         const MuonStep& step) {
  const DType dtype = shard.master.dtype;
  const int32_t rank = groups_.tensor.rank(), size = groups_.tensor.size();
  Communicator& comm = *groups_.tensor.comm;
  TensorArena arena(ctx.device);
  std::vector<int64_t> own(size, 0), own_first(size, 0);      // of my parts, by matrix
  std::vector<int64_t> parts(size, 0), parts_first(size, 0);  // of my matrix, by rank
  for (size_t j = 0; j < matrices.size(); ++j) {
    OMNI_CHECK_EQ(matrices[j]->parts.size(), static_cast<size_t>(size));
    own[j] = matrices[j]->rows * matrices[j]->cols;
    own_first[j] = IsFirstHolder(*matrices[j], rank) ? own[j] : 0;
  }
  const Matrix2d* mine = rank < static_cast<int32_t>(matrices.size()) ? matrices[rank] : nullptr;
  for (int32_t other = 0; mine != nullptr && other < size; ++other) {
    parts[other] = PartElements(*mine, other);
    parts_first[other] = IsFirstHolder(*mine, other) ? parts[other] : 0;
  }

  const TensorView sent = arena.New(dtype, {Sum(own_first)});
  Pieces to_send(sent);
  for (size_t j = 0; j < matrices.size(); ++j) {
    const Matrix2d& matrix = *matrices[j];
    MuonDirection(ctx, shard, matrix, step,
                  own_first[j] > 0 ? to_send.Next(matrix.rows, matrix.cols)
                                   : arena.New(dtype, {matrix.rows, matrix.cols}));
  }
  const TensorView received = arena.New(dtype, {Sum(parts_first)});
  comm.AllToAll(sent, own_first, received, parts_first)->Wait(ctx.stream);

  const TensorView back = arena.New(dtype, {Sum(parts)});
  if (mine != nullptr) {
    const TensorView whole = arena.New(dtype, {mine->whole_rows, mine->whole_cols});
    Pieces from(received), to(back);
    const auto next = [&](Pieces& pieces, const TensorView& part) {
      return pieces.Next(part.size(0), part.size(1));
    };
    for (int32_t other = 0; other < size; ++other) {
      if (parts_first[other] == 0) continue;
      const TensorView part = PartOf(*mine, whole, other);
      CopyTo(ctx, next(from, part), part);
    }
    Launch(ctx, OpId::kNewtonSchulz, dtype,
           NewtonSchulzArgs{.direction = whole, .steps = config_.newton_schulz_steps});
    for (int32_t other = 0; other < size; ++other) {
      const TensorView part = PartOf(*mine, whole, other);
      CopyTo(ctx, part, next(to, part));
    }
  }
  const TensorView directions = arena.New(dtype, {Sum(own)});
  comm.AllToAll(back, parts, directions, own)->Wait(ctx.stream);
  Pieces results(directions);
  for (const Matrix2d* matrix : matrices) {
    MuonApply(ctx, shard, *matrix, step, results.Next(matrix->rows, matrix->cols));
  }
}

}  // namespace omni::trainer
