// ZeRO-1: gradients are summed and scattered, each rank updates its own shard of every bucket,
// and the new values are gathered.
//
//   optimizer.ReduceGradients(...)   bucket by bucket: reduce-scatter
//   optimizer.Agree(...)             norm and finiteness over all ranks; one decision for all
//   optimizer.Update(...)            AdamW or Muon on the shard
//   optimizer.GatherParameters()     all-gather of the values
//   optimizer.ZeroGradients()
//
// All ranks make the same calls. Optimizer state exists on the shard only: master weights (where
// the compute dtype is narrower), two moments for AdamW, one momentum for Muon.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "parallel/flat_storage.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/comm/communicator.h"
#include "trainer/optimizer/optimizer_config.h"

namespace omni::trainer {

struct GradientSummary {
  double norm = 0.0;  // over every trained element of the model, each counted once
  bool finite = true;
};

class ShardedOptimizer {
 public:
  // `comm` may be null for a single rank. Both must outlive the optimizer.
  ShardedOptimizer(ExecContext& ctx, parallel::FlatStorage& storage, Communicator* comm,
                   const OptimizerConfig& config, absl::Duration deadline);

  // Sums the gradients of buckets for which `active` holds over all ranks; the rest is left
  // alone. Aborted or DeadlineExceeded from the communicator.
  absl::Status ReduceGradients(ExecContext& ctx,
                               const std::function<bool(const parallel::Bucket&)>& active);
  // Over the buckets just reduced.
  absl::StatusOr<GradientSummary> Agree(ExecContext& ctx);
  // `lr_of` gives the learning rate of a module in this step.
  void Update(ExecContext& ctx, const GradientSummary& gradients,
              const std::function<double(const std::string& module)>& lr_of);
  absl::Status GatherParameters(ExecContext& ctx);
  void ZeroGradients(ExecContext& ctx);

  // This rank's shard of everything that must be saved: values (from the master weights) under the
  // parameter's path, state under "<path>#first_moment" and the like. Host views on CPU devices.
  std::vector<TensorRange> StateRanges(ExecContext& ctx);
  // Fills the shard from a checkpoint and the values from the gathered shards.
  absl::Status Load(ExecContext& ctx, const TensorSource& checkpoint);
  // Values alone, with state as at the start: for every parameter `has` holds for.
  absl::Status LoadValues(ExecContext& ctx, const TensorSource& source,
                          const std::function<bool(const std::string& path)>& has);
  // Updates so far of each bucket (AdamW's bias correction), saved with the trainer's state.
  const std::map<std::string, int64_t>& update_counts() const { return update_counts_; }
  void set_update_counts(std::map<std::string, int64_t> counts) {
    update_counts_ = std::move(counts);
  }

 private:
  struct Shard {
    int64_t begin = 0, count = 0;  // in the bucket
    TensorView master, grad;       // [count]
    TensorView first, second;      // AdamW's moments; Muon keeps its momentum in `first`
    bool active = false;           // reduced in this step
  };
  void UpdateAdamW(ExecContext& ctx, const parallel::Bucket& bucket, const Shard& shard,
                   double grad_scale, double lr, int64_t update);
  void UpdateMuon(ExecContext& ctx, const parallel::Bucket& bucket, const Shard& shard,
                  double grad_scale, double lr);
  // Every rank's values, and this rank's master weights where they are apart from them.
  std::vector<TensorRange> ValueRanges() const;
  bool alone() const { return comm_ == nullptr || comm_->size() == 1; }

  parallel::FlatStorage& storage_;
  Communicator* const comm_;
  const OptimizerConfig config_;
  const absl::Duration deadline_;
  const int32_t rank_;
  TensorArena arena_;
  std::vector<Shard> shards_;  // as storage_.buckets()
  TensorView partial_sums_;    // fp64, one per bucket
  TensorView agreed_;          // fp64 [2]: sum of squares, ranks with a non-finite value
  std::map<std::string, int64_t> update_counts_;
};

}  // namespace omni::trainer
