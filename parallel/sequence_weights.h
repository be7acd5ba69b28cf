// Encoders' weights shared out within their sequence groups, brought together where they are used.
//
//   weights     between uses a rank keeps        while encoding      while going backwards
//   replicated  values, gradients                -                   -
//   zero2       values, its part of gradients    -                   all gradients
//   zero3       its part of both                 all values          all values and gradients
//
// (ZeRO, Rajbhandari et al. 2020.) Addresses never change, so weights stay bound. Around every
// encode and every backward of an encoder, on all ranks of its sequence groups alike, also on
// those without rows:
//
//   weights.Gather(ctx, "vision");   forward;    weights.Drop(ctx, "vision");
//   weights.Gather(ctx, "vision");   weights.BeginGradients(ctx, "vision");   backward;
//   weights.ReduceGradients(ctx, "vision");      weights.Drop(ctx, "vision");
//
// Per call and rank, of n ranks, (n - 1) / n of the encoder's bytes go over the wire. For modules
// that are replicated, or alone, every call does nothing.
#pragma once

#include <functional>
#include <string>

#include "parallel/flat_storage.h"
#include "parallel/placement_groups.h"

namespace omni::parallel {

class SequenceWeights {
 public:
  // `storage` was made with the same shardings; both outlive this. The communicators read after
  // ctx.stream, as everywhere.
  SequenceWeights(FlatStorage& storage, const std::vector<SequenceSharding>& shardings)
      : storage_(storage), shardings_(shardings) {}

  // `module`: as in SequenceSharding. Enqueues; whole values are there for what is enqueued later.
  void Gather(ExecContext& ctx, const std::string& module);
  // Waits for the stream, then takes the memory away.
  void Drop(ExecContext& ctx, const std::string& module);

  // Whole gradients, zero, for a backward to add to.
  void BeginGradients(ExecContext& ctx, const std::string& module);
  // Sums them over the sequence group, adds this rank's part to what it keeps (until
  // ShardedOptimizer::ZeroGradients), and takes the memory away. Waits for the stream.
  void ReduceGradients(ExecContext& ctx, const std::string& module);

 private:
  void ForEachBucket(const std::string& module,
                     const std::function<void(size_t index, const Bucket& bucket)>& fn) const;
  Communicator& comm(const Bucket& bucket) const {
    return *shardings_[bucket.sharding].sequence.comm;
  }

  FlatStorage& storage_;
  const std::vector<SequenceSharding> shardings_;
};

}  // namespace omni::parallel
