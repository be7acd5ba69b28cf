// Weights and gradients that a group of ranks shares out, brought together where they are used
// (ZeRO, Rajbhandari et al. 2020).
//
//   weights     between uses a rank keeps        in a forward      in a backward
//   replicated  values, gradients                -                 -
//   zero2       values, its part of gradients    -                 all gradients
//   zero3       its part of both                 all values        all values and gradients
//
// Optimizer state is shared out in any case. The groups are WeightSharding::within:
//
//   encoders    a sequence group (`parallel.encoders.<name>.weights`); a part is a whole encoder
//   decoder     all ranks of a stage that have the parameter (`parallel.weights`): the group its
//               gradients are summed over. A part is a chunk of the pipeline, so what is gathered
//               at once gets smaller with chunks_per_rank. A tied embedding, which two chunks use,
//               stays whole, as do adapters (model.lora)
//
// Addresses never change, so weights stay bound. What is brought together lies in one room, part
// after part (runtime/device/elastic_memory.h): as large as the largest part, in memory for good.
// Around every use of a part, on all ranks of its
// groups alike, also on those without rows:
//
//   kForward, kEncodeForward         Gather;                  forward;         Drop
//   kBackward, kEncodeBackward       Gather, BeginGradients;  backward;        ReduceGradients,
//   Drop kBackwardInput                   Gather, BeginGradients;  input half;      Drop
//   kWeightGrad                      Gather, BeginGradients;  weights' half;   ReduceGradients,
//   Drop
//
// A part's gradients are there from its first BeginGradients to its next ReduceGradients: a
// schedule that runs the input half apart holds them until a weights' half.
//
// Per call and rank, of n ranks, (n - 1) / n of the part's bytes go over the wire: gradients once a
// microbatch instead of once a step, and values twice a microbatch with zero3. That is the price of
// the memory: (n - 1) / n of gradients (zero2), and of values (zero3).
//
// What a device with streams changes behind this interface: Gather may have begun while the action
// before ran (the program says what comes next), and Drop and ReduceGradients record an event
// instead of waiting. Both groups' communicators see the same order of calls either way.
#pragma once

#include <functional>
#include <string>

#include "parallel/flat_storage.h"
#include "parallel/placement_groups.h"

namespace omni::parallel {

// What is brought together at once.
struct WeightPart {
  std::string module;  // as in WeightSharding
  int32_t chunk = -1;  // of the decoder; -1: all there is
};

class ShardedWeights {
 public:
  // `storage` was made with groups.shardings; both outlive this. The communicators read after
  // ctx.stream, as everywhere.
  ShardedWeights(FlatStorage& storage, const PlacementGroups& groups)
      : storage_(storage), groups_(groups) {}

  // Each does nothing for parts that are replicated, or alone.

  // Enqueues; whole values are there for what is enqueued later.
  void Gather(ExecContext& ctx, const WeightPart& part);
  // Waits for the stream, then takes the memory away.
  void Drop(ExecContext& ctx, const WeightPart& part);

  // Whole gradients for a backward to add to; zero, unless they are there already.
  void BeginGradients(ExecContext& ctx, const WeightPart& part);
  // Sums them over the group, adds this rank's part to what it keeps (until
  // ShardedOptimizer::ZeroGradients), and takes the memory away. Waits for the stream.
  void ReduceGradients(ExecContext& ctx, const WeightPart& part);

 private:
  void ForEachBucket(const WeightPart& part,
                     const std::function<void(size_t index, const Bucket& bucket)>& fn) const;
  Communicator& comm(const Bucket& bucket) const {
    return *groups_.shardings[bucket.sharding].within.comm;
  }

  FlatStorage& storage_;
  const PlacementGroups groups_;
};

// Sums the gradients of KV heads over the tensor ranks that hold copies of them, before they are
// summed over anyone else. Enqueues; `staging`: [NumCopied(bucket)], alive until that is done;
// empty where there are no copies, and nothing happens.
void SumCopies(ExecContext& ctx, const Bucket& bucket, const Group& copies,
               const TensorView& staging);
int64_t NumCopied(const Bucket& bucket);

}  // namespace omni::parallel
