// A Program says what one rank does in a step, in order, without sizes. It is data: the worker
// executes it, and later the verifier checks it and the simulator replays it.
//
// Here is the plain one, without pipeline: microbatches one after another, then the update.
#pragma once

#include <cstdint>
#include <vector>

namespace omni::parallel {

enum class ActionKind : uint8_t {
  kForwardBackward,   // microbatch: encoders, decoder, loss, and back
  kAgree,             // failures, stop, losses: one decision for all ranks
  kReduceGradients,   // sums over the ranks, to the shards
  kUpdate,            // clipping and the optimizer on this rank's shard
  kGatherParameters,  // new values to every rank
};

struct Action {
  ActionKind kind;
  int32_t microbatch = -1;  // kForwardBackward

  bool operator==(const Action&) const = default;
};

using Program = std::vector<Action>;

// The same on every rank: a rank without data for a microbatch runs it empty.
Program PlainProgram(int32_t num_microbatches);

}  // namespace omni::parallel
