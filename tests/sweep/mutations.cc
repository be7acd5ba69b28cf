#include "tests/sweep/mutations.h"

#include <algorithm>
#include <deque>
#include <functional>
#include <utility>

#include "runtime/base/check.h"

namespace omni::test {
namespace {

// A call that is made later: at the latest when somebody waits for it.
class LateWork : public Work {
 public:
  explicit LateWork(std::function<WorkPtr()> call) : call_(std::move(call)) {}

  void Issue() {
    if (work_ == nullptr) work_ = call_();
  }
  void Wait(Stream& stream) override {
    Issue();
    work_->Wait(stream);
  }
  absl::Status WaitHost(absl::Duration deadline) override {
    Issue();
    return work_->WaitHost(deadline);
  }
  bool IsDone() const override { return work_ != nullptr && work_->IsDone(); }

 private:
  const std::function<WorkPtr()> call_;
  WorkPtr work_;
};

// The caller's handle of a LateWork.
class SharedWork : public Work {
 public:
  explicit SharedWork(std::shared_ptr<Work> work) : work_(std::move(work)) {}

  void Wait(Stream& stream) override { work_->Wait(stream); }
  absl::Status WaitHost(absl::Duration deadline) override { return work_->WaitHost(deadline); }
  bool IsDone() const override { return work_->IsDone(); }

 private:
  const std::shared_ptr<Work> work_;
};

// Passes everything on, but for what the mutation changes on its channel.
class MutatedCommunicator : public Communicator {
 public:
  MutatedCommunicator(Communicator& inner, std::unique_ptr<Communicator> owned, bool is_faulty,
                      const Mutation& mutation, std::atomic<int64_t>* hits)
      : owned_(std::move(owned)),
        inner_(inner),
        is_faulty_(is_faulty),
        mutation_(mutation),
        hits_(hits) {}

  int32_t rank() const override { return inner_.rank(); }
  int32_t size() const override { return inner_.size(); }
  int64_t generation() const override { return inner_.generation(); }
  absl::string_view engine() const override { return inner_.engine(); }
  absl::Status status() const override { return inner_.status(); }
  void SetInputStream(Stream* stream) override { inner_.SetInputStream(stream); }

  absl::StatusOr<std::unique_ptr<Communicator>> Split(absl::Span<const int32_t> ranks,
                                                      absl::string_view channel) override {
    auto split = inner_.Split(ranks, channel);
    if (!split.ok() || *split == nullptr) return split;
    Communicator& made = **split;
    return std::make_unique<MutatedCommunicator>(made, *std::move(split),
                                                 channel == mutation_.channel, mutation_, hits_);
  }

  WorkPtr AllReduce(const TensorView& data, ReduceOp op) override {
    if (Applies(Fault::kDrop) && is_last()) Scale(0.0, data, data);
    if (Applies(Fault::kScale)) Scale(1.0 / size(), data, data);
    return inner_.AllReduce(data, op);
  }
  WorkPtr ReduceScatter(const TensorView& input, const TensorView& output,
                        absl::Span<const int64_t> counts, ReduceOp op) override {
    TensorView given = input;
    if (Applies(Fault::kDrop) && is_last()) given = Scaled(0.0, input);
    if (Applies(Fault::kScale)) given = Scaled(1.0 / size(), input);
    const std::vector<int64_t> kept(counts.begin(), counts.end());
    const auto call = [this, given, output, kept, op] {
      return inner_.ReduceScatter(given, output, kept, op);
    };
    if (!Applies(Fault::kSwap) || !is_last()) return call();
    if (late_ != nullptr) {
      WorkPtr work = call();
      late_->Issue();
      late_ = nullptr;
      Hit();
      return work;
    }
    late_ = std::make_shared<LateWork>(call);
    return std::make_unique<SharedWork>(late_);
  }
  WorkPtr AllGather(const TensorView& input, const TensorView& output,
                    absl::Span<const int64_t> counts) override {
    return inner_.AllGather(MaybeRotated(input), output, counts);
  }
  WorkPtr AllToAll(const TensorView& input, absl::Span<const int64_t> send_counts,
                   const TensorView& output, absl::Span<const int64_t> recv_counts) override {
    return inner_.AllToAll(MaybeRotated(input), send_counts, output, recv_counts);
  }
  WorkPtr Broadcast(const TensorView& data, int32_t root) override {
    return inner_.Broadcast(data, root);
  }
  WorkPtr Send(const TensorView& data, int32_t to) override {
    return inner_.Send(MaybeRotated(data), to);
  }
  WorkPtr Recv(const TensorView& data, int32_t from) override { return inner_.Recv(data, from); }
  WorkPtr Barrier() override { return inner_.Barrier(); }
  void GroupBegin() override { inner_.GroupBegin(); }
  WorkPtr GroupEnd() override { return inner_.GroupEnd(); }
  void Abort(absl::string_view reason) override { inner_.Abort(reason); }
  void SetActivity(absl::string_view what) override { inner_.SetActivity(what); }
  void FlushActivity() override { inner_.FlushActivity(); }
  std::vector<std::string> RecentCalls() const override { return inner_.RecentCalls(); }
  std::vector<std::string> FaultReport() const override { return inner_.FaultReport(); }

