// Reducing, agreeing, AdamW, gathering; Muon is in sharded_muon.cc, checkpoints in
// sharded_state.cc.
#include "trainer/optimizer/sharded_optimizer.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "parallel/sharded_weights.h"
#include "runtime/base/status.h"
#include "runtime/device/args/optimizer.h"
#include "runtime/ops/copy.h"

namespace omni::trainer {
namespace {

using parallel::Bucket;
using parallel::Group;
using parallel::IndexRange;
using parallel::UpdateRule;

}  // namespace

ShardedOptimizer::ShardedOptimizer(ExecContext& ctx, parallel::FlatStorage& storage,
                                   const parallel::PlacementGroups& groups,
                                   const OptimizerConfig& config, absl::Duration deadline)
    : storage_(storage), groups_(groups), config_(config), deadline_(deadline), arena_(ctx.device) {
  const DType master = storage.master_dtype();
  int64_t num_partials = 0;
  for (const Bucket& bucket : storage.buckets()) {
    const Group& sharing = group(bucket);
    OMNI_CHECK_EQ(bucket.shard_counts.size(), static_cast<size_t>(sharing.size()));
    Shard shard{.begin = bucket.ShardBegin(sharing.rank()),
                .count = bucket.shard_counts[sharing.rank()]};
    const TensorView values = bucket.KeptValues(shard.begin, shard.count);
    if (storage.dtype() == master) {
      shard.master = values;
    } else if (!bucket.grads.empty()) {
      shard.master = arena_.New(master, {shard.count});
      CopyTo(ctx, values, shard.master);
    }
    if (!bucket.grads.empty()) {
      // Alone, the sum is there already.
      shard.grad = sharing.is_alone() ? bucket.kept_grads : arena_.New(master, {shard.count});
      shard.first = arena_.New(master, {shard.count});
      FillWith(ctx, 0.0, shard.first);
      if (bucket.rule != UpdateRule::kMuon) {
        shard.second = arena_.New(master, {shard.count});
        FillWith(ctx, 0.0, shard.second);
      }
      const int64_t num_copied = bucket.sharding < 0 ? parallel::NumCopied(bucket) : 0;
      if (num_copied > 0) shard.copied = arena_.New(master, {num_copied});
      shard.counted = parallel::CountedOnce(bucket, shard.begin, shard.begin + shard.count);
    }
    shard.partial_begin = num_partials;
    num_partials += static_cast<int64_t>(shard.counted.size());
    shards_.push_back(std::move(shard));
  }
  for (const parallel::UpdateKey& key : storage.update_keys()) update_counts_[key.name] = 0;
  partial_sums_ = arena_.New(DType::kFloat64, {std::max<int64_t>(1, num_partials)});
  agreed_ = arena_.New(DType::kFloat64, {2});
}

std::vector<size_t> ShardedOptimizer::InOrder() const {
  std::vector<size_t> order(shards_.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return storage_.buckets()[a].placement < storage_.buckets()[b].placement;
  });
  return order;
}

void ShardedOptimizer::BeginStep(const std::function<bool(const std::string& module)>& active) {
  OMNI_CHECK(works_.empty());
  active_ = active;
  for (size_t i = 0; i < shards_.size(); ++i) {
    const Bucket& bucket = storage_.buckets()[i];
    shards_[i].active = !bucket.grads.empty() && active(bucket.module);
    shards_[i].begun = false;
  }
}

void ShardedOptimizer::BeginReduce(ExecContext& ctx, size_t index) {
  const Bucket& bucket = storage_.buckets()[index];
  Shard& shard = shards_[index];
  OMNI_CHECK(!shard.begun);
  shard.begun = true;
  if (!shard.active) return;
  parallel::SumCopies(ctx, bucket, groups_.copies, shard.copied);
  const Group& sharing = group(bucket);
  if (sharing.is_alone()) return;
  works_.push_back(sharing.comm->ReduceScatter(bucket.kept_grads, shard.grad, bucket.shard_counts,
                                               ReduceOp::kSum));
}

void ShardedOptimizer::BeginReduceChunk(ExecContext& ctx, int32_t chunk) {
  for (const size_t i : InOrder()) {
    if (storage_.buckets()[i].chunk == chunk) BeginReduce(ctx, i);
  }
}

absl::Status ShardedOptimizer::FinishReduce(ExecContext& ctx) {
  for (const size_t i : InOrder()) {
    if (!shards_[i].begun) BeginReduce(ctx, i);
  }
  // Every rank waits for every bucket, also after a failure: none leaves a collective alone.
  absl::Status status;
  for (const WorkPtr& work : works_) status.Update(work->WaitHost(deadline_));
  works_.clear();
  if (!groups_.copies.is_alone()) status.Update(groups_.copies.comm->status());
  return status;
}

