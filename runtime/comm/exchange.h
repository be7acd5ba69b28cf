// One call's traffic with all peers, moved forward a pass at a time without ever blocking on
// one of them.
//
// A call queues what it sends to and receives from each peer; both ends queue the same in the
// same order. Everything is padded to 8 bytes, so elements stay aligned in the streams.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "runtime/comm/call.h"
#include "runtime/comm/transport.h"

namespace omni::comm {

class Exchange {
 public:
  Exchange(Transport& transport, int32_t rank, int32_t size);

  // Queued; the memory is the caller's until done().
  void Send(int32_t to, const void* data, int64_t bytes);
  void Receive(int32_t from, void* data, int64_t bytes);
  void SendHeader(int32_t to, const CallHeader& header);
  // Internal if the peer's header is another one.
  void ExpectHeader(int32_t from, const CallHeader& header);

  // After what has been queued: all peers' next `num_elements` and this rank's `own` are
  // reduced, in rank order, into `out` (which may be `own`). One at a time.
  void Reduce(DType dtype, ReduceOp op, const void* own, void* out, int64_t num_elements);

  // One pass over all peers; true if any byte moved. Not called again after an error.
  absl::StatusOr<bool> Step();

  bool sends_done() const { return pending_sends_ == 0; }
  bool receives_done() const { return pending_receives_ == 0 && reduce_left_ == 0; }
  bool done() const { return sends_done() && receives_done(); }

  // After a pass without progress: what is missing, by peer.
  absl::Span<const Interest> Missing();
  int64_t bytes_moved() const { return bytes_moved_; }

 private:
  struct In {
    uint8_t* data = nullptr;
    int64_t bytes = 0;
    const CallHeader* expected = nullptr;  // then data is where the peer's header comes
  };
  struct Side {
    std::deque<Piece> out;
    std::deque<In> in;
  };

  bool StepSends(int32_t peer);
  absl::StatusOr<bool> StepReceives(int32_t peer);
  bool StepReduce();

  Transport& transport_;
  const int32_t rank_, size_;
  std::vector<Side> sides_;
  std::deque<CallHeader> headers_;  // ours and theirs; addresses stay
  std::vector<Interest> missing_;
  std::vector<bool> lacking_;  // peers the reduction had nothing from in the last pass
  int64_t pending_sends_ = 0, pending_receives_ = 0;  // pieces
  int64_t bytes_moved_ = 0;
  uint8_t sink_[8] = {};  // where padding goes

  DType reduce_dtype_ = DType::kFloat32;
  ReduceOp reduce_op_ = ReduceOp::kSum;
  const uint8_t* reduce_own_ = nullptr;
  uint8_t* reduce_out_ = nullptr;
  int64_t reduce_left_ = 0;  // elements
  int64_t reduce_padding_ = 0;
  std::vector<const void*> sources_;
};

}  // namespace omni::comm
