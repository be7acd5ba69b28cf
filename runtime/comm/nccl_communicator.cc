#include "runtime/comm/nccl_communicator.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "runtime/base/check.h"
#include "runtime/base/process.h"
#include "runtime/base/status.h"
#include "runtime/base/working_clock.h"
#include "runtime/comm/host_staged.h"
#include "runtime/device/cuda_device/cuda_device.h"

namespace omni {
namespace {

constexpr absl::Duration kLook = absl::Milliseconds(20);  // of the watchdog
constexpr absl::Duration kPoll = absl::Microseconds(50);  // of a host that waits
constexpr size_t kRecentCalls = 16;

struct Outstanding {
  std::shared_ptr<Event> done;
  std::string text;
  absl::Duration issued;  // on the working clock
};

class Group;

// What all communicators of a rank's world share: one fate, one watchdog.
class World {
 public:
  World(Communicator* control, Device* device, const NcclApi& api, const NcclOptions& options)
      : control(*control), device(*device), api(api), options(options), watchdog_([this] {
          NameThread("nccl watchdog");
          Watch();
        }) {}
  ~World() {
    {
      const std::lock_guard lock(mutex);
      is_over_ = true;
    }
    changed_.notify_all();
    watchdog_.join();
  }

  Communicator& control;
  Device& device;
  const NcclApi& api;
  const NcclOptions options;
  std::mutex mutex;  // of all groups' handles and calls: an abort meets no call of its communicator
  std::set<Group*> groups;

  absl::Status failure() const {
    const std::lock_guard lock(failure_mutex_);
    return failure_;
  }
  // failure(), after a look: what NCCL gave up ends as if it were done.
  absl::Status Check();
  // The first reason stays. Ends what is on all streams of the world's communicators.
  void Fail(const absl::Status& why);

 private:
  void Watch();
  absl::Status Look();  // under `mutex`: why it is over, or OK

  mutable std::mutex failure_mutex_;
  absl::Status failure_;
  bool is_over_ = false;
  std::condition_variable changed_;
  std::thread watchdog_;
};

// What several works may share: those of a group.
struct IssuedCall {
  bool is_issued = false;
  std::shared_ptr<Event> done;  // null: it failed before it was on the stream
  std::string text;
};

class NcclWork final : public Work {
 public:
  NcclWork(std::shared_ptr<World> world, std::shared_ptr<const IssuedCall> call)
      : world_(std::move(world)), call_(std::move(call)) {}

  void Wait(Stream& stream) override {
    OMNI_CHECK(call_->is_issued);
    if (call_->done != nullptr) stream.Wait(call_->done);
  }
  absl::Status WaitHost(absl::Duration limit) override {
    const absl::Duration end = WorkingClock::OfProcess().Now() + limit;
    while (!IsDone()) {
      if (WorkingClock::OfProcess().Now() > end) {
        world_->Fail(absl::DeadlineExceededError(
            absl::StrCat(call_->text, " has not ended in ", absl::FormatDuration(limit))));
      }
      absl::SleepFor(kPoll);
    }
    return world_->Check();
  }
  bool IsDone() const override {
    if (!world_->failure().ok()) return true;
    return call_->is_issued && (call_->done == nullptr || call_->done->is_reached());
  }

 private:
  const std::shared_ptr<World> world_;
  const std::shared_ptr<const IssuedCall> call_;
};

NcclReduction ReductionOf(ReduceOp op) {
  switch (op) {
    case ReduceOp::kMax:
      return NcclReduction::kMax;
    case ReduceOp::kMin:
      return NcclReduction::kMin;
    case ReduceOp::kSum:
      break;
  }
  return NcclReduction::kSum;
}

bool AreEqual(absl::Span<const int64_t> counts) {
  return std::adjacent_find(counts.begin(), counts.end(), std::not_equal_to<>()) == counts.end();
}

std::byte* At(const TensorView& view, int64_t element) {
  return static_cast<std::byte*>(view.data) + element * static_cast<int64_t>(SizeOf(view.dtype));
}

// One communicator. Host views and what is no data goes to its control.
class Group final : public Communicator {
 public:
  Group(std::shared_ptr<World> world, Communicator* control, std::unique_ptr<Communicator> owned,
        std::string name)
      : world_(std::move(world)),
        owned_(std::move(owned)),
        control_(*control),
        name_(std::move(name)),
        stream_(world_->device.NewStream()) {}
  ~Group() override {
    const std::lock_guard lock(world_->mutex);
    world_->groups.erase(this);
    if (comm_ == nullptr) return;
    if (std::all_of(outstanding_.begin(), outstanding_.end(),
                    [](const Outstanding& call) { return call.done->is_reached(); })) {
      world_->api.destroy(comm_);
    } else {
      world_->api.abort(comm_);
    }
  }

