// Messages between ranks on their way, and the memory they need meanwhile.
#pragma once

#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "parallel/group.h"
#include "runtime/base/trace.h"
#include "runtime/comm/communicator.h"
#include "runtime/device/exec_context.h"

namespace omni::trainer {

// Rows of a tensor, in memory of their own. Without rows nothing travels, which both ends know.
struct Message {
  Message(Device& device, DType dtype, int64_t num_rows, int64_t num_cols)
      : memory(device), rows(memory.New(dtype, {num_rows, num_cols})) {}

  // Blocks until what was posted has arrived (or left): a span of category "wait", which whoever
  // reads the time of an action takes off (parallel/schedule/action_times.h).
  absl::Status Await(absl::Duration deadline, TraceRecorder* trace = nullptr) const {
    const TraceSpan span(trace, "wait", "wait");
    for (const auto& work : works) {
      const absl::Status status = work->WaitHost(deadline);
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  TensorArena memory;
  TensorView rows;
  std::vector<std::shared_ptr<Work>> works;  // a work may be several messages'
};

// Transfers posted together: what goes over one communicator progresses as one.
class TransferBatch {
 public:
  // `rows`: a part of the message, not empty. `peer`: a rank of the communicator.
  void Send(Communicator* comm, const TensorView& rows, int32_t peer, Message* message) {
    calls_.push_back({comm, rows, peer, /*is_send=*/true, message});
  }
  void Recv(Communicator* comm, const TensorView& rows, int32_t peer, Message* message) {
    calls_.push_back({comm, rows, peer, /*is_send=*/false, message});
  }
  void Post();

 private:
  struct Call {
    Communicator* comm;
    TensorView rows;
    int32_t peer;
    bool is_send;
    Message* message;
  };
  std::vector<Call> calls_;
};

// Messages that leave: kept until they have.
class Outbox {
 public:
  void Keep(std::unique_ptr<Message> message) { messages_.push_back(std::move(message)); }
  // Lets go of those that have left, oldest first.
  void Sweep();
  absl::Status Drain(absl::Duration deadline);

 private:
  std::deque<std::unique_ptr<Message>> messages_;
};

}  // namespace omni::trainer
