#include "scheduler/coordinator.h"

#include <grpcpp/grpcpp.h>
#include <grpcpp/server_posix.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "proto/omnitrain.grpc.pb.h"
#include "runtime/base/address.h"
#include "runtime/base/process.h"
#include "runtime/base/status.h"
#include "runtime/base/wait.h"
#include "scheduler/front_door.h"
#include "scheduler/worker_hosts.h"

namespace omni::scheduler {
namespace {

using Lock = std::unique_lock<std::mutex>;

// How long a worker whose connection was closed may take to be heard of again.
constexpr absl::Duration kReconnectTime = absl::Seconds(1);
// How long the cause of a failure may take to be heard of after what it caused.
constexpr std::chrono::seconds kCauseTime(2);
// Workers have a call pending as long as they live; who has none is no worker.
constexpr int kIdleMs = 60'000;

grpc::Status Refuse(grpc::StatusCode code, const std::string& message) {
  return grpc::Status(code, message);
}

omnitrain::Plan ToProto(const JobPlan& plan) {
  omnitrain::Plan proto;
  proto.set_num_workers(plan.options.num_workers);
  proto.set_num_lanes(plan.options.num_lanes);
  proto.set_comm_engine(plan.options.comm_engine);
  proto.set_device(plan.options.device);
  proto.set_threads_per_worker(plan.options.threads_per_worker);
  proto.set_reserved_bytes(plan.options.reserved_bytes);
  proto.set_deadline_s(plan.options.deadline_s);
  proto.set_dtype(plan.options.dtype);
  for (size_t rank = 0; rank < plan.lanes_of_rank.size(); ++rank) {
    auto* lanes = proto.add_lanes();
    lanes->set_rank(static_cast<int32_t>(rank));
    for (const int32_t lane : plan.lanes_of_rank[rank]) lanes->add_lanes(lane);
  }
  return proto;
}

}  // namespace

class Coordinator::Impl final
    : public omnitrain::Coordinator::WithCallbackMethod_Hold<omnitrain::Coordinator::Service> {
 public:
  Impl(const CoordinatorOptions& options, CoordinatorCallbacks callbacks)
      : options_(options),
        callbacks_(std::move(callbacks)),
        job_id_(absl::StrFormat("%x", absl::ToUnixNanos(absl::Now()))),
        start_(options.clock.Now()),
        workers_(options.plan.options.num_workers),
        hosts_(options.plan.options.num_workers) {}

  absl::Status Start() {
    auto door = FrontDoor::Open(options_.address);
    if (!door.ok()) {
      return Annotate(door.status(), absl::StrCat("coordinator address ", options_.address));
    }
    door_ = *std::move(door);
    grpc::ServerBuilder builder;
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, kIdleMs);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr) return absl::UnavailableError("gRPC can't start");
    door_->Start([this](int fd) { grpc::AddInsecureChannelFromFd(server_.get(), fd); });
    watchdog_ = std::thread([this] { Watch(); });
    return absl::OkStatus();
  }

  void Shutdown() {
    {
      const Lock lock(mutex_);
      ended_ = true;
      changed_.notify_all();
    }
    if (watchdog_.joinable()) watchdog_.join();
    door_.reset();
    EndHolds(-1);
    if (server_ != nullptr)
      server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(1));
    server_.reset();  // before what its calls use
    {
      const Lock lock(callback_mutex_);  // the last of them has left
    }
    const Lock lock(mutex_);
  }

  const std::string& address() const { return door_->address(); }
  const std::string& address_note() const { return door_->note(); }

  void RequestStop() {
    const Lock lock(mutex_);
    stop_ = true;
    changed_.notify_all();
  }

  void Fail(const std::string& reason, bool is_consequence) {
    const Lock lock(mutex_);
    FailLocked(absl::AbortedError(reason), is_consequence);
  }

  absl::Status Wait() {
    Lock lock(mutex_);
    // Without a limit: a job may train for months. The watchdog sees who is lost.
    while (true) {
      changed_.wait(lock, [&] { return !failure_.ok() || AllGone(); });
      changed_.wait_for(lock, kCauseTime, [&] { return !is_consequence_ || AllGone(); });
      if (!failure_.ok() || AllGone()) return failure_;  // else it was no failure after all
    }
  }

  void AwaitGoodbyes(absl::Duration limit) {
    Lock lock(mutex_);
    WaitFor(changed_, lock, {.limit = limit, .clock = options_.clock}, [&] {
      return std::all_of(workers_.begin(), workers_.end(), [&](const auto& worker) {
        return !worker.has_value() || worker->gone || worker->closed_at.has_value();
      });
    });
  }

  grpc::Status Register(grpc::ServerContext*, const omnitrain::RegisterRequest* request,
                        omnitrain::RegisterReply* reply) override {
    if (request->protocol_version() != kProtocolVersion) {
      return Refuse(grpc::StatusCode::FAILED_PRECONDITION,
                    absl::StrCat("this coordinator speaks protocol version ", kProtocolVersion,
                                 ", the worker on ", request->host(), " speaks ",
                                 request->protocol_version(), "; use the same build on all hosts"));
    }
    Lock lock(mutex_);
    const int32_t world = static_cast<int32_t>(workers_.size());
    int32_t rank = request->wanted_rank();
    // Its first answer was lost on the way.
    for (int32_t r = 0; r < world && request->instance() != 0; ++r) {
      if (!workers_[r].has_value() || workers_[r]->instance != request->instance()) continue;
      Answer(r, reply);
      return grpc::Status::OK;
    }
    if (rank >= world) {
      return Refuse(grpc::StatusCode::INVALID_ARGUMENT,
                    absl::StrCat("rank ", rank, " was asked for, the job has ", world, " workers"));
    }
    if (rank < 0) {
      for (rank = 0; rank < world && workers_[rank].has_value(); ++rank) continue;
    }
    if (rank >= world || workers_[rank].has_value()) {
      return Refuse(grpc::StatusCode::FAILED_PRECONDITION,
                    rank >= world ? absl::StrCat("all ", world, " workers have registered already")
                                  : absl::StrCat("rank ", rank, " is already taken by ",
                                                 workers_[rank]->host));
    }
    hosts_[rank] = WorkerHost{.name = request->host(),
                              .machine = request->machine(),
                              .comm_address = request->comm_address(),
                              .reached = request->reached()};
    const std::string& engine = options_.plan.options.comm_engine;
    if (auto status = CheckHosts(hosts_, engine, MachineIdentity()); !status.ok()) {
      FailLocked(status);
      return Refuse(grpc::StatusCode::INVALID_ARGUMENT, std::string(status.message()));
    }
    workers_[rank] = Worker{.host = request->host(),
                            .pid = request->pid(),
                            .instance = request->instance(),
                            .last_seen = options_.clock.Now()};
    Answer(rank, reply);
    const int32_t registered = NumRegistered();
    std::string over;  // where they are, once all have come
    if (const std::string hosts = DifferentHosts(hosts_); registered == world && !hosts.empty()) {
      over = absl::StrCat("workers on ", hosts, ": over ", ChooseEngine(hosts_, engine));
    }
    changed_.notify_all();
    lock.unlock();
    const Lock callback(callback_mutex_);
    if (callbacks_.on_register) callbacks_.on_register(registered, world);
    if (callbacks_.on_notice && !over.empty()) callbacks_.on_notice(0, "info", over);
    return grpc::Status::OK;
  }

  grpc::Status Rendezvous(grpc::ServerContext*, const omnitrain::RendezvousRequest* request,
                          omnitrain::RendezvousReply* reply) override {
    Lock lock(mutex_);
    if (auto status = Check(request->rank(), request->job_id()); !status.ok()) return status;
    const int32_t world = static_cast<int32_t>(workers_.size());
    // Held back a little instead of being asked a thousand times.
    changed_.wait_for(lock, std::chrono::milliseconds(200),
                      [&] { return NumRegistered() == world || !failure_.ok() || ended_; });
    if (!failure_.ok()) {
      return Refuse(grpc::StatusCode::ABORTED, std::string(failure_.message()));
    }
    reply->set_num_registered(NumRegistered());
    reply->set_ready(NumRegistered() == world);
    if (reply->ready()) {
      for (const auto& host : hosts_) {
        reply->add_comm_addresses(AddressFor(*hosts_[request->rank()], *host));
      }
      reply->set_comm_engine(ChooseEngine(hosts_, options_.plan.options.comm_engine));
    }
    return grpc::Status::OK;
  }

  grpc::Status Heartbeat(grpc::ServerContext*, const omnitrain::HeartbeatRequest* request,
                         omnitrain::HeartbeatReply* reply) override {
    const Lock lock(mutex_);
    if (auto status = Check(request->rank(), request->job_id()); !status.ok()) return status;
    workers_[request->rank()]->step = request->step();
    workers_[request->rank()]->phase = request->phase();
    reply->set_stop(stop_);
    if (!failure_.ok()) reply->set_abort_reason(std::string(failure_.message()));
    return grpc::Status::OK;
  }

  // Takes no thread while it is pending.
  grpc::ServerUnaryReactor* Hold(grpc::CallbackServerContext*,
                                 const omnitrain::HoldRequest* request,
                                 omnitrain::HoldReply*) override {
    auto* hold = new Holding(*this, request->rank());  // deletes itself in OnDone
    grpc::Status status;
    {
      const Lock lock(mutex_);
      status = Check(request->rank(), request->job_id());
      if (status.ok() && ended_) status = grpc::Status(grpc::StatusCode::CANCELLED, "the job ends");
      if (status.ok()) {
        workers_[request->rank()]->closed_at.reset();
        holds_.insert(hold);
      }
    }
    if (!status.ok()) hold->End(status);
    return hold;
  }

  grpc::Status ReportStep(grpc::ServerContext*, const omnitrain::StepReport* request,
                          omnitrain::StepReply* reply) override {
    {
      const Lock lock(mutex_);
      if (auto status = Check(request->rank(), request->job_id()); !status.ok()) return status;
      reply->set_stop(stop_);
    }
    const Lock lock(callback_mutex_);
    if (IsHeard(*request)) return grpc::Status::OK;
    if (callbacks_.on_step &&
        !callbacks_.on_step({request->rank(),
                             request->step(),
                             {request->values().begin(), request->values().end()}})) {
      return Refuse(grpc::StatusCode::RESOURCE_EXHAUSTED, "no room for a report now");
    }
    SetHeard(*request);
    return grpc::Status::OK;
  }

  grpc::Status Notice(grpc::ServerContext*, const omnitrain::NoticeRequest* request,
                      omnitrain::NoticeReply*) override {
    {
      const Lock lock(mutex_);
      if (auto status = Check(request->rank(), request->job_id()); !status.ok()) return status;
    }
    const Lock lock(callback_mutex_);
    if (IsHeard(*request)) return grpc::Status::OK;
    if (callbacks_.on_notice)
      callbacks_.on_notice(request->rank(), request->kind(), request->text());
    SetHeard(*request);
    return grpc::Status::OK;
  }

  grpc::Status Goodbye(grpc::ServerContext*, const omnitrain::GoodbyeRequest* request,
                       omnitrain::GoodbyeReply*) override {
    Lock lock(mutex_);
    if (auto status = Check(request->rank(), request->job_id()); !status.ok()) return status;
    workers_[request->rank()]->gone = true;
    if (request->stopped_early()) {
      stop_ = stopped_early_ = true;                     // the others can't go on without it
      if (is_consequence_) failure_ = absl::OkStatus();  // of this one's leaving
      is_consequence_ = false;
    }
    if (request->code() != 0) {
      const auto code = static_cast<absl::StatusCode>(request->code());
      FailLocked(
          absl::Status(code, absl::StrCat("rank ", request->rank(), ": ", request->message())),
          /*is_consequence=*/code == absl::StatusCode::kAborted);
    }
    changed_.notify_all();
    lock.unlock();
    EndHolds(request->rank());
    return grpc::Status::OK;
  }

 private:
  class Holding final : public grpc::ServerUnaryReactor {
   public:
    Holding(Impl& impl, int32_t rank) : impl_(impl), rank_(rank) {}

    int32_t rank() const { return rank_; }
    // Once only: by who takes it out of holds_, or who never put it in.
    void End(const grpc::Status& status) { Finish(status); }

    void OnCancel() override {
      if (impl_.ConnectionClosed(*this)) Finish(grpc::Status::CANCELLED);
    }
    void OnDone() override { delete this; }

   private:
    Impl& impl_;
    const int32_t rank_;
  };

  // False if somebody else ends the call.
  bool ConnectionClosed(Holding& hold) {
    const Lock lock(mutex_);
    if (holds_.erase(&hold) == 0) return false;
    workers_[hold.rank()]->closed_at = options_.clock.Now();
    changed_.notify_all();
    return true;
  }

  // Of one worker, or with -1 of all.
  void EndHolds(int32_t rank) {
    std::vector<Holding*> ended;
    {
      const Lock lock(mutex_);
      for (auto hold = holds_.begin(); hold != holds_.end();) {
        if (rank < 0 || (*hold)->rank() == rank) {
          ended.push_back(*hold);
          hold = holds_.erase(hold);
        } else {
          ++hold;
        }
      }
    }
    for (Holding* hold : ended) hold->End(grpc::Status::OK);
  }

  struct Worker {
    std::string host;
    int64_t pid = 0;
    uint64_t instance = 0;
    absl::Duration last_seen;                 // on the working clock
    std::optional<absl::Duration> closed_at;  // its connection ended and has not come back
    int64_t step = 0;
    std::string phase = "starting";
    bool gone = false;
  };

  int32_t NumRegistered() const {
    int32_t count = 0;
    for (const auto& worker : workers_) count += worker.has_value();
    return count;
  }

  // After a stop those that have not come are not waited for.
  bool AllGone() const {
    for (const auto& worker : workers_) {
      if (worker.has_value() ? !worker->gone : !stop_) return false;
    }
    return true;
  }

  void Answer(int32_t rank, omnitrain::RegisterReply* reply) const {
    reply->set_rank(rank);
    *reply->mutable_plan() = ToProto(options_.plan);
    reply->set_recipe_yaml(options_.recipe_yaml);
    reply->set_run_dir(options_.run_dir);
    reply->set_job_id(job_id_);
    reply->set_heartbeat_period_s(absl::ToDoubleSeconds(options_.heartbeat_deadline) / 4);
    constexpr size_t kMostBytes = size_t{1} << 20;  // gRPC's limit of a message is 4 MiB
    if (rank != 0 || options_.saved_state.size() > kMostBytes) return;
    reply->set_saved_step(options_.saved_step);
    reply->set_saved_state(options_.saved_state);
  }

  // Of reports and notices, under callback_mutex_. Those without a sequence are always new.
  template <typename Request>
  bool IsHeard(const Request& request) const {
    const auto heard = heard_.find(request.rank());
    return request.sequence() != 0 && heard != heard_.end() && request.sequence() <= heard->second;
  }
  template <typename Request>
  void SetHeard(const Request& request) {
    if (request.sequence() != 0) heard_[request.rank()] = request.sequence();
  }

  // Any message is a sign of life; one of another incarnation of the job is refused.
  grpc::Status Check(int32_t rank, const std::string& job_id) {
    if (job_id != job_id_ || rank < 0 || rank >= static_cast<int32_t>(workers_.size()) ||
        !workers_[rank].has_value()) {
      return Refuse(grpc::StatusCode::FAILED_PRECONDITION,
                    "this worker belongs to an earlier incarnation of the job; start it again");
    }
    workers_[rank]->last_seen = options_.clock.Now();
    return grpc::Status::OK;
  }

  void FailLocked(absl::Status status, bool is_consequence = false) {
    if (is_consequence && stopped_early_) return;
    if (failure_.ok() || (is_consequence_ && !is_consequence)) {
      failure_ = std::move(status);
      is_consequence_ = is_consequence;
    }
    changed_.notify_all();
  }

  // "; not heard of: ranks 1, 2, 5", of a few.
  std::string Missing() const {
    std::vector<std::string> missing;
    for (size_t rank = 0; rank < workers_.size(); ++rank) {
      if (!workers_[rank].has_value()) missing.push_back(absl::StrCat(rank));
    }
    if (missing.size() == workers_.size() || missing.size() > 16) return "";
    return absl::StrCat("; not heard of: rank", missing.size() == 1 ? " " : "s ",
                        absl::StrJoin(missing, ", "));
  }

  void Watch() {
    NameThread("coordinator");
    Lock lock(mutex_);
    while (!ended_) {
      changed_.wait_for(lock, std::chrono::milliseconds(200));
      const absl::Duration now = options_.clock.Now();
      if (failure_.ok() && !stop_ && now - start_ > options_.join_limit &&
          NumRegistered() < static_cast<int32_t>(workers_.size())) {
        FailLocked(absl::DeadlineExceededError(absl::StrCat(
            "only ", NumRegistered(), " of ", workers_.size(), " workers registered at ",
            door_->address(), " within ", absl::FormatDuration(options_.join_limit), Missing())));
      }
      for (size_t rank = 0; rank < workers_.size(); ++rank) {
        if (!failure_.ok() && !is_consequence_) break;
        const auto& worker = workers_[rank];
        if (!worker.has_value() || worker->gone) continue;
        // A worker that lives makes another connection and beats on it.
        const bool closed = worker->closed_at.has_value() &&
                            worker->last_seen <= *worker->closed_at &&
                            now - *worker->closed_at > kReconnectTime;
        const bool silent = now - worker->last_seen > options_.heartbeat_deadline;
        if (!closed && !silent) continue;
        FailLocked(absl::AbortedError(absl::StrFormat(
            "rank %d (pid %d on %s) is lost: %s for %s; it was in step %d, %s", rank, worker->pid,
            worker->host,
            closed ? "its connection was closed without a goodbye, and nothing heard"
                   : "no heartbeat",
            absl::FormatDuration(absl::Trunc(now - worker->last_seen, absl::Milliseconds(1))),
            worker->step, worker->phase)));
      }
    }
  }

  const CoordinatorOptions options_;
  const CoordinatorCallbacks callbacks_;
  const std::string job_id_;
  const absl::Duration start_;
  std::unique_ptr<FrontDoor> door_;
  std::unique_ptr<grpc::Server> server_;
  std::thread watchdog_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::optional<Worker>> workers_;  // by rank
  WorkerHosts hosts_;                           // likewise
  std::set<Holding*> holds_;                    // pending, owned by themselves
  absl::Status failure_;
  bool is_consequence_ = false;  // failure_: of something not heard of yet
  bool stop_ = false;
  bool stopped_early_ = false;  // a worker left before its first step, as asked
  bool ended_ = false;

  std::mutex callback_mutex_;          // held while a callback runs; never together with mutex_
  std::map<int32_t, uint64_t> heard_;  // the last sequence, by rank
};

Coordinator::Coordinator(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Coordinator::~Coordinator() { impl_->Shutdown(); }

absl::StatusOr<std::unique_ptr<Coordinator>> Coordinator::Create(const CoordinatorOptions& options,
                                                                 CoordinatorCallbacks callbacks) {
  auto impl = std::make_unique<Impl>(options, std::move(callbacks));
  OMNI_RETURN_IF_ERROR(impl->Start());
  return std::unique_ptr<Coordinator>(new Coordinator(std::move(impl)));
}

const std::string& Coordinator::address() const { return impl_->address(); }
const std::string& Coordinator::address_note() const { return impl_->address_note(); }
void Coordinator::RequestStop() { impl_->RequestStop(); }
void Coordinator::Fail(const std::string& reason, bool is_consequence) {
  impl_->Fail(reason, is_consequence);
}
absl::Status Coordinator::Wait() { return impl_->Wait(); }
void Coordinator::AwaitGoodbyes(absl::Duration limit) { impl_->AwaitGoodbyes(limit); }

}  // namespace omni::scheduler
