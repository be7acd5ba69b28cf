// A byte stream from every rank of a group to every other: what an engine has to provide. All
// collectives are written once on top of it (exchange.h, collectives.h), so engines agree bit
// for bit.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "runtime/comm/options.h"

namespace omni::comm {

class PeerLinks;

struct Piece {
  const uint8_t* data;
  int64_t bytes;
};

// What a rank is waiting for from one peer.
struct Interest {
  bool receive = false;  // more bytes
  bool send = false;     // room for more
};

// Used by one thread at a time, except Interrupt. Ranks are those of the group; the stream to
// oneself is never used. Nothing blocks but Wait.
class Transport {
 public:
  virtual ~Transport() = default;

  // A pass looks at all streams once; what arrives after BeginPass ends the Wait that follows.
  virtual void BeginPass() = 0;
  // How many bytes of the pieces, end to end, the stream took.
  virtual int64_t TrySend(int32_t to, absl::Span<const Piece> pieces) = 0;
  // Bytes that have arrived and lie together; valid until Consume or TryReceive.
  virtual absl::Span<const uint8_t> Peek(int32_t from) = 0;
  virtual void Consume(int32_t from, int64_t bytes) = 0;
  // How many bytes were copied to `to`.
  virtual int64_t TryReceive(int32_t from, void* to, int64_t bytes) = 0;
  // Lets the peers know what the pass has done.
  virtual void EndPass() = 0;

  // Sleeps until something of interest may have happened, or the time has come.
  virtual void Wait(absl::Span<const Interest> interests, absl::Time until) = 0;
  // From any thread: ends the present or the next Wait.
  virtual void Interrupt() = 0;

  // True once nothing more will come from the peer: `left` says that its farewell was heard.
  // Farewells may overtake data on sockets, but not in shared memory.
  virtual bool Ended(int32_t peer, bool left) = 0;
};

// Makes the transport of one group. Called by all its members; may wait for the others.
class TransportFactory {
 public:
  virtual ~TransportFactory() = default;
  virtual absl::string_view engine() const = 0;
  // world_ranks[rank] is this process' own.
  virtual absl::StatusOr<std::unique_ptr<Transport>> Make(PeerLinks& links, uint64_t channel,
                                                          absl::Span<const int32_t> world_ranks,
                                                          int32_t rank,
                                                          const CommOptions& options) = 0;
};

}  // namespace omni::comm