  absl::Status Connect() {
    std::vector<uint8_t> id(kNcclIdBytes);
    absl::Status own;
    if (rank() == 0) own = Named(world_->api.new_id(id.data()), "an id");
    const TensorView view =
        TensorView::Dense(id.data(), DType::kUInt8, DeviceKind::kCpu, {kNcclIdBytes});
    OMNI_RETURN_IF_ERROR(control_.Broadcast(view, 0)->WaitHost(world_->options.connect));
    void* comm = nullptr;
    own.Update(Named(world_->api.init(&comm, size(), id.data(), rank()), "joining"));
    const absl::Duration end = WorkingClock::OfProcess().Now() + world_->options.connect;
    while (own.ok()) {
      const int32_t state = world_->api.state(comm);
      if (state == 0) break;
      own = Named(std::min(state, 0), "joining");
      own.Update(control_.status());
      if (own.ok() && WorkingClock::OfProcess().Now() > end) {
        own = absl::DeadlineExceededError(
            absl::StrCat("NCCL, group ", name_, ": not all ranks have come in ",
                         absl::FormatDuration(world_->options.connect)));
      }
      absl::SleepFor(kPoll);
    }
    // All or none: a rank that has joined would wait for those that have not.
    std::vector<int32_t> failed = {own.ok() ? 0 : 1};
    const TensorView any =
        TensorView::Dense(failed.data(), DType::kInt32, DeviceKind::kCpu, {int64_t{1}});
    own.Update(control_.AllReduce(any, ReduceOp::kMax)->WaitHost(world_->options.connect));
    if (own.ok() && failed[0] != 0) {
      own = absl::FailedPreconditionError(
          absl::StrCat("NCCL, group ", name_, ": another rank could not join"));
    }
    if (!own.ok()) {
      if (comm != nullptr) world_->api.abort(comm);
      return own;
    }
    const std::lock_guard lock(world_->mutex);
    comm_ = comm;
    world_->groups.insert(this);
    return absl::OkStatus();
  }

  Communicator& control() const { return control_; }
  int32_t rank() const override { return control_.rank(); }
  int32_t size() const override { return control_.size(); }
  int64_t generation() const override { return control_.generation(); }
  absl::string_view engine() const override { return "nccl"; }
  absl::Status status() const override {
    const absl::Status failure = world_->Check();
    return failure.ok() ? control_.status() : failure;
  }
  void SetInputStream(Stream* stream) override {
    input_stream_ = stream;
    control_.SetInputStream(stream);
  }

  absl::StatusOr<std::unique_ptr<Communicator>> Split(absl::Span<const int32_t> ranks,
                                                      absl::string_view channel) override {
    OMNI_ASSIGN_OR_RETURN(auto control, control_.Split(ranks, channel));
    if (control == nullptr) return nullptr;
    Communicator* const raw = control.get();
    auto group =
        std::make_unique<Group>(world_, raw, std::move(control), absl::StrCat(name_, "/", channel));
    OMNI_RETURN_IF_ERROR(group->Connect());
    group->input_stream_ = input_stream_;
    return group;
  }

