#include "parallel/sharded_weights.h"

#include "runtime/base/status.h"
#include "runtime/device/args/elementwise.h"
#include "runtime/ops/copy.h"

namespace omni::parallel {

void ShardedWeights::ForEachBucket(
    const WeightPart& part,
    const std::function<void(size_t index, const Bucket& bucket)>& fn) const {
  for (size_t i = 0; i < storage_.buckets().size(); ++i) {
    const Bucket& bucket = storage_.buckets()[i];
    if (bucket.sharding < 0 || groups_.shardings[bucket.sharding].module != part.module) continue;
    if (part.chunk < 0 || part.chunk == bucket.chunk) fn(i, bucket);
  }
}

void ShardedWeights::Gather(ExecContext& ctx, const WeightPart& part) {
  ForEachBucket(part, [&](size_t i, const Bucket& bucket) {
    if (bucket.weights != WeightStorage::kZero3) return;
    storage_.CommitValues(i);
    comm(bucket).AllGather(bucket.kept_values, bucket.values, bucket.kept_counts)->Wait(ctx.stream);
  });
}

void ShardedWeights::Drop(ExecContext& ctx, const WeightPart& part) {
  bool has_waited = false;
  ForEachBucket(part, [&](size_t i, const Bucket& bucket) {
    if (bucket.weights != WeightStorage::kZero3) return;
    if (!has_waited) OMNI_CHECK_OK(ctx.stream.Synchronize());
    has_waited = true;
    storage_.ReleaseValues(i);
  });
}

void ShardedWeights::BeginGradients(ExecContext& ctx, const WeightPart& part) {
  ForEachBucket(part, [&](size_t i, const Bucket& bucket) {
    if (bucket.grads.empty() || storage_.has_grads(i)) return;
    storage_.CommitGrads(i);
    FillWith(ctx, 0.0, bucket.grads);
  });
}

void ShardedWeights::ReduceGradients(ExecContext& ctx, const WeightPart& part) {
  ForEachBucket(part, [&](size_t i, const Bucket& bucket) {
    if (bucket.grads.empty()) return;
    TensorArena arena(ctx.device);
    if (const int64_t num_copied = NumCopied(bucket); num_copied > 0) {
      SumCopies(ctx, bucket, groups_.copies, arena.New(bucket.grads.dtype, {num_copied}));
    }
    const TensorView sum = arena.New(bucket.grads.dtype, {bucket.kept.size()});
    comm(bucket)
        .ReduceScatter(bucket.grads, sum, bucket.kept_counts, ReduceOp::kSum)
        ->Wait(ctx.stream);
    if (sum.num_elements() > 0) {
      Launch(ctx, OpId::kAdd, sum.dtype,
             AddArgs{.a = bucket.kept_grads, .b = sum, .out = bucket.kept_grads});
    }
    OMNI_CHECK_OK(ctx.stream.Synchronize());
    storage_.ReleaseGrads(i);
  });
}

int64_t NumCopied(const Bucket& bucket) {
  int64_t count = 0;
  for (const CopiedRange& copied : bucket.copied) count += copied.count;
  return count;
}

void SumCopies(ExecContext& ctx, const Bucket& bucket, const Group& copies,
               const TensorView& staging) {
  if (staging.empty()) return;
  OMNI_CHECK(!copies.is_alone());
  const auto for_each = [&](const auto& copy) {
    int64_t at = 0;
    for (const CopiedRange& copied : bucket.copied) {
      if (copied.count == 0) continue;
      copy(bucket.grads.Rows(copied.offset, copied.count), staging.Rows(at, copied.count));
      at += copied.count;
    }
  };
  for_each([&](const TensorView& grad, const TensorView& staged) { CopyTo(ctx, grad, staged); });
  copies.comm->AllReduce(staging, ReduceOp::kSum)->Wait(ctx.stream);
  for_each([&](const TensorView& grad, const TensorView& staged) { CopyTo(ctx, staged, grad); });
}

}  // namespace omni::parallel
