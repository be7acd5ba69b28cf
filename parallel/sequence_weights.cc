#include "parallel/sequence_weights.h"

#include "runtime/base/status.h"
#include "runtime/device/args/elementwise.h"

namespace omni::parallel {

void SequenceWeights::ForEachBucket(
    const std::string& module,
    const std::function<void(size_t index, const Bucket& bucket)>& fn) const {
  for (size_t i = 0; i < storage_.buckets().size(); ++i) {
    const Bucket& bucket = storage_.buckets()[i];
    if (bucket.sharding >= 0 && shardings_[bucket.sharding].module == module) fn(i, bucket);
  }
}

void SequenceWeights::Gather(ExecContext& ctx, const std::string& module) {
  ForEachBucket(module, [&](size_t i, const Bucket& bucket) {
    if (bucket.weights != EncoderWeights::kZero3) return;
    storage_.CommitValues(i);
    comm(bucket).AllGather(bucket.kept_values, bucket.values, bucket.kept_counts)->Wait(ctx.stream);
  });
}

void SequenceWeights::Drop(ExecContext& ctx, const std::string& module) {
  bool has_waited = false;
  ForEachBucket(module, [&](size_t i, const Bucket& bucket) {
    if (bucket.weights != EncoderWeights::kZero3) return;
    if (!has_waited) OMNI_CHECK_OK(ctx.stream.Synchronize());
    has_waited = true;
    storage_.ReleaseValues(i);
  });
}

void SequenceWeights::BeginGradients(ExecContext& ctx, const std::string& module) {
  ForEachBucket(module, [&](size_t i, const Bucket& bucket) {
    if (bucket.grads.empty()) return;
    storage_.CommitGrads(i);
    Launch(ctx, OpId::kFill, bucket.grads.dtype, FillArgs{.out = bucket.grads, .value = 0.0});
  });
}

void SequenceWeights::ReduceGradients(ExecContext& ctx, const std::string& module) {
  ForEachBucket(module, [&](size_t i, const Bucket& bucket) {
    if (bucket.grads.empty()) return;
    TensorArena arena(ctx.device);
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

}  // namespace omni::parallel
