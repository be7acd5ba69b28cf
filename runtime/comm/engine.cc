#include "runtime/comm/engine.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/rng.h"
#include "runtime/base/status.h"
#include "runtime/comm/call_queue.h"
#include "runtime/comm/host_staged.h"
#include "runtime/comm/progress_of.h"
#include "runtime/comm/reduce.h"

namespace omni::comm {
namespace {

class QueuedWork final : public Work {
 public:
  QueuedWork(std::shared_ptr<CallQueue> queue, std::shared_ptr<Ticket> ticket)
      : queue_(std::move(queue)), ticket_(std::move(ticket)) {}

  void Wait(Stream& stream) override {
    stream.RunOnHost([queue = queue_, ticket = ticket_] {
      // A failure is kept by the communicator: status().
      (void)queue->Await(ticket, absl::InfiniteDuration());
    });
  }
  absl::Status WaitHost(absl::Duration limit) override { return queue_->Await(ticket_, limit); }
  bool IsDone() const override { return queue_->IsDone(*ticket_); }

 private:
  std::shared_ptr<CallQueue> queue_;  // shared: the communicator and its unfinished work
  std::shared_ptr<Ticket> ticket_;
};

// Engines read and write where tensors lie; a GPU's are staged (host_staged.h).
void CheckDense(const TensorView& view) {
  OMNI_CHECK(view.is_dense() && IsHostMemory(view.device));
}

int64_t Sum(absl::Span<const int64_t> counts) {
  for (const int64_t count : counts) OMNI_CHECK_GE(count, 0);
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

bool Overlap(const uint8_t* a, int64_t a_bytes, const uint8_t* b, int64_t b_bytes) {
  return a_bytes > 0 && b_bytes > 0 && a < b + b_bytes && b < a + a_bytes;
}

class EngineCommunicator final : public Communicator {
 public:
  EngineCommunicator(std::shared_ptr<PeerLinks> links, std::shared_ptr<TransportFactory> factory,
                     uint64_t channel, std::vector<int32_t> members, int32_t rank, std::string name,
                     const CommOptions& options, std::unique_ptr<Transport> transport)
      : links_(links),
        factory_(std::move(factory)),
        channel_(channel),
        members_(members),
        rank_(rank),
        name_(name),
        options_(options),
        queue_(std::make_shared<CallQueue>(std::move(links), std::move(transport), channel,
                                           std::move(members), rank, std::move(name), options)) {
    queue_->Start();
  }
  ~EngineCommunicator() override { queue_->Stop(); }

  int32_t rank() const override { return rank_; }
  int32_t size() const override { return static_cast<int32_t>(members_.size()); }
  int64_t generation() const override { return options_.generation; }
  absl::string_view engine() const override { return factory_->engine(); }
  absl::Status status() const override { return queue_->failure(); }
  void SetInputStream(Stream* stream) override { input_stream_ = stream; }

  absl::StatusOr<std::unique_ptr<Communicator>> Split(absl::Span<const int32_t> ranks,
                                                      absl::string_view channel) override {
    OMNI_CHECK(grouped_ == nullptr);
    std::vector<int64_t> digested(ranks.begin(), ranks.end());
    std::vector<int32_t> members;
    int32_t my_rank = -1;
    for (size_t i = 0; i < ranks.size(); ++i) {
      OMNI_CHECK(ranks[i] >= 0 && ranks[i] < size());
      OMNI_CHECK(std::count(ranks.begin(), ranks.end(), ranks[i]) == 1);
      if (ranks[i] == rank_) my_rank = static_cast<int32_t>(i);
      members.push_back(members_[ranks[i]]);
    }
    Call call = {.verb = Verb::kSplit, .digest = Digest(digested, StreamOf(channel))};
    OMNI_RETURN_IF_ERROR(Issue(std::move(call))->WaitHost(absl::InfiniteDuration()));
    const uint64_t id = Digest({static_cast<int64_t>(channel_), ++num_splits_}, StreamOf(channel));
    if (my_rank < 0) return nullptr;
    std::string name = absl::StrCat(name_, "/", channel);
    CommOptions options = options_;  // the others are here already
    options.connect_deadline = std::min(options.connect_deadline, options.deadline);
    auto transport = factory_->Make(*links_, id, members, my_rank, options);
    if (!transport.ok()) {
      const absl::Status why = Annotate(transport.status(), absl::StrCat("making group ", name));
      queue_->Fail(why);
      return why;
    }
    auto result =
        std::make_unique<EngineCommunicator>(links_, factory_, id, std::move(members), my_rank,
                                             std::move(name), options_, *std::move(transport));
    result->SetInputStream(input_stream_);
    return result;
  }

  WorkPtr AllReduce(const TensorView& data, ReduceOp op) override {
    CheckDense(data);
    OMNI_CHECK(CanReduce(data.dtype));
    return Issue({.verb = Verb::kAllReduce, .op = op, .input = data, .output = data});
  }

  WorkPtr ReduceScatter(const TensorView& input, const TensorView& output,
                        absl::Span<const int64_t> counts, ReduceOp op) override {
    CheckDense(input);
    CheckDense(output);
    OMNI_CHECK(CanReduce(input.dtype) && input.dtype == output.dtype);
    OMNI_CHECK_EQ(static_cast<int32_t>(counts.size()), size());
    OMNI_CHECK_EQ(input.num_elements(), Sum(counts));
    OMNI_CHECK_EQ(output.num_elements(), counts[rank_]);
    CheckOwnPlace(input, output, counts);
    return Issue({.verb = Verb::kReduceScatter,
                  .op = op,
                  .input = input,
                  .output = output,
                  .counts = {counts.begin(), counts.end()}});
  }

  WorkPtr AllGather(const TensorView& input, const TensorView& output,
                    absl::Span<const int64_t> counts) override {
    CheckDense(input);
    CheckDense(output);
    OMNI_CHECK(input.dtype == output.dtype);
    OMNI_CHECK_EQ(static_cast<int32_t>(counts.size()), size());
    OMNI_CHECK_EQ(output.num_elements(), Sum(counts));
    OMNI_CHECK_EQ(input.num_elements(), counts[rank_]);
    CheckOwnPlace(output, input, counts);
    return Issue({.verb = Verb::kAllGather,
                  .input = input,
                  .output = output,
                  .counts = {counts.begin(), counts.end()}});
  }

  WorkPtr AllToAll(const TensorView& input, absl::Span<const int64_t> send_counts,
                   const TensorView& output, absl::Span<const int64_t> recv_counts) override {
    CheckDense(input);
    CheckDense(output);
    OMNI_CHECK(input.dtype == output.dtype);
    OMNI_CHECK_EQ(static_cast<int32_t>(send_counts.size()), size());
    OMNI_CHECK_EQ(static_cast<int32_t>(recv_counts.size()), size());
    OMNI_CHECK_EQ(input.num_elements(), Sum(send_counts));
    OMNI_CHECK_EQ(output.num_elements(), Sum(recv_counts));
    OMNI_CHECK_EQ(send_counts[rank_], recv_counts[rank_]);
    OMNI_CHECK(!Overlap(static_cast<const uint8_t*>(input.data), input.num_bytes(),
                        static_cast<const uint8_t*>(output.data), output.num_bytes()));
    return Issue({.verb = Verb::kAllToAll,
                  .input = input,
                  .output = output,
                  .counts = {send_counts.begin(), send_counts.end()},
                  .receive_counts = {recv_counts.begin(), recv_counts.end()}});
  }

  WorkPtr Broadcast(const TensorView& data, int32_t root) override {
    CheckDense(data);
    OMNI_CHECK(root >= 0 && root < size());
    return Issue({.verb = Verb::kBroadcast, .input = data, .output = data, .peer = root});
  }

  WorkPtr Send(const TensorView& data, int32_t to) override { return Message(data, to, true); }
  WorkPtr Recv(const TensorView& data, int32_t from) override { return Message(data, from, false); }
  WorkPtr Barrier() override { return Issue({.verb = Verb::kBarrier}); }

  void GroupBegin() override {
    OMNI_CHECK(grouped_ == nullptr);
    grouped_ = std::make_shared<Ticket>();
  }

  WorkPtr GroupEnd() override {
    OMNI_CHECK(grouped_ != nullptr);
    return IssueTicket(std::exchange(grouped_, nullptr));
  }

  void Abort(absl::string_view reason) override { queue_->Fail(absl::AbortedError(reason)); }
  void SetActivity(absl::string_view what) override { links_->SetActivity(what); }
  void FlushActivity() override { links_->FlushActivity(); }
  std::shared_ptr<Progress> progress() const { return links_->progress(); }
  std::vector<std::string> RecentCalls() const override {
    std::vector<std::string> lines;
    for (LoggedCall& call : queue_->recent()) lines.push_back(std::move(call.text));
    return lines;
  }
  std::vector<std::string> FaultReport() const override { return links_->FaultReport(); }

 private:
  WorkPtr Message(const TensorView& data, int32_t peer, bool sends) {
    CheckDense(data);
    OMNI_CHECK(peer >= 0 && peer < size());
    OMNI_CHECK(peer != rank_ || grouped_ != nullptr);
    return Issue(
        {.verb = Verb::kMessage, .input = data, .output = data, .peer = peer, .sends = sends});
  }

  WorkPtr Issue(Call call) {
    if (grouped_ != nullptr) {
      grouped_->calls.push_back(std::move(call));
      return std::make_unique<QueuedWork>(queue_, grouped_);
    }
    auto ticket = std::make_shared<Ticket>();
    ticket->calls.push_back(std::move(call));
    return IssueTicket(std::move(ticket));
  }

  WorkPtr IssueTicket(std::shared_ptr<Ticket> ticket) {
    queue_->Issue(ticket, /*input_ready=*/input_stream_ == nullptr);
    if (input_stream_ != nullptr) {
      input_stream_->RunOnHost([queue = queue_, ticket] { queue->InputReady(ticket); });
    }
    return std::make_unique<QueuedWork>(queue_, std::move(ticket));
  }

  // `part` is this rank's own place in `whole`, or elsewhere altogether.
  void CheckOwnPlace(const TensorView& whole, const TensorView& part,
                     absl::Span<const int64_t> counts) const {
    const int64_t begin = Sum(counts.subspan(0, rank_)) * SizeOf(whole.dtype);
    const auto* data = static_cast<const uint8_t*>(whole.data);
    const auto* part_data = static_cast<const uint8_t*>(part.data);
    OMNI_CHECK(part_data == data + begin ||
               !Overlap(data, whole.num_bytes(), part_data, part.num_bytes()));
  }

  const std::shared_ptr<PeerLinks> links_;           // shared: all groups of this rank
  const std::shared_ptr<TransportFactory> factory_;  // likewise
  const uint64_t channel_;
  const std::vector<int32_t> members_;
  const int32_t rank_;
  const std::string name_;
  const CommOptions options_;
  const std::shared_ptr<CallQueue> queue_;  // shared: with unfinished work
  Stream* input_stream_ = nullptr;
  std::shared_ptr<Ticket> grouped_;  // between GroupBegin and GroupEnd
  int64_t num_splits_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> MakeWorld(std::shared_ptr<PeerLinks> links,
                                                        std::shared_ptr<TransportFactory> factory,
                                                        const CommOptions& options) {
  constexpr uint64_t kWorldChannel = 0;
  std::vector<int32_t> members(links->size());
  std::iota(members.begin(), members.end(), 0);
  const int32_t rank = links->rank();
  OMNI_ASSIGN_OR_RETURN(auto transport,
                        factory->Make(*links, kWorldChannel, members, rank, options));
  return std::make_unique<EngineCommunicator>(std::move(links), std::move(factory), kWorldChannel,
                                              std::move(members), rank, options.name, options,
                                              std::move(transport));
}

}  // namespace omni::comm

namespace omni {

std::shared_ptr<Progress> ProgressOf(Communicator& comm) {
  const auto* engine = dynamic_cast<comm::EngineCommunicator*>(&Unstaged(comm));
  return engine == nullptr ? std::make_shared<Progress>() : engine->progress();
}

}  // namespace omni
