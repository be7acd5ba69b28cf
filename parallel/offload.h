// What of the decoder lives in host memory while the device does not need it:
//
//   parallel:
//     offload: {optimizer_state: host, activations: host}       # default: device
//
// The interface to a device with memory of its own. Until there is one, `host` is refused: on the
// CPU everything is in host memory already. What an implementation promises:
//
// optimizer_state: master weights and moments of this rank's shards (ShardedOptimizer::Shard) are
//   in pinned host memory; gradients and values stay. During kUpdate they pass through two staging
//   buffers on the device, piece by piece (a matrix of Muon's is one piece): the next piece comes
//   while this one is updated and the one before goes back, on a stream of their own. Checkpoints
//   read and write the host's copy and wait for no device. Costs 2 x state bytes over the link a
//   step; saves all but two pieces.
//
// activations: what a tape holds of a (chunk, microbatch) between its kForward and its first
//   backward action, in pinned host memory. Copies out start when the forward has ended
//   (Tape::EndForward: what nobody saved is gone by then), copies back when the action before the
//   backward in the rank's Program starts, so that they pass while that one runs; a tape whose
//   backward is next after its forward is left alone. What is needed by kWeightGrad alone may
//   leave again in between. Under `recompute: full` only the chunk's inputs are there to leave.
//   Costs 2 x saved bytes over the link a microbatch; saves all tapes but two.
//
// Neither changes an address that others hold, a bit of the result, or the order of collectives.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "runtime/base/config.h"

namespace omni::parallel {

enum class MemoryHome : uint8_t { kDevice, kHost };

struct OffloadConfig {
  MemoryHome optimizer_state = MemoryHome::kDevice;
  MemoryHome activations = MemoryHome::kDevice;
  bool operator==(const OffloadConfig&) const = default;
};
// InvalidArgument, with file, line and key, also for what is not there yet.
absl::Status Read(const ConfigNode& node, OffloadConfig* out);

}  // namespace omni::parallel
