// ZeRO-1: gradients are summed and scattered, each rank updates its own shard of every bucket,
// and the new values are gathered; each within the group of ranks that share the bucket.
//
//   optimizer.BeginStep(...)         which modules are trained now
//   optimizer.BeginReduce(...)       a bucket's gradients are complete: sum them meanwhile
//   optimizer.FinishReduce()         all of them
//   optimizer.Agree(...)             norm and finiteness over all ranks; one decision for all
//   optimizer.Update(...)            AdamW or Muon on the shard
//   optimizer.GatherParameters()     all-gather of the values
//   optimizer.ZeroGradients()
//
// All ranks of a group make the same calls in the same order. Optimizer state exists on the shard
// only: master weights (where the compute dtype is narrower), two moments for AdamW, one momentum
// for Muon. Buckets that no phase trains have none of it: a LoRA run's frozen base costs its values
// in the compute dtype and nothing more, in memory and in checkpoints. Matrices cut over tensor
// ranks keep their momentum where they are; to be orthogonalised each is assembled on one of the
// tensor ranks and goes back.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "parallel/flat_storage.h"
#include "parallel/placement_groups.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/comm/communicator.h"
#include "trainer/optimizer/optimizer_config.h"

namespace omni::trainer {

struct GradientSummary {
  // Over every trained element of the model, each counted once; NaN or infinity as they have it.
  double norm = 0.0;
  bool finite = true;
};

// What follows a parameter's path in the names of its optimizer state.
std::vector<std::string> MomentSuffixes(parallel::UpdateRule rule);

class ShardedOptimizer {
 public:
  // `storage` was made for groups.ranks() and groups.shardings. The groups' communicators read what
  // ctx.stream has written: their owner has called SetInputStream with it. They and `storage`
  // outlive the optimizer.
  ShardedOptimizer(ExecContext& ctx, parallel::FlatStorage& storage,
                   const parallel::PlacementGroups& groups, const OptimizerConfig& config,
                   absl::Duration deadline);

  // Which modules are trained in this step: the same answer on every rank. Before any BeginReduce.
  void BeginStep(const std::function<bool(const std::string& module)>& active);
  // Starts to sum the gradients of a bucket (index in storage.buckets()) over its group and leaves
  // each rank its shard. Enqueues after what ctx.stream has to do so far and returns at once.
  // Nothing may be added to them until ZeroGradients. Nothing happens to buckets not trained now.
  void BeginReduce(ExecContext& ctx, size_t bucket);
  // The buckets of a chunk of the pipeline, class by class.
  void BeginReduceChunk(ExecContext& ctx, int32_t chunk);
  // Begins what has not been begun and waits for everything. Aborted or DeadlineExceeded from a
  // communicator.
  absl::Status FinishReduce(ExecContext& ctx);
  absl::Status ReduceGradients(ExecContext& ctx,
                               const std::function<bool(const std::string& module)>& active) {
    BeginStep(active);
    return FinishReduce(ctx);
  }

  // Over the buckets just reduced.
  absl::StatusOr<GradientSummary> Agree(ExecContext& ctx);
  // `lr_of` gives the learning rate of a module in this step. Fails as the tensor group's
  // communicator does, where Muon's matrices are cut.
  absl::Status Update(ExecContext& ctx, const GradientSummary& gradients,
                      const std::function<double(const std::string& module)>& lr_of);
  absl::Status GatherParameters(ExecContext& ctx);
  void ZeroGradients(ExecContext& ctx);