 private:
  bool Applies(Fault fault) const { return is_faulty_ && mutation_.fault == fault; }
  bool is_last() const { return rank() == size() - 1; }
  void Hit() { ++*hits_; }

  // Memory for a changed input, as long as this lives: nobody says when a call has read it.
  TensorView Copy(const TensorView& view) {
    copies_.emplace_back(view.num_elements());
    TensorView copy = view;
    copy.data = copies_.back().data();
    return copy;
  }
  void Scale(double factor, const TensorView& from, const TensorView& to) {
    OMNI_CHECK(from.dtype == DType::kFloat64);
    const auto* in = static_cast<const double*>(from.data);
    auto* out = static_cast<double*>(to.data);
    const int64_t count = from.num_elements();
    for (int64_t i = 0; i < count; ++i) {
      if (in[i] != 0) Hit();
      out[i] = factor * in[i];
    }
  }
  TensorView Scaled(double factor, const TensorView& input) {
    const TensorView copy = Copy(input);
    Scale(factor, input, copy);
    return copy;
  }
  // Row i where row i + 1 belongs. Of two rows or more.
  TensorView MaybeRotated(const TensorView& input) {
    if (!Applies(Fault::kRotate) || input.dtype != DType::kFloat64 || input.num_elements() == 0 ||
        input.size(0) < 2) {
      return input;
    }
    const TensorView copy = Copy(input);
    const auto* in = static_cast<const double*>(input.data);
    const int64_t count = input.num_elements(), row = count / input.size(0);
    std::rotate_copy(in, in + count - row, in + count, static_cast<double*>(copy.data));
    Hit();
    return copy;
  }

  const std::unique_ptr<Communicator> owned_;
  Communicator& inner_;
  const bool is_faulty_;
  const Mutation& mutation_;
  std::atomic<int64_t>* const hits_;
  std::shared_ptr<LateWork> late_;
  std::deque<std::vector<double>> copies_;
};

}  // namespace

const std::vector<Mutation>& Mutations() {
  static const std::vector<Mutation> mutations = {
      {"swapped_reductions", "two reductions of gradients in the other order", "stage_gradients",
       Fault::kSwap, "layers=4 vision=none audio=none",
       "workers: 2, chunks_per_rank: 2, schedule: interleaved"},
      {"dropped_gradient", "the gradients of one replica", "stage_gradients", Fault::kDrop, "",
       "workers: 2"},
      {"dropped_tensor_gradient", "of cut matrices, those of one replica", "tensor_gradients",
       Fault::kDrop, "", "workers: 4, tensor: 2"},
      {"dropped_expert_gradient", "of experts, those of one replica", "expert_gradients",
       Fault::kDrop, "moe=top1", "workers: 4, expert: 2"},
      {"dropped_tied_gradient", "the head's gradient of a tied embedding", "tied_gradients",
       Fault::kDrop, "tied=yes", "workers: 2, pipeline: 2"},
      {"dropped_encoder_gradient", "an encoder's gradients of one stage", "encoder_gradients",
       Fault::kDrop, "", "workers: 2, pipeline: 2"},
      {"dropped_kv_gradient", "the gradients of one copy of a KV head", "kv_copies", Fault::kDrop,
       "heads=4/1", "workers: 2, tensor: 2"},
      {"mean_gradient", "gradients divided by the replicas", "stage_gradients", Fault::kScale, "",
       "workers: 2"},
      {"mean_expert_gradient", "experts' gradients divided by the replicas", "expert_gradients",
       Fault::kScale, "moe=top1", "workers: 4, expert: 2"},
      {"shifted_rows", "encoded rows one token off", "vision_rows", Fault::kRotate, "",
       "workers: 2, pipeline: 2"},
      {"shifted_row_gradients", "their gradients one row off", "vision_row_grads", Fault::kRotate,
       "", "workers: 2, pipeline: 2"},
      {"shifted_hidden", "a stage's input one token off", "hidden", Fault::kRotate, "",
       "workers: 2, pipeline: 2"},
      {"shifted_hidden_gradient", "a stage's output gradient one token off", "hidden_grads",
       Fault::kRotate, "", "workers: 2, pipeline: 2"},
      {"shifted_tensor_rows", "a tensor rank's rows one token off", "tensor", Fault::kRotate, "",
       "workers: 2, tensor: 2"},
      {"shifted_expert_rows", "an expert's rows one token off", "expert", Fault::kRotate,
       "moe=top1", "workers: 2, expert: 2"},
      {"shifted_ulysses_rows", "rows on their way to heads one off", "ulysses", Fault::kRotate, "",
       "workers: 2, context: {degree: 2, kind: ulysses}"},
      {"shifted_shard_rows", "rows of a split sample on their way to heads one off",
       "vision_ulysses", Fault::kRotate, "",
       "workers: 2, encoders: {vision: {sequence: 2, threshold: 0}}"},
  };
  return mutations;
}

const Mutation* FindMutation(const std::string& name) {
  for (const Mutation& mutation : Mutations()) {
    if (name == mutation.name) return &mutation;
  }
  return nullptr;
}

WrapCommunicator Mutate(const Mutation& mutation, std::atomic<int64_t>* hits) {
  return [&mutation, hits](Communicator& comm) {
    return std::make_unique<MutatedCommunicator>(comm, nullptr, /*is_faulty=*/false, mutation,
                                                 hits);
  };
}

}  // namespace omni::test