  WorkPtr AllReduce(const TensorView& data, ReduceOp op) override {
    if (IsHostMemory(data.device)) return control_.AllReduce(data, op);
    return Issue(absl::StrCat("all_reduce ", data.DebugString()), [=, this] {
      return api().all_reduce(data.data, data.data, data.num_elements(), data.dtype,
                              ReductionOf(op), comm_, native());
    });
  }

  WorkPtr ReduceScatter(const TensorView& input, const TensorView& output,
                        absl::Span<const int64_t> counts, ReduceOp op) override {
    if (IsHostMemory(input.device)) return control_.ReduceScatter(input, output, counts, op);
    OMNI_CHECK_EQ(static_cast<int32_t>(counts.size()), size());
    OMNI_CHECK_EQ(output.num_elements(), counts[rank()]);
    const std::string text = absl::StrCat("reduce_scatter ", input.DebugString());
    if (AreEqual(counts)) {
      return Issue(text, [=, this] {
        return api().reduce_scatter(input.data, output.data, counts[0], input.dtype,
                                    ReductionOf(op), comm_, native());
      });
    }
    return Issue(text, [=, this] {
      return Together(
          [&](int32_t root, int64_t first) {
            return api().reduce(At(input, first), output.data, counts[root], input.dtype,
                                ReductionOf(op), root, comm_, native());
          },
          counts);
    });
  }

  WorkPtr AllGather(const TensorView& input, const TensorView& output,
                    absl::Span<const int64_t> counts) override {
    if (IsHostMemory(input.device)) return control_.AllGather(input, output, counts);
    OMNI_CHECK_EQ(static_cast<int32_t>(counts.size()), size());
    OMNI_CHECK_EQ(input.num_elements(), counts[rank()]);
    const std::string text = absl::StrCat("all_gather ", output.DebugString());
    if (AreEqual(counts)) {
      return Issue(text, [=, this] {
        return api().all_gather(input.data, output.data, counts[0], input.dtype, comm_, native());
      });
    }
    return Issue(text, [=, this] {
      return Together(
          [&](int32_t root, int64_t first) {
            return api().broadcast(input.data, At(output, first), counts[root], input.dtype, root,
                                   comm_, native());
          },
          counts);
    });
  }

  WorkPtr AllToAll(const TensorView& input, absl::Span<const int64_t> send_counts,
                   const TensorView& output, absl::Span<const int64_t> recv_counts) override {
    if (IsHostMemory(input.device)) {
      return control_.AllToAll(input, send_counts, output, recv_counts);
    }
    OMNI_CHECK_EQ(static_cast<int32_t>(send_counts.size()), size());
    OMNI_CHECK_EQ(static_cast<int32_t>(recv_counts.size()), size());
    return Issue(absl::StrCat("all_to_all ", input.DebugString()), [=, this] {
      int32_t error = api().group_begin();
      int64_t sent = 0, received = 0;
      for (int32_t peer = 0; peer < size() && error == 0; ++peer) {
        if (send_counts[peer] > 0) {
          error =
              api().send(At(input, sent), send_counts[peer], input.dtype, peer, comm_, native());
        }
        if (recv_counts[peer] > 0 && error == 0) {
          error = api().recv(At(output, received), recv_counts[peer], output.dtype, peer, comm_,
                             native());
        }
        sent += send_counts[peer];
        received += recv_counts[peer];
      }
      const int32_t ended = api().group_end();
      return error != 0 ? error : ended;
    });
  }

  WorkPtr Broadcast(const TensorView& data, int32_t root) override {
    if (IsHostMemory(data.device)) return control_.Broadcast(data, root);
    return Issue(absl::StrCat("broadcast ", data.DebugString()), [=, this] {
      return api().broadcast(data.data, data.data, data.num_elements(), data.dtype, root, comm_,
                             native());
    });
  }

  WorkPtr Send(const TensorView& data, int32_t to) override {
    if (IsHostMemory(data.device)) return control_.Send(data, to);
    return Message(absl::StrCat("send ", data.DebugString(), " to ", to), [=, this] {
      return api().send(data.data, data.num_elements(), data.dtype, to, comm_, native());
    });
  }
  WorkPtr Recv(const TensorView& data, int32_t from) override {
    if (IsHostMemory(data.device)) return control_.Recv(data, from);
    return Message(absl::StrCat("recv ", data.DebugString(), " from ", from), [=, this] {
      return api().recv(data.data, data.num_elements(), data.dtype, from, comm_, native());
    });
  }
  WorkPtr Barrier() override { return control_.Barrier(); }

