#include "trainer/pipeline/transfers.h"

#include <algorithm>

namespace omni::trainer {

void TransferBatch::Post() {
  while (!calls_.empty()) {
    // Stable: the calls of one communicator stay in their order.
    Communicator* const comm = calls_.front().comm;
    const auto others = std::stable_partition(calls_.begin(), calls_.end(),
                                              [&](const Call& call) { return call.comm == comm; });
    comm->GroupBegin();
    for (auto call = calls_.begin(); call != others; ++call) {
      call->is_send ? comm->Send(call->rows, call->peer) : comm->Recv(call->rows, call->peer);
    }
    const std::shared_ptr<Work> work = comm->GroupEnd();
    for (auto call = calls_.begin(); call != others; ++call) {
      if (call->message->works.empty() || call->message->works.back() != work) {
        call->message->works.push_back(work);
      }
    }
    calls_.erase(calls_.begin(), others);
  }
}

void Outbox::Sweep() {
  const auto has_left = [](const Message& message) {
    return std::all_of(message.works.begin(), message.works.end(),
                       [](const auto& work) { return work->IsDone(); });
  };
  while (!messages_.empty() && has_left(*messages_.front())) messages_.pop_front();
}

absl::Status Outbox::Drain(absl::Duration deadline) {
  absl::Status status;
  for (const auto& message : messages_) status.Update(message->Await(deadline));
  messages_.clear();
  return status;
}

}  // namespace omni::trainer
