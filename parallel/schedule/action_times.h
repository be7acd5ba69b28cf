// How long actions take: the table a replay asks, from a file or from a recorded run.
//
//   times:
//     - {kind: forward, seconds: 1}
//     - {kind: forward, chunk: 3, seconds: 1.5}                  # the head is there
//     - {kind: encode, encoder: 0, group: 2, rank: 1, seconds: 0.25}
//     - {kind: hidden, seconds: 0.01}                            # on its way
//
// An entry speaks of all actions that agree with what it names: kind, and optionally rank, chunk or
// encoder, microbatch or group. Of several the one that names most is taken; of two that name
// equally many, one with a microbatch or group before one with a chunk or encoder before one with a
// rank. Kinds: forward_backward, forward, backward, input_backward, weight_gradient, encode,
// encode_only (else as encode), encoder_backward, reduce_gradients, agree, update,
// gather_parameters; of transfers hidden, hidden_gradient, rows, row_gradients. What nothing speaks
// of takes no time.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "parallel/schedule/program.h"

namespace omni::parallel {

class ActionTimes {
 public:
  // YAML or JSON, as above. InvalidArgument with file, line and key.
  static absl::StatusOr<ActionTimes> LoadFile(const std::string& path);

  // From Chrome traces with a span for each action of a step (runtime/base/trace.h): its name
  // ToString(action), its category "action", its process the rank, of whom `ranks_per_stage`
  // successive ones are one pipeline rank. Spans of category "wait" within an action, of the same
  // process and track, are taken off it: waiting for what it needs is for the replay to find out.
  // Other spans are ignored. A send takes as long as its span, if it has one.
  //
  // The n-th span of a name on a rank belongs to the n-th step. An action takes the median over
  // steps of the longest among the ranks of a stage. kAgree is recorded with the waiting for the
  // last rank: of each step the shortest over all ranks counts. For what was not recorded (another
  // schedule, another number of microbatches) medians over microbatches, then over ranks stand in,
  // if its chunk or encoder was.
  // InvalidArgument naming the file if nothing is recorded in it; errors of ReadChromeTrace.
  static absl::StatusOr<ActionTimes> FromTraces(const std::vector<std::string>& paths,
                                                int32_t ranks_per_stage = 1);

  double operator()(int32_t rank, const Action& action) const;

  // FailedPrecondition naming the first compute action of which nothing is said: its time of 0
  // would be an invention.
  absl::Status Covers(const std::vector<Program>& programs) const;

 private:
  // -1: any.
  struct Key {
    ActionKind kind = ActionKind::kForward;
    Payload payload = Payload::kNone;
    int32_t rank = -1, part = -1, index = -1;
    bool operator==(const Key&) const = default;
    template <typename H>
    friend H AbslHashValue(H h, const Key& key) {
      return H::combine(std::move(h), key.kind, key.payload, key.rank, key.part, key.index);
    }
  };
  static Key KeyOf(int32_t rank, const Action& action);
  static int MaskOf(const Key& key);
  const double* Find(const Key& key) const;
  // False if there is such an entry already.
  bool Insert(const Key& key, double seconds);

  absl::flat_hash_map<Key, double> times_;
  uint32_t masks_ = 0;  // bit m: there is an entry that names the fields of mask m
};

}  // namespace omni::parallel