  // Collectives are issued at once, in their order; the messages go at the end.
  void GroupBegin() override {
    OMNI_CHECK(grouped_ == nullptr);
    grouped_ = std::make_shared<IssuedCall>();
  }
  WorkPtr GroupEnd() override {
    OMNI_CHECK(grouped_ != nullptr);
    const std::vector<std::function<int32_t()>> calls = std::exchange(messages_, {});
    const std::shared_ptr<IssuedCall> group = std::exchange(grouped_, nullptr);
    return IssueAs(group, absl::StrCat("group of ", calls.size(), " messages"), [&] {
      if (calls.empty()) return 0;
      int32_t error = api().group_begin();
      for (const auto& call : calls) {
        if (error == 0) error = call();
      }
      const int32_t ended = api().group_end();
      return error != 0 ? error : ended;
    });
  }

  void Abort(absl::string_view reason) override { world_->Fail(absl::AbortedError(reason)); }
  void SetActivity(absl::string_view what) override { control_.SetActivity(what); }
  void FlushActivity() override { control_.FlushActivity(); }

  std::vector<std::string> RecentCalls() const override {
    const std::lock_guard lock(world_->mutex);
    return {recent_.begin(), recent_.end()};
  }
  std::vector<std::string> FaultReport() const override {
    std::vector<std::string> lines = control_.FaultReport();
    for (std::string& line : RecentCalls()) lines.push_back(std::move(line));
    return lines;
  }

 private:
  friend class World;

  const NcclApi& api() const { return world_->api; }
  void* native() const { return stream_->native_handle(); }
  absl::Status Named(int32_t error, absl::string_view what) const {
    if (error == 0) return absl::OkStatus();
    return absl::FailedPreconditionError(absl::StrCat(
        "NCCL, group ", name_, ", rank ", rank(), ", ", what, ": ", world_->api.describe(error)));
  }

  // A call for each rank's part, in one group.
  template <typename Body>
  int32_t Together(const Body& body, absl::Span<const int64_t> counts) {
    int32_t error = api().group_begin();
    int64_t first = 0;
    for (int32_t root = 0; root < size(); ++root) {
      if (counts[root] > 0 && error == 0) error = body(root, first);
      first += counts[root];
    }
    const int32_t ended = api().group_end();
    return error != 0 ? error : ended;
  }

  WorkPtr Message(const std::string& text, std::function<int32_t()> call) {
    if (grouped_ == nullptr) return Issue(text, call);
    messages_.push_back(std::move(call));
    return std::make_unique<NcclWork>(world_, grouped_);
  }

  // A call of a non-blocking communicator is on its stream only once the communicator says so; the
  // watchdog may abort it meanwhile.
  int32_t AwaitIssued(std::unique_lock<std::mutex>& lock) {
    while (comm_ != nullptr) {
      const int32_t state = api().state(comm_);
      if (state <= 0) return state;
      lock.unlock();
      absl::SleepFor(kPoll);
      lock.lock();
    }
    return 0;
  }

