// The data plane: collectives and messages between the ranks of one group.
//
// One interface, several engines: `shm` (threads or processes of one host), `tcp` (sockets),
// later `nccl` and host-staged. All calls are made by one thread per rank, in the same order on
// every rank of the group; they enqueue and return a Work. Reductions add in rank order whatever
// arrives first, so results are bitwise reproducible and equal on all ranks.
//
// Failure: every wait has a deadline. When a rank of the job dies, each survivor's pending and
// later calls end with Aborted naming that rank; when one stalls, with DeadlineExceeded naming the
// rank that is behind, what it was doing, and the call (collective, group, sequence number, bytes).
// A communicator and all that were split from it, on all ranks, share one fate: the first failure
// in any of them ends them all, at once, with the same reason. Make a new world of the next
// generation. Ranks in messages are those of the world.
//
// Buffers are views the caller keeps alive and untouched until the Work is done.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "runtime/device/stream.h"
#include "runtime/tensor/view.h"

namespace omni {

enum class ReduceOp : uint8_t { kSum, kMax, kMin };

class Work {
 public:
  virtual ~Work() = default;
  // Makes `stream` wait for the result without blocking the host.
  virtual void Wait(Stream& stream) = 0;
  // Blocks the host; DeadlineExceeded or Aborted as described above. The communicator's own
  // deadline (CommOptions::deadline of waiting without any byte moving) holds as well.
  virtual absl::Status WaitHost(absl::Duration deadline) = 0;
  // True once it has ended, well or not. Never blocks.
  virtual bool IsDone() const = 0;
};
using WorkPtr = std::unique_ptr<Work>;

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int32_t rank() const = 0;
  virtual int32_t size() const = 0;
  virtual int64_t generation() const = 0;
  virtual absl::string_view engine() const = 0;  // "shm", "tcp"

  // OK, or why this communicator is dead. The way to learn of a failure after Work::Wait on a
  // stream, which has nobody to return it to: the stream goes on, so check before using results.
  virtual absl::Status status() const = 0;

  // Calls made from now on read their inputs, and write their outputs, after all that had been
  // enqueued on `stream` when the call was made. Null (the default): buffers are ready at the
  // call. Communicators split off later start with the same stream. It must outlive its use.
  virtual void SetInputStream(Stream* stream) = 0;

  // A communicator over some ranks of this one, on its own channel, so its traffic never mixes
  // with others'. Collective over *all* ranks of this communicator, in the same order
  // everywhere; ranks not in the list get null. `ranks` are ranks of this communicator.
  virtual absl::StatusOr<std::unique_ptr<Communicator>> Split(absl::Span<const int32_t> ranks,
                                                              absl::string_view channel) = 0;

  // Dense views, fp64, fp32, bf16 (reduced in fp32, rounded once), int32, int64; uint8 where
  // nothing is reduced. In-place where input and output are the same memory.
  virtual WorkPtr AllReduce(const TensorView& data, ReduceOp op) = 0;
  // input: sum(counts) elements; output: counts[rank]. Counts may differ and be zero. Output
  // may be its own place in input, but must not overlap the rest of it.
  virtual WorkPtr ReduceScatter(const TensorView& input, const TensorView& output,
                                absl::Span<const int64_t> counts, ReduceOp op) = 0;
  // input: counts[rank] elements; output: sum(counts). Input may be its own place in output.
  virtual WorkPtr AllGather(const TensorView& input, const TensorView& output,
                            absl::Span<const int64_t> counts) = 0;
  // Element counts to and from every rank, in rank order inside the buffers.
  virtual WorkPtr AllToAll(const TensorView& input, absl::Span<const int64_t> send_counts,
                           const TensorView& output, absl::Span<const int64_t> recv_counts) = 0;
  virtual WorkPtr Broadcast(const TensorView& data, int32_t root) = 0;
  virtual WorkPtr Send(const TensorView& data, int32_t to) = 0;
  virtual WorkPtr Recv(const TensorView& data, int32_t from) = 0;
  virtual WorkPtr Barrier() = 0;

  // Calls between the two make progress together (a Send and a Recv with the same neighbour
  // form an exchange that can't deadlock). Collectives of a group run first, in their order,
  // then all its sends and receives at once. Only here may a rank send to itself.
  virtual void GroupBegin() = 0;
  virtual WorkPtr GroupEnd() = 0;

  // Ends every pending call of the job, on this rank and on all others, with Aborted(reason).
  virtual void Abort(absl::string_view reason) = 0;

  // What this rank does from now on, "forward chunk 1 microbatch 3": whoever waits for it in vain
  // reads it in the reason. One for all communicators split from one world. Costs a short copy;
  // the others hear of it at most every 0.1 s, so of a rank that was stopped they may know the
  // activity before its last.
  virtual void SetActivity(absl::string_view what) = 0;
  // Returns once the others have been sent what SetActivity named last.
  virtual void FlushActivity() = 0;

  // The last calls of this communicator, newest last:
  // "#41 group=world/tensor{2,3} all_reduce sum fp32 4.0 MiB pending 5s, waiting for rank 2".
  virtual std::vector<std::string> RecentCalls() const = 0;
  // After a failure, for the log, line by line: the reason; what this rank is doing, and the
  // others as far as this one asked them; the last calls of all communicators split from one
  // world, newest last.
  virtual std::vector<std::string> FaultReport() const = 0;
};

}  // namespace omni
