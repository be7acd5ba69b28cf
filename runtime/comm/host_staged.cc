#include "runtime/comm/host_staged.h"

#include <deque>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace omni {
namespace {

struct Copy {
  TensorView host, device;
};

// What the calls of one Work have on the host, and what of it goes back.
struct Staged {
  std::vector<std::shared_ptr<std::byte>> buffers;
  std::vector<Copy> results;
  WorkPtr inner;                  // null before the group's end
  std::shared_ptr<Event> copied;  // null: not yet brought back
};

class StagedWork final : public Work {
 public:
  StagedWork(Device* device, Stream* input_stream, std::shared_ptr<Staged> staged)
      : device_(*device), input_stream_(input_stream), staged_(std::move(staged)) {}

  void Wait(Stream& stream) override {
    OMNI_CHECK(staged_->inner != nullptr);
    if (staged_->copied != nullptr) return stream.Wait(staged_->copied);
    staged_->inner->Wait(stream);
    if (!staged_->results.empty()) BringBack(stream);
  }
  absl::Status WaitHost(absl::Duration deadline) override {
    OMNI_CHECK(staged_->inner != nullptr);
    OMNI_RETURN_IF_ERROR(staged_->inner->WaitHost(deadline));
    if (staged_->results.empty()) return absl::OkStatus();
    if (staged_->copied == nullptr) BringBack(*input_stream_);
    return input_stream_->Synchronize();
  }
  bool IsDone() const override { return staged_->inner != nullptr && staged_->inner->IsDone(); }

 private:
  void BringBack(Stream& stream) {
    for (const Copy& copy : staged_->results) {
      device_.CopyInLater(stream, copy.host.data, copy.device);
    }
    staged_->copied = stream.Record();
    stream.RunOnHost([buffers = staged_->buffers] {});  // held until they are read
  }

  Device& device_;
  Stream* const input_stream_;            // null: all is in host memory
  const std::shared_ptr<Staged> staged_;  // shared: the works of a group, and the communicator
};

class StagedCommunicator final : public Communicator {
 public:
  StagedCommunicator(Communicator* inner, std::unique_ptr<Communicator> owned, Device* device)
      : owned_(std::move(owned)), inner_(*inner), device_(*device) {}

  Communicator& inner() const { return inner_; }
  int32_t rank() const override { return inner_.rank(); }
  int32_t size() const override { return inner_.size(); }
  int64_t generation() const override { return inner_.generation(); }
  absl::string_view engine() const override { return inner_.engine(); }
  absl::Status status() const override { return inner_.status(); }
  void SetInputStream(Stream* stream) override {
    input_stream_ = stream;
    inner_.SetInputStream(stream);
  }

  absl::StatusOr<std::unique_ptr<Communicator>> Split(absl::Span<const int32_t> ranks,
                                                      absl::string_view channel) override {
    OMNI_ASSIGN_OR_RETURN(auto part, inner_.Split(ranks, channel));
    if (part == nullptr) return nullptr;
    Communicator* const raw = part.get();
    auto result = std::make_unique<StagedCommunicator>(raw, std::move(part), &device_);
    result->input_stream_ = input_stream_;
    return result;
  }

  WorkPtr AllReduce(const TensorView& data, ReduceOp op) override {
    const TensorView host = OutAndBack(data);
    return Issued(inner_.AllReduce(host, op));
  }
  WorkPtr ReduceScatter(const TensorView& input, const TensorView& output,
                        absl::Span<const int64_t> counts, ReduceOp op) override {
    const TensorView in = Out(input), out = Back(output);
    return Issued(inner_.ReduceScatter(in, out, counts, op));
  }
  WorkPtr AllGather(const TensorView& input, const TensorView& output,
                    absl::Span<const int64_t> counts) override {
    const TensorView in = Out(input), out = Back(output);
    return Issued(inner_.AllGather(in, out, counts));
  }
  WorkPtr AllToAll(const TensorView& input, absl::Span<const int64_t> send_counts,
                   const TensorView& output, absl::Span<const int64_t> recv_counts) override {
    const TensorView in = Out(input), out = Back(output);
    return Issued(inner_.AllToAll(in, send_counts, out, recv_counts));
  }
  WorkPtr Broadcast(const TensorView& data, int32_t root) override {
    const TensorView host = root == rank() ? Out(data) : Back(data);
    return Issued(inner_.Broadcast(host, root));
  }
  WorkPtr Send(const TensorView& data, int32_t to) override {
    return Issued(inner_.Send(Out(data), to));
  }
  WorkPtr Recv(const TensorView& data, int32_t from) override {
    return Issued(inner_.Recv(Back(data), from));
  }
  WorkPtr Barrier() override { return Issued(inner_.Barrier()); }

