// A Program says what one rank does in a step, in order, without sizes. It is data: the worker
// executes it, the verifier (verify.h) checks it, the simulator (replay.h) replays it. Whatever
// policy made it (build.h) is nobody else's business.
//
// A pipeline has `ranks` ranks; the model is cut into ranks x chunks_per_rank chunks in layer
// order. Programs are per pipeline rank: all ranks of a stage run the same one on their own shares,
// and a transfer to pipeline rank p means: to the ranks of that stage that want something from this
// one.
//
// Encoders work on groups: group g holds the samples of microbatches [g size, (g + 1) size), the
// last one may be shorter. Chunk 0, on the rank that holds it, reads the rows of all encoders; they
// arrive by kRows transfers and their gradients leave by kRowGrads. Rows a rank encodes for itself
// need no transfer.
//
// Transfers are asynchronous: an action posts its transfer and goes on; who needs the data (or the
// memory) waits there. Consecutive transfers with the same `slot` >= 0 are posted together and
// progress together (an exchange); slots of a rank ascend. Within a channel a rank's transfers with
// one peer happen in the order of the program. Rows may travel in rounds
// (ScheduleOptions::row_rounds): then the rank that encodes may stay at such a transfer until it is
// over, and each of them has a slot of its own.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace omni::parallel {

enum class ActionKind : uint8_t {
  kForwardBackward,   // microbatch: encoders, decoder, loss, and back: of the plain program alone
  kForward,           // chunk, microbatch
  kBackward,          // chunk, microbatch: both halves
  kBackwardInput,     // chunk, microbatch: gradients of the inputs
  kWeightGrad,        // chunk, microbatch: gradients of the weights; after kBackwardInput
  kEncodeForward,     // encoder, group: keeps what its backward needs
  kEncodeOnly,        // encoder, group: keeps nothing; kEncodeBackward encodes again
  kEncodeBackward,    // encoder, group
  kSend,              // payload to peer
  kRecv,              // payload from peer
  kReduceGradients,   // chunk (or encoder): its gradients are complete on this rank
  kAgree,             // failures, stop, losses: one decision for all ranks
  kUpdate,            // clipping and the optimizer on this rank's shard
  kGatherParameters,  // new values to every rank
};

// What a transfer carries; each is a channel of its own.
enum class Payload : uint8_t {
  kNone,
  kHidden,      // what crosses a stage boundary, to `chunk`, of `microbatch`
  kHiddenGrad,  // its gradient, to `chunk`
  kRows,        // an encoder's output rows of a group, to the rank with chunk 0
  kRowGrads,    // their gradients, back
};

struct Action {
  ActionKind kind = ActionKind::kForward;
  Payload payload = Payload::kNone;
  int16_t chunk = -1;       // of compute; of kHidden and kHiddenGrad the chunk that consumes it
  int32_t microbatch = -1;  // of encoders and their transfers: the group
  int16_t encoder = -1;
  int16_t peer = -1;  // pipeline rank at the other end
  int32_t slot = -1;  // of transfers

  bool operator==(const Action&) const = default;
  bool is_transfer() const { return kind == ActionKind::kSend || kind == ActionKind::kRecv; }
};
static_assert(sizeof(Action) == 16);

using Program = std::vector<Action>;

// "forward chunk 1 microbatch 3", "send rows encoder 0 group 2 to 0".
std::string ToString(const Action& action);
// The action that ToString gives this name (without a slot); nothing for other text.
std::optional<Action> ParseAction(absl::string_view name);

// The same on every rank: a rank without data for a microbatch runs it empty.
Program PlainProgram(int32_t num_microbatches);

}  // namespace omni::parallel
