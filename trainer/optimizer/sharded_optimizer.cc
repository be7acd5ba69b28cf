#include "trainer/optimizer/sharded_optimizer.h"

#include <algorithm>
#include <cmath>

#include "runtime/base/status.h"
#include "runtime/checkpoint/read_ranges.h"
#include "runtime/device/args/elementwise.h"
#include "runtime/device/args/optimizer.h"

namespace omni::trainer {
namespace {

using parallel::Bucket;
using parallel::UpdateRule;

void Zero(ExecContext& ctx, const TensorView& view) {
  if (view.num_elements() == 0) return;
  Launch(ctx, OpId::kFill, view.dtype, FillArgs{.out = view, .value = 0.0});
}

void CopyTo(ExecContext& ctx, const TensorView& from, const TensorView& to) {
  if (from.num_elements() == 0 || from.data == to.data) return;
  Launch(ctx, OpId::kCopyCast, from.dtype, CopyCastArgs{.in = from, .out = to});
}

}  // namespace

ShardedOptimizer::ShardedOptimizer(ExecContext& ctx, parallel::FlatStorage& storage,
                                   Communicator* comm, const OptimizerConfig& config,
                                   absl::Duration deadline)
    : storage_(storage),
      comm_(comm),
      config_(config),
      deadline_(deadline),
      rank_(comm == nullptr ? 0 : comm->rank()),
      arena_(ctx.device) {
  const DType master = storage.master_dtype();
  for (const Bucket& bucket : storage.buckets()) {
    Shard shard{.begin = bucket.ShardBegin(rank_), .count = bucket.shard_counts[rank_]};
    const TensorView values = bucket.values.Rows(shard.begin, shard.count);
    if (storage.dtype() == master) {
      shard.master = values;
    } else {
      shard.master = arena_.New(master, {shard.count});
      CopyTo(ctx, values, shard.master);
    }
    if (!bucket.grads.empty()) {
      // Alone, the sum is there already.
      shard.grad =
          alone() ? bucket.grads.Rows(shard.begin, shard.count) : arena_.New(master, {shard.count});
      shard.first = arena_.New(master, {shard.count});
      Zero(ctx, shard.first);
      if (bucket.rule != UpdateRule::kMuon) {
        shard.second = arena_.New(master, {shard.count});
        Zero(ctx, shard.second);
      }
    }
    update_counts_[bucket.name] = 0;
    shards_.push_back(shard);
  }
  partial_sums_ = arena_.New(DType::kFloat64, {static_cast<int64_t>(shards_.size())});
  agreed_ = arena_.New(DType::kFloat64, {2});
}

absl::Status ShardedOptimizer::ReduceGradients(ExecContext& ctx,
                                               const std::function<bool(const Bucket&)>& active) {
  // The communicator reads what the stream may still be writing.
  if (!alone()) OMNI_CHECK_OK(ctx.stream.Synchronize());
  std::vector<WorkPtr> works;
  for (size_t i = 0; i < shards_.size(); ++i) {
    const Bucket& bucket = storage_.buckets()[i];
    Shard& shard = shards_[i];
    shard.active = !bucket.grads.empty() && active(bucket);
    if (!shard.active || alone()) continue;
    works.push_back(
        comm_->ReduceScatter(bucket.grads, shard.grad, bucket.shard_counts, ReduceOp::kSum));
  }
  // Every rank waits for every bucket, also after a failure: none leaves a collective alone.
  absl::Status status;
  for (const WorkPtr& work : works) status.Update(work->WaitHost(deadline_));
  return status;
}

absl::StatusOr<GradientSummary> ShardedOptimizer::Agree(ExecContext& ctx) {
  Zero(ctx, partial_sums_);
  for (size_t i = 0; i < shards_.size(); ++i) {
    if (!shards_[i].active || shards_[i].count == 0) continue;
    const SumOfSquaresArgs args{.x = shards_[i].grad, .out = partial_sums_.Rows(i, 1)};
    Launch(ctx, OpId::kSumOfSquares, shards_[i].grad.dtype, args);
  }
  double mine[2] = {0.0, 0.0};
  for (const double sum : HostRead<double>(ctx, partial_sums_)) mine[0] += sum;
  if (!std::isfinite(mine[0])) {
    mine[0] = 0.0;
    mine[1] = 1.0;
  }
  if (!alone()) {
    Upload(ctx, mine, sizeof(mine), agreed_);
    OMNI_CHECK_OK(ctx.stream.Synchronize());
    OMNI_RETURN_IF_ERROR(comm_->AllReduce(agreed_, ReduceOp::kSum)->WaitHost(deadline_));
    const std::vector<double> sums = HostRead<double>(ctx, agreed_);
    std::copy(sums.begin(), sums.end(), mine);
  }
  return GradientSummary{.norm = std::sqrt(mine[0]), .finite = mine[1] == 0.0};
}

void ShardedOptimizer::UpdateAdamW(ExecContext& ctx, const Bucket& bucket, const Shard& shard,
                                   double grad_scale, double lr, int64_t update) {
  const bool decays = bucket.rule == UpdateRule::kAdamW;
  const double t = static_cast<double>(update);
  Launch(ctx, OpId::kAdamW, shard.master.dtype,
         AdamWArgs{.weight = shard.master,
                   .grad = shard.grad,
                   .first_moment = shard.first,
                   .second_moment = shard.second,
                   .grad_scale = grad_scale,
                   .lr = lr,
                   .beta1 = config_.beta1,
                   .beta2 = config_.beta2,
                   .eps = config_.eps,
                   .weight_decay = decays ? config_.weight_decay : 0.0,
                   .correction1 = 1.0 - std::pow(config_.beta1, t),
                   .correction2 = 1.0 - std::pow(config_.beta2, t)});
}

void ShardedOptimizer::UpdateMuon(ExecContext& ctx, const Bucket& bucket, const Shard& shard,
                                  double grad_scale, double lr) {
  for (const parallel::Matrix2d& matrix : bucket.matrices) {
    if (matrix.offset < shard.begin || matrix.offset >= shard.begin + shard.count) continue;
    const int64_t begin = matrix.offset - shard.begin, count = matrix.rows * matrix.cols;
    TensorArena temporary(ctx.device);
    const TensorView direction = temporary.New(shard.master.dtype, {matrix.rows, matrix.cols});
    Launch(ctx, OpId::kMuonMomentum, direction.dtype,
           MuonMomentumArgs{.grad = shard.grad.Rows(begin, count),
                            .buffer = shard.first.Rows(begin, count),
                            .direction = direction,
                            .grad_scale = grad_scale,
                            .momentum = config_.momentum});
    Launch(ctx, OpId::kNewtonSchulz, direction.dtype,
           NewtonSchulzArgs{.direction = direction, .steps = config_.newton_schulz_steps});
    // An orthogonal matrix has entries of RMS 1/sqrt(max(rows, cols)); times this, 0.2, about that
    // of AdamW's update, so both share one rate (Liu et al. 2025, arXiv 2502.16982).
    const double scale = 0.2 * std::sqrt(static_cast<double>(std::max(matrix.rows, matrix.cols)));
    Launch(ctx, OpId::kMuonApply, direction.dtype,
           MuonApplyArgs{.weight = shard.master.Rows(begin, count),
                         .direction = direction,
                         .lr = lr,
                         .weight_decay = config_.weight_decay,
                         .scale = scale});
  }
}

void ShardedOptimizer::Update(ExecContext& ctx, const GradientSummary& gradients,
                              const std::function<double(const std::string&)>& lr_of) {
  double grad_scale = 1.0;
  if (config_.clip > 0 && gradients.norm > config_.clip) grad_scale = config_.clip / gradients.norm;
  for (size_t i = 0; i < shards_.size(); ++i) {
    const Shard& shard = shards_[i];
    if (!shard.active) continue;
    const Bucket& bucket = storage_.buckets()[i];
    const int64_t update = ++update_counts_[bucket.name];
    if (shard.count == 0) continue;
    const double lr = lr_of(bucket.module);
    if (bucket.rule == UpdateRule::kMuon) {
      UpdateMuon(ctx, bucket, shard, grad_scale, lr);
    } else {
      UpdateAdamW(ctx, bucket, shard, grad_scale, lr, update);
    }
    CopyTo(ctx, shard.master, bucket.values.Rows(shard.begin, shard.count));
  }
}

absl::Status ShardedOptimizer::GatherParameters(ExecContext& ctx) {
  if (alone()) return absl::OkStatus();
  OMNI_RETURN_IF_ERROR(ctx.stream.Synchronize());
  std::vector<WorkPtr> works;
  for (size_t i = 0; i < shards_.size(); ++i) {
    if (!shards_[i].active) continue;
    const Bucket& bucket = storage_.buckets()[i];
    works.push_back(comm_->AllGather(bucket.values.Rows(shards_[i].begin, shards_[i].count),
                                     bucket.values, bucket.shard_counts));
  }
  absl::Status status;
  for (const WorkPtr& work : works) status.Update(work->WaitHost(deadline_));
  return status;
}

void ShardedOptimizer::ZeroGradients(ExecContext& ctx) {
  for (const Bucket& bucket : storage_.buckets()) {
    if (!bucket.grads.empty()) Zero(ctx, bucket.grads);
  }
}

std::vector<TensorRange> ShardedOptimizer::StateRanges(ExecContext& ctx) {
  OMNI_CHECK_OK(ctx.stream.Synchronize());
  std::vector<TensorRange> ranges;
  const auto append = [&](const Bucket& bucket, const Shard& shard, const TensorView& data,
                          const char* suffix) {
    if (data.empty()) return;
    for (TensorRange& range : parallel::FlatStorage::Ranges(bucket, shard.begin, data, suffix)) {
      ranges.push_back(std::move(range));
    }
  };
  for (size_t i = 0; i < shards_.size(); ++i) {
    const Bucket& bucket = storage_.buckets()[i];
    const Shard& shard = shards_[i];
    append(bucket, shard, shard.master, "");
    append(bucket, shard, shard.first,
           bucket.rule == UpdateRule::kMuon ? "#momentum" : "#first_moment");
    append(bucket, shard, shard.second, "#second_moment");
  }
  return ranges;
}

std::vector<TensorRange> ShardedOptimizer::ValueRanges() const {
  std::vector<TensorRange> ranges;
  const auto append = [&](const Bucket& bucket, int64_t begin, const TensorView& data) {
    for (TensorRange& range : parallel::FlatStorage::Ranges(bucket, begin, data, "")) {
      ranges.push_back(std::move(range));
    }
  };
  for (size_t i = 0; i < shards_.size(); ++i) {
    const Bucket& bucket = storage_.buckets()[i];
    append(bucket, 0, bucket.values);
    if (storage_.dtype() != storage_.master_dtype()) {
      append(bucket, shards_[i].begin, shards_[i].master);
    }
  }
  return ranges;
}

absl::Status ShardedOptimizer::Load(ExecContext& ctx, const TensorSource& checkpoint) {
  OMNI_RETURN_IF_ERROR(ReadRanges(checkpoint, StateRanges(ctx)));
  return ReadRanges(checkpoint, ValueRanges());
}

absl::Status ShardedOptimizer::LoadValues(ExecContext& ctx, const TensorSource& source,
                                          const std::function<bool(const std::string&)>& has) {
  OMNI_RETURN_IF_ERROR(ctx.stream.Synchronize());
  std::vector<TensorRange> ranges = ValueRanges();
  ranges.erase(std::remove_if(ranges.begin(), ranges.end(),
                              [&](const TensorRange& range) { return !has(range.name); }),
               ranges.end());
  return ReadRanges(source, ranges);
}

}  // namespace omni::trainer
