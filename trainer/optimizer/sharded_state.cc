// What of the optimizer is saved and loaded.
#include <algorithm>

#include "runtime/base/status.h"
#include "runtime/checkpoint/host_ranges.h"
#include "runtime/checkpoint/read_ranges.h"
#include "runtime/device/work_count.h"
#include "trainer/optimizer/sharded_optimizer.h"

namespace omni::trainer {

using parallel::Bucket;
using parallel::FlatStorage;
using parallel::UpdateRule;

std::vector<std::string> MomentSuffixes(UpdateRule rule) {
  if (rule == UpdateRule::kFixed) return {};
  if (rule == UpdateRule::kMuon) return {"#momentum"};
  return {"#first_moment", "#second_moment"};
}

std::vector<TensorRange> ShardedOptimizer::ShardRanges(
    bool to_save, const std::set<std::string>& restarted) const {
  std::vector<TensorRange> ranges;
  const auto append = [&](const Bucket& bucket, const Shard& shard, const TensorView& data,
                          const std::string& suffix) {
    if (data.empty()) return;
    for (TensorRange& range : FlatStorage::Ranges(bucket, shard.begin, data, suffix, to_save)) {
      ranges.push_back(std::move(range));
    }
  };
  for (size_t i = 0; i < shards_.size(); ++i) {
    const Bucket& bucket = storage_.buckets()[i];
    const Shard& shard = shards_[i];
    const size_t first = ranges.size();
    // Without a master the values are all there is; reading them is ValueRanges' part.
    const bool has_master = !shard.master.empty();
    if (has_master || to_save) {
      append(bucket, shard, has_master ? shard.master : bucket.KeptValues(shard.begin, shard.count),
             "");
    }
    if (to_save && bucket.grads.empty()) {  // no update touches it
      for (size_t r = first; r < ranges.size(); ++r) ranges[r].is_constant = true;
    }
    if (restarted.count(parallel::UpdateKeyName(bucket.module, bucket.rule)) > 0) continue;
    const std::vector<std::string> suffixes = MomentSuffixes(bucket.rule);
    if (!suffixes.empty()) append(bucket, shard, shard.first, suffixes[0]);
    if (suffixes.size() > 1) append(bucket, shard, shard.second, suffixes[1]);
  }
  return ranges;
}

std::vector<TensorRange> ShardedOptimizer::StateRanges(ExecContext& ctx) {
  OMNI_CHECK_OK(ctx.stream.Synchronize());
  return ShardRanges(/*to_save=*/true);
}

std::vector<TensorRange> ShardedOptimizer::ValueRanges() const {
  std::vector<TensorRange> ranges;
  const auto append = [&](const Bucket& bucket, int64_t begin, const TensorView& data) {
    for (TensorRange& range : FlatStorage::Ranges(bucket, begin, data, "")) {
      ranges.push_back(std::move(range));
    }
  };
  for (size_t i = 0; i < shards_.size(); ++i) {
    const Bucket& bucket = storage_.buckets()[i];
    if (bucket.weights == parallel::WeightStorage::kZero3) {
      append(bucket, bucket.kept.begin, bucket.kept_values);
    } else {
      append(bucket, 0, bucket.values);
    }
    if (storage_.dtype() != storage_.master_dtype() && !shards_[i].master.empty()) {
      append(bucket, shards_[i].begin, shards_[i].master);
    }
  }
  return ranges;
}

namespace {

absl::Status ReadInto(ExecContext& ctx, const TensorSource& source,
                      std::vector<TensorRange> ranges) {
  HostRanges host(ctx, std::move(ranges));
  OMNI_RETURN_IF_ERROR(ReadRanges(source, host.ranges(), [progress = WorkCount::OfThread()] {
    if (progress != nullptr) progress->Tick();
  }));
  host.Upload();
  return absl::OkStatus();
}

}  // namespace

absl::Status ShardedOptimizer::Load(ExecContext& ctx, const TensorSource& checkpoint) {
  OMNI_CHECK_OK(ctx.stream.Synchronize());
  OMNI_RETURN_IF_ERROR(ReadInto(ctx, checkpoint, ShardRanges(/*to_save=*/false)));
  return ReadInto(ctx, checkpoint, ValueRanges());
}

std::vector<TensorRange> ShardedOptimizer::MomentsToLoad(
    ExecContext& ctx, const std::set<std::string>& restarted) const {
  OMNI_CHECK_OK(ctx.stream.Synchronize());
  std::vector<TensorRange> ranges = ShardRanges(/*to_save=*/false, restarted);
  ranges.erase(std::remove_if(ranges.begin(), ranges.end(),
                              [](const TensorRange& range) {  // master weights
                                return range.name.find('#') == std::string::npos;
                              }),
               ranges.end());
  return ranges;
}

absl::Status ShardedOptimizer::LoadMoments(ExecContext& ctx, const TensorSource& checkpoint,
                                           const std::set<std::string>& restarted) {
  return ReadInto(ctx, checkpoint, MomentsToLoad(ctx, restarted));
}

void ShardedOptimizer::set_update_counts(const std::map<std::string, int64_t>& counts) {
  for (auto& [key, count] : update_counts_) {
    const auto saved = counts.find(key);
    count = saved == counts.end() ? 0 : saved->second;
  }
}

std::vector<TensorRange> ShardedOptimizer::ValuesToLoad(
    ExecContext& ctx, const std::function<bool(const std::string&)>& has) const {
  OMNI_CHECK_OK(ctx.stream.Synchronize());
  std::vector<TensorRange> ranges = ValueRanges();
  ranges.erase(std::remove_if(ranges.begin(), ranges.end(),
                              [&](const TensorRange& range) { return !has(range.name); }),
               ranges.end());
  return ranges;
}

absl::Status ShardedOptimizer::LoadValues(ExecContext& ctx, const TensorSource& source,
                                          const std::function<bool(const std::string&)>& has) {
  return ReadInto(ctx, source, ValuesToLoad(ctx, has));
}

}  // namespace omni::trainer