  void GroupBegin() override {
    inner_.GroupBegin();
    is_grouped_ = true;
  }
  WorkPtr GroupEnd() override {
    is_grouped_ = false;
    return Issued(inner_.GroupEnd());
  }

  void Abort(absl::string_view reason) override { inner_.Abort(reason); }
  void SetActivity(absl::string_view what) override { inner_.SetActivity(what); }
  void FlushActivity() override { inner_.FlushActivity(); }
  std::vector<std::string> RecentCalls() const override { return inner_.RecentCalls(); }
  std::vector<std::string> FaultReport() const override { return inner_.FaultReport(); }

 private:
  // Host memory in the place of a view; the view itself where it is the host's.
  TensorView Room(const TensorView& view) {
    std::shared_ptr<std::byte> buffer = device_.HostBuffer(view.num_bytes());
    const TensorView host =
        TensorView::Dense(buffer.get(), view.dtype, DeviceKind::kCpu, view.shape());
    next_->buffers.push_back(std::move(buffer));
    return host;
  }
  TensorView Out(const TensorView& view) {
    if (IsHostMemory(view.device)) return view;
    OMNI_CHECK(input_stream_ != nullptr);
    const TensorView host = Room(view);
    if (view.num_elements() > 0) device_.CopyOutLater(*input_stream_, view, host.data);
    return host;
  }
  TensorView Back(const TensorView& view) {
    if (IsHostMemory(view.device)) return view;
    const TensorView host = Room(view);
    if (view.num_elements() > 0) next_->results.push_back({host, view});
    return host;
  }
  TensorView OutAndBack(const TensorView& view) {
    if (IsHostMemory(view.device)) return view;
    const TensorView host = Out(view);
    if (view.num_elements() > 0) next_->results.push_back({host, view});
    return host;
  }

  // Calls between GroupBegin and GroupEnd share what is staged; the group's end is their work.
  WorkPtr Issued(WorkPtr inner) {
    // Those that nobody waits for any more have to stay until the engine has read them.
    while (!in_flight_.empty() && in_flight_.front()->inner->IsDone()) in_flight_.pop_front();
    const std::shared_ptr<Staged> staged = next_;
    if (!is_grouped_) {
      staged->inner = std::move(inner);
      in_flight_.push_back(staged);
      next_ = std::make_shared<Staged>();
    }
    return std::make_unique<StagedWork>(&device_, input_stream_, staged);
  }

  const std::unique_ptr<Communicator> owned_;  // null: somebody else's
  Communicator& inner_;
  Device& device_;
  Stream* input_stream_ = nullptr;
  bool is_grouped_ = false;
  std::shared_ptr<Staged> next_ = std::make_shared<Staged>();  // of the call being made
  std::deque<std::shared_ptr<Staged>> in_flight_;              // the oldest first
};

}  // namespace

std::unique_ptr<Communicator> StageOnHost(Communicator* inner, Device* device) {
  return std::make_unique<StagedCommunicator>(inner, nullptr, device);
}

Communicator& Unstaged(Communicator& comm) {
  const auto* staged = dynamic_cast<const StagedCommunicator*>(&comm);
  return staged == nullptr ? comm : staged->inner();
}

}  // namespace omni
