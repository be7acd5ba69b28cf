// The collectives, written once for all engines.
//
// All are direct: a rank talks to every other itself, which moves the same bytes per rank as
// rings do, lets reductions run in rank order, and makes whom a rank waits for be who is late.
//
//   all_reduce      2 (n-1)/n bytes per rank: the slices are reduced, each by one rank, then
//                   gathered; small ones: everybody sends all to everybody, one step less
//   reduce_scatter, all_gather, all_to_all    (n-1)/n of the whole
//   broadcast       the root sends n-1 times
//   barrier, split  a header to and from everybody
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "runtime/comm/call.h"
#include "runtime/comm/exchange.h"
#include "runtime/tensor/view.h"

namespace omni::comm {

struct Call {
  Verb verb = Verb::kBarrier;
  ReduceOp op = ReduceOp::kSum;
  TensorView input = {}, output = {};        // one of them where there is only one
  std::vector<int64_t> counts = {};          // reduce_scatter, all_gather; all_to_all: sent
  std::vector<int64_t> receive_counts = {};  // all_to_all
  int32_t peer = -1;                         // root, or the other end of a message
  bool sends = false;                        // which end of a message this is
  uint64_t digest = 0;                       // split
  int64_t sequence = 0;                      // among the group's collectives

  bool is_message() const { return verb == Verb::kMessage; }
  CallHeader header() const;  // without what differs by peer
};

// Moves an exchange on until `finished`; returns why it can't.
using Drive = std::function<absl::Status(Exchange&, const std::function<bool()>& finished)>;

struct Group {
  Transport& transport;
  int32_t rank, size;
  const Drive& drive;
};

absl::Status RunCollective(const Call& call, const Group& group);

// Sends and receives, all at once. `sent` and `received` count the messages with every peer.
absl::Status RunMessages(absl::Span<const Call> messages, absl::Span<int64_t> sent,
                         absl::Span<int64_t> received, const Group& group);

}  // namespace omni::comm