  template <typename Call>
  WorkPtr Issue(const std::string& text, const Call& call) {
    return IssueAs(std::make_shared<IssuedCall>(), text, call);
  }
  template <typename Call>
  WorkPtr IssueAs(const std::shared_ptr<IssuedCall>& issued, const std::string& text,
                  const Call& call) {
    issued->text =
        absl::StrCat("#", ++num_calls_, " group=", name_, " ", text, " on rank ", rank());
    issued->is_issued = true;
    int32_t error = 0;
    {
      std::unique_lock lock(world_->mutex);
      if (comm_ == nullptr) return std::make_unique<NcclWork>(world_, issued);
      if (input_stream_ != nullptr) stream_->Wait(input_stream_->Record());
      error = call();
      if (error == 0) error = AwaitIssued(lock);
      if (comm_ == nullptr) return std::make_unique<NcclWork>(world_, issued);
      if (error == 0) issued->done = stream_->Record();
      while (!outstanding_.empty() && outstanding_.front().done->is_reached()) {
        outstanding_.pop_front();
      }
      if (issued->done != nullptr) {
        outstanding_.push_back({issued->done, issued->text, WorkingClock::OfProcess().Now()});
      }
      recent_.push_back(issued->text);
      if (recent_.size() > kRecentCalls) recent_.pop_front();
    }
    // Internal: maybe another rank's doing, who says why.
    if (error != 0) world_->Fail(absl::InternalError(Named(error, issued->text).message()));
    return std::make_unique<NcclWork>(world_, issued);
  }

  const std::shared_ptr<World> world_;  // shared: the groups split from one, and their works
  const std::unique_ptr<Communicator> owned_;
  Communicator& control_;
  const std::string name_;
  const std::unique_ptr<Stream> stream_;
  Stream* input_stream_ = nullptr;
  void* comm_ = nullptr;                 // null: not connected, or aborted
  std::shared_ptr<IssuedCall> grouped_;  // between GroupBegin and GroupEnd
  std::vector<std::function<int32_t()>> messages_;
  int64_t num_calls_ = 0;
  std::deque<Outstanding> outstanding_;  // the oldest first
  std::deque<std::string> recent_;
};

void World::Fail(const absl::Status& why) {
  // Who made NCCL fail has said why, or will; NCCL has no words for it.
  for (int i = 0; i < 50 && absl::IsInternal(why) && control.status().ok(); ++i) {
    absl::SleepFor(kLook);
  }
  {
    const std::lock_guard lock(failure_mutex_);
    if (!failure_.ok()) return;
    // Where the control has failed already, its reason is the one that all ranks have.
    const absl::Status known = control.status();
    failure_ = known.ok() ? why : known;
  }
  control.Abort(why.message());
  const std::lock_guard lock(mutex);
  for (Group* group : groups) {
    if (group->comm_ != nullptr) api.abort(std::exchange(group->comm_, nullptr));
  }
}

absl::Status World::Look() {
  OMNI_RETURN_IF_ERROR(control.status());
  const absl::Duration now = WorkingClock::OfProcess().Now();
  for (Group* group : groups) {
    if (group->comm_ == nullptr) continue;
    const int32_t state = api.state(group->comm_);
    if (state < 0) {
      return absl::InternalError(absl::StrCat("NCCL, group ", group->name_, ", rank ",
                                              group->rank(), ": ", api.describe(state)));
    }
    for (const Outstanding& call : group->outstanding_) {
      if (call.done->is_reached()) continue;
      if (now - call.issued > options.stall) {
        return absl::DeadlineExceededError(
            absl::StrCat(call.text, " has not ended in ", absl::FormatDuration(options.stall)));
      }
      break;
    }
  }
  return absl::OkStatus();
}

absl::Status World::Check() {
  absl::Status found;
  {
    const std::lock_guard lock(mutex);
    found = Look();
  }
  if (!found.ok()) Fail(found);
  return failure();
}

void World::Watch() {
  for (;;) {
    absl::Status found;
    {
      std::unique_lock lock(mutex);
      changed_.wait_for(lock, absl::ToChronoMilliseconds(kLook), [this] { return is_over_; });
      if (is_over_) return;
      found = Look();
    }
    if (!found.ok()) Fail(found);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> ConnectNccl(Communicator* control, Device* device,
                                                          const NcclOptions& options) {
  const NcclApi* const api = NcclOf(*device);
  if (api == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat(DeviceName(device->kind()), ": the plugin was built without NCCL"));
  }
  auto world = std::make_shared<World>(control, device, *api, options);
  auto group = std::make_unique<Group>(std::move(world), control, nullptr, "world");
  OMNI_RETURN_IF_ERROR(group->Connect());
  return group;
}

}  // namespace omni