  // What this rank must save: values (the master weights; where there are none, the values
  // themselves, in their own dtype) under the parameter's path, state under "<path>#first_moment"
  // and the like, as ranges of whole parameters. Over all ranks that is
  // every element once. Host views on CPU devices.
  std::vector<TensorRange> StateRanges(ExecContext& ctx);
  // Fills the shard and the values from a checkpoint of any layout. State in it of what never
  // trains here is not read; masters are widened where it has only values.
  absl::Status Load(ExecContext& ctx, const TensorSource& checkpoint);
  // In parts, in host memory, for who fills them (trainer/shared_load.h): values,
  // masters included, of every parameter `has` holds for; the state of update keys not in
  // `restarted`. Wait for ctx.stream.
  std::vector<TensorRange> ValuesToLoad(
      ExecContext& ctx, const std::function<bool(const std::string& path)>& has) const;
  std::vector<TensorRange> MomentsToLoad(ExecContext& ctx,
                                         const std::set<std::string>& restarted) const;
  // The state alone. That of the update keys in `restarted` stays as at the start.
  absl::Status LoadMoments(ExecContext& ctx, const TensorSource& checkpoint,
                           const std::set<std::string>& restarted);
  // Values alone, with state as at the start: for every parameter `has` holds for.
  absl::Status LoadValues(ExecContext& ctx, const TensorSource& source,
                          const std::function<bool(const std::string& path)>& has);
  // Updates so far by UpdateKey (AdamW's bias correction), the same on every rank; saved with the
  // trainer's state.
  const std::map<std::string, int64_t>& update_counts() const { return update_counts_; }
  // Keys of the model that `counts` lacks have 0; keys of no parameter here are left out.
  void set_update_counts(const std::map<std::string, int64_t>& counts);

 private:
  struct Shard {
    int64_t begin = 0, count = 0;  // in the bucket
    TensorView master;             // [count]; empty where the bucket never trains and is narrower
    TensorView grad;               // [count]
    TensorView first, second;      // AdamW's moments; Muon keeps its momentum in `first`
    TensorView copied;             // staging of the bucket's copied gradients
    // Of the shard, what this rank counts in norms; as many partial sums, from partial_begin.
    std::vector<parallel::IndexRange> counted;
    int64_t partial_begin = 0;
    bool active = false;  // trained in this step
    bool begun = false;   // BeginReduce has been called in this step
  };
  struct MuonStep {
    double grad_scale, lr;
  };

  const parallel::Group& group(const parallel::Bucket& bucket) const {
    return bucket.sharding < 0 ? groups_.of(bucket.placement)
                               : groups_.shardings[bucket.sharding].across;
  }
  // Indices of buckets, class by class: the order in which ranks begin collectives.
  std::vector<size_t> InOrder() const;
  void UpdateAdamW(ExecContext& ctx, const parallel::Bucket& bucket, const Shard& shard,
                   double grad_scale, double lr, int64_t update);
  void UpdateMuon(ExecContext& ctx, const parallel::Bucket& bucket, const Shard& shard,
                  const MuonStep& step);
  // Matrices, one at most for each tensor rank, that are cut over them.
  void UpdateCutMatrices(ExecContext& ctx, const Shard& shard,
                         absl::Span<const parallel::Matrix2d* const> matrices,
                         const MuonStep& step);
  void MuonDirection(ExecContext& ctx, const Shard& shard, const parallel::Matrix2d& matrix,
                     const MuonStep& step, const TensorView& direction);
  void MuonApply(ExecContext& ctx, const Shard& shard, const parallel::Matrix2d& matrix,
                 const MuonStep& step, const TensorView& direction);

  // Of `restarted` update keys the masters alone.
  std::vector<TensorRange> ShardRanges(bool to_save,
                                       const std::set<std::string>& restarted = {}) const;
  // Every rank's values, and this rank's master weights where they are apart from them.
  std::vector<TensorRange> ValueRanges() const;

  parallel::FlatStorage& storage_;
  const parallel::PlacementGroups groups_;
  const OptimizerConfig config_;
  const absl::Duration deadline_;
  TensorArena arena_;
  std::vector<Shard> shards_;   // as storage_.buckets()
  std::vector<WorkPtr> works_;  // reductions under way
  TensorView partial_sums_;     // fp64
  TensorView agreed_;           // fp64 [2]: sum of squares, ranks with a non-finite value
  std::function<bool(const std::string&)> active_;
  std::map<std::string, int64_t> update_counts_;
};

}  // namespace omni::trainer