absl::StatusOr<GradientSummary> ShardedOptimizer::Agree(ExecContext& ctx) {
  FillWith(ctx, 0.0, partial_sums_);
  for (const Shard& shard : shards_) {
    if (!shard.active) continue;
    int64_t partial = shard.partial_begin;
    for (const IndexRange& range : shard.counted) {
      const TensorView grad = shard.grad.Rows(range.begin - shard.begin, range.size());
      Launch(ctx, OpId::kSumOfSquares, grad.dtype,
             SumOfSquaresArgs{.x = grad, .out = partial_sums_.Rows(partial++, 1)});
    }
  }
  double mine[2] = {0.0, 0.0};
  for (const double sum : HostRead<double>(ctx, partial_sums_)) mine[0] += sum;
  mine[1] = std::isfinite(mine[0]) ? 0.0 : 1.0;
  if (!groups_.world.is_alone()) {
    Upload(ctx, mine, sizeof(mine), agreed_);
    const WorkPtr work = groups_.world.comm->AllReduce(agreed_, ReduceOp::kSum);
    OMNI_RETURN_IF_ERROR(work->WaitHost(deadline_));
    const std::vector<double> sums = HostRead<double>(ctx, agreed_);
    std::copy(sums.begin(), sums.end(), mine);
  }
  const bool finite = mine[1] == 0.0 && std::isfinite(mine[0]);
  // Without the sign that a NaN may have.
  const double norm =
      std::isnan(mine[0]) ? std::numeric_limits<double>::quiet_NaN() : std::sqrt(mine[0]);
  return GradientSummary{.norm = norm, .finite = finite};
}

void ShardedOptimizer::UpdateAdamW(ExecContext& ctx, const Bucket& bucket, const Shard& shard,
                                   double grad_scale, double lr, int64_t update) {
  if (shard.count == 0) return;
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

absl::Status ShardedOptimizer::Update(ExecContext& ctx, const GradientSummary& gradients,
                                      const std::function<double(const std::string&)>& lr_of) {
  double grad_scale = 1.0;
  if (config_.clip > 0 && gradients.norm > config_.clip) grad_scale = config_.clip / gradients.norm;
  for (const parallel::UpdateKey& key : storage_.update_keys()) {
    if (key.trained && active_(key.module)) ++update_counts_[key.name];
  }
  for (const size_t i : InOrder()) {
    const Shard& shard = shards_[i];
    if (!shard.active) continue;
    const Bucket& bucket = storage_.buckets()[i];
    const double lr = lr_of(bucket.module);
    if (bucket.rule == UpdateRule::kMuon) {
      UpdateMuon(ctx, bucket, shard, {.grad_scale = grad_scale, .lr = lr});
    } else {
      const std::string key = parallel::UpdateKeyName(bucket.module, bucket.rule);
      UpdateAdamW(ctx, bucket, shard, grad_scale, lr, update_counts_.at(key));
    }
    const TensorView values = bucket.KeptValues(shard.begin, shard.count);
    if (shard.master.data != values.data) CopyTo(ctx, shard.master, values);
  }
  if (groups_.tensor.is_alone()) return absl::OkStatus();
  return groups_.tensor.comm->status();
}

absl::Status ShardedOptimizer::GatherParameters(ExecContext&) {
  std::vector<WorkPtr> works;
  absl::Status status;
  const auto wait = [&] {
    for (const WorkPtr& work : works) status.Update(work->WaitHost(deadline_));
    works.clear();
  };
  for (const size_t i : InOrder()) {
    const Bucket& bucket = storage_.buckets()[i];
    const Group& sharing = group(bucket);
    if (!shards_[i].active || sharing.is_alone()) continue;
    works.push_back(sharing.comm->AllGather(bucket.KeptValues(shards_[i].begin, shards_[i].count),
                                            bucket.kept_values, bucket.shard_counts));
  }
  wait();
  // Whole values of which each rank keeps the gradients of a part.
  for (const size_t i : InOrder()) {
    const Bucket& bucket = storage_.buckets()[i];
    if (!shards_[i].active || bucket.weights != parallel::WeightStorage::kZero2) continue;
    works.push_back(groups_.shardings[bucket.sharding].within.comm->AllGather(
        bucket.kept_values, bucket.values, bucket.kept_counts));
  }
  wait();
  return status;
}

void ShardedOptimizer::ZeroGradients(ExecContext& ctx) {
  for (const Bucket& bucket : storage_.buckets()) {
    if (!bucket.grads.empty()) FillWith(ctx, 0.0, bucket.kept_grads);
  }
}

}  // namespace omni::trainer
