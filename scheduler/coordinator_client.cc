#include "scheduler/coordinator_client.h"

#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <random>
#include <thread>
#include <type_traits>
#include <utility>

#include "absl/time/clock.h"
#include "proto/omnitrain.grpc.pb.h"
#include "runtime/base/address.h"
#include "runtime/base/process.h"
#include "runtime/base/status.h"
#include "runtime/base/text.h"
#include "runtime/base/writer_thread.h"
#include "scheduler/coordinator.h"

namespace omni::scheduler {
namespace {

absl::Status ToAbsl(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

// The longest that registering is one call.
constexpr absl::Duration kCallTime = absl::Seconds(10);
// Between two tries of a call.
constexpr absl::Duration kRetryTime = absl::Milliseconds(100);

// The coordinator may not have heard it, or has no room now.
bool MayBeTriedAgain(const grpc::Status& status) {
  return status.error_code() == grpc::StatusCode::UNAVAILABLE ||
         status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED ||
         status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED;
}

void SetDeadline(grpc::ClientContext& context, absl::Duration timeout) {
  context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
}

JobPlan FromProto(const omnitrain::Plan& proto) {
  JobPlan plan;
  plan.options = {.num_workers = proto.num_workers(),
                  .num_lanes = proto.num_lanes(),
                  .comm_engine = proto.comm_engine(),
                  .device = proto.device(),
                  .threads_per_worker = proto.threads_per_worker(),
                  .reserved_bytes = proto.reserved_bytes(),
                  .deadline_s = proto.deadline_s(),
                  .dtype = proto.dtype()};
  for (const auto& lanes : proto.lanes()) {
    plan.lanes_of_rank.emplace_back(lanes.lanes().begin(), lanes.lanes().end());
  }
  return plan;
}

// Another number for each worker that ever starts; never 0.
uint64_t RandomInstance() {
  std::random_device random;
  return (uint64_t{random()} << 32 | random()) | 1;
}

}  // namespace

class CoordinatorClient::Impl {
 public:
  explicit Impl(const JoinOptions& options) : options_(options), wire_(std::make_shared<Wire>()) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
    arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    wire_->stub = omnitrain::Coordinator::NewStub(
        grpc::CreateCustomChannel(options.reached.empty() ? options.coordinator : options.reached,
                                  grpc::InsecureChannelCredentials(), arguments));
  }

  ~Impl() {
    wire_->is_over = true;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      ended_ = true;
      if (beating_ != nullptr) beating_->TryCancel();
      changed_.notify_all();
    }
    if (beat_.joinable()) beat_.join();
    ReleaseHold();
  }

  // Asked again after a while: a call under way while this process was suspended has timed out.
  absl::Status Register() {
    omnitrain::RegisterRequest request;
    request.set_protocol_version(kProtocolVersion);
    request.set_host(options_.host.empty() ? MachineName() : options_.host);
    request.set_machine(MachineIdentity());
    const auto reached =
        ParseHostPort(options_.reached.empty() ? options_.coordinator : options_.reached);
    if (reached.ok()) request.set_reached(reached->host);
    request.set_pid(getpid());
    request.set_wanted_rank(options_.wanted_rank);
    request.set_comm_address(options_.comm_address);
    request.set_instance(RandomInstance());
    const absl::Duration start = options_.clock.Now();
    while (true) {
      const absl::Duration left = options_.deadline - (options_.clock.Now() - start);
      if (left <= absl::ZeroDuration()) {
        return absl::UnavailableError(absl::StrCat("no coordinator answers at ",
                                                   options_.coordinator, " (tried for ",
                                                   absl::FormatDuration(options_.deadline), ")"));
      }
      grpc::ClientContext context;
      context.set_wait_for_ready(true);
      SetDeadline(context, std::min(left, kCallTime));
      const grpc::Status status = wire_->stub->Register(&context, request, &wire_->registration);
      if (status.ok()) break;
      if (!MayBeTriedAgain(status)) return ToAbsl(status);
      if (status.error_code() != grpc::StatusCode::DEADLINE_EXCEEDED) absl::SleepFor(kRetryTime);
    }
    plan_ = FromProto(wire_->registration.plan());
    StartHold();
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<std::string>> Rendezvous(absl::Duration deadline) {
    beat_ = std::thread([this] { Beat(); });
    const absl::Duration start = options_.clock.Now();
    int32_t registered = 0;
    while (options_.clock.Now() - start < deadline) {
      omnitrain::RendezvousRequest request;
      omnitrain::RendezvousReply reply;
      const grpc::Status status =
          Call(*wire_, &omnitrain::Coordinator::Stub::Rendezvous, request, &reply);
      if (status.ok()) {
        if (reply.ready()) {
          plan_.options.comm_engine = reply.comm_engine();
          return std::vector<std::string>(reply.comm_addresses().begin(),
                                          reply.comm_addresses().end());
        }
        registered = reply.num_registered();
        continue;
      }
      if (!MayBeTriedAgain(status)) return ToAbsl(status);
      OMNI_RETURN_IF_ERROR(job_status());  // the beating thread knows whether it is lost
      absl::SleepFor(kRetryTime);
    }
    return absl::DeadlineExceededError(
        absl::StrCat("only ", registered, " of ", plan_.options.num_workers,
                     " workers registered within ", absl::FormatDuration(deadline)));
  }

  void SetProgress(int64_t step, const std::string& phase) {
    const std::lock_guard<std::mutex> lock(mutex_);
    step_ = step;
    phase_ = phase;
  }

  bool stop_requested() const { return wire_->stop; }

  absl::Status job_status() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return job_status_;
  }

  void set_warn(std::function<void(const std::string&)> warn) {
    const std::lock_guard<std::mutex> lock(mutex_);
    warn_ = std::move(warn);
  }
  void Warn(const std::string& text) {
    std::function<void(const std::string&)> warn;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      warn = warn_;
    }
    if (warn) warn(text);
  }

  template <typename Request, typename Reply>
  using Method = grpc::Status (omnitrain::Coordinator::Stub::*)(grpc::ClientContext*,
                                                                const Request&, Reply*);

  // Hands a report or a notice to the sending thread, which keeps at it until it is taken.
  template <typename Request, typename Reply>
  void Send(Method<Request, Reply> method, Request request) {
    const std::lock_guard<std::mutex> lock(send_mutex_);  // in the order of their numbers
    request.set_sequence(++sequence_);
    const WriterThread::Size size = {.bytes = static_cast<int64_t>(request.ByteSizeLong()) + 64,
                                     .most_bytes = options_.report_bytes_max};
    const WaitEnd end = reports_.PostOrWait(
        size,
        [wire = wire_, method, request = std::move(request)]() mutable {
          Deliver(*wire, method, request);
        },
        {.limit = PatienceFor(deadline()),
         .stop = [this] { return !job_status().ok(); },
         .say =
             [this](absl::Duration waited) {
               Warn(absl::StrCat("training waits since ", Brief(waited), ": ",
                                 reports_.num_waiting(), " reports wait for the coordinator at ",
                                 options_.coordinator));
             },
         .clock = options_.clock});
    if (end == WaitEnd::kReady) return;
    // Before mutex_ is taken: who waits in reports_ takes it there.
    const absl::Status lost = absl::UnavailableError(absl::StrCat(
        "the coordinator at ", options_.coordinator, " has taken no report of a step for ",
        Brief(PatienceFor(deadline())), "; ", reports_.num_waiting(), " wait"));
    const std::lock_guard<std::mutex> status_lock(mutex_);
    if (job_status_.ok()) job_status_ = lost;
  }

  bool Goodbye(absl::Status status, bool stopped_early) {
    // Who fails says so at once: the cause must be heard before what it causes.
    const absl::Duration limit = status.ok() ? PatienceFor(deadline()) : absl::Seconds(1);
    const WaitEnd end =
        reports_.Finish({.limit = limit,
                         .stop = [this] { return !job_status().ok(); },
                         .say =
                             [this](absl::Duration waited) {
                               Warn(absl::StrCat("waiting since ", Brief(waited),
                                                 " for the coordinator at ", options_.coordinator,
                                                 " to take ", reports_.num_waiting(), " reports"));
                             },
                         .clock = options_.clock});
    if (end != WaitEnd::kReady) {
      const std::string text =
          absl::StrCat(reports_.num_waiting(), " reports were not taken by the coordinator");
      status = status.ok()
                   ? absl::UnavailableError(text)
                   : absl::Status(status.code(), absl::StrCat(status.message(), "; ", text));
    }
    omnitrain::GoodbyeRequest request;
    request.set_code(static_cast<int32_t>(status.code()));
    request.set_message(PrintableLines(status.message()));
    request.set_stopped_early(stopped_early);
    const absl::Duration start = options_.clock.Now();
    while (true) {
      omnitrain::GoodbyeReply reply;
      const grpc::Status heard =
          Call(*wire_, &omnitrain::Coordinator::Stub::Goodbye, request, &reply);
      if (heard.ok()) return true;
      // job_status: of a job that has failed, or whose coordinator is gone.
      if (!MayBeTriedAgain(heard) || !job_status().ok() ||
          options_.clock.Now() - start > PatienceFor(deadline())) {
        return false;
      }
      absl::SleepFor(kRetryTime);
    }
  }

  const omnitrain::RegisterReply& registration() const { return wire_->registration; }
  const JobPlan& plan() const { return plan_; }

 private:
  // What calls need: the sending thread's as well, which may outlive this object in one of them.
  struct Wire {
    std::unique_ptr<omnitrain::Coordinator::Stub> stub;
    omnitrain::RegisterReply registration;
    std::atomic<bool> is_over{false};
    std::atomic<bool> stop{false};
  };

  template <typename Request, typename Reply>
  static grpc::Status Call(Wire& wire, Method<Request, Reply> method, Request& request,
                           Reply* reply, grpc::ClientContext* context) {
    request.set_rank(wire.registration.rank());
    request.set_job_id(wire.registration.job_id());
    SetDeadline(*context, absl::Seconds(wire.registration.heartbeat_period_s() * 4));
    return (wire.stub.get()->*method)(context, request, reply);
  }
  template <typename Request, typename Reply>
  static grpc::Status Call(Wire& wire, Method<Request, Reply> method, Request& request,
                           Reply* reply) {
    grpc::ClientContext context;
    return Call(wire, method, request, reply, &context);
  }

  template <typename Request, typename Reply>
  static void Deliver(Wire& wire, Method<Request, Reply> method, Request& request) {
    while (!wire.is_over) {
      Reply reply;
      const grpc::Status status = Call(wire, method, request, &reply);
      if constexpr (std::is_same_v<Reply, omnitrain::StepReply>) {
        if (status.ok() && reply.stop()) wire.stop = true;
      }
      // A coordinator that refuses for good is of another job, and this one's beats say so.
      if (status.ok() || !MayBeTriedAgain(status)) return;
      absl::SleepFor(kRetryTime);
    }
  }

  absl::Duration deadline() const {
    return 4 * absl::Seconds(wire_->registration.heartbeat_period_s());
  }
  static std::string Brief(absl::Duration duration) {
    return absl::FormatDuration(absl::Trunc(duration, absl::Milliseconds(100)));
  }

  // A call that the coordinator leaves pending; it ends when this process does.
  struct PendingHold {
    grpc::ClientContext context;
    omnitrain::HoldRequest request;
    omnitrain::HoldReply reply;
    bool done = false;  // guarded by mutex_
  };

  // By the registering thread, then by the beating one.
  void StartHold() {
    auto hold = std::make_unique<PendingHold>();
    hold->request.set_rank(wire_->registration.rank());
    hold->request.set_job_id(wire_->registration.job_id());
    PendingHold* pending = hold.get();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      hold_ = std::move(hold);
    }
    wire_->stub->async()->Hold(&pending->context, &pending->request, &pending->reply,
                               [this, pending](const grpc::Status&) {
                                 const std::lock_guard<std::mutex> lock(mutex_);
                                 pending->done = true;
                                 changed_.notify_all();
                               });
  }

  void ReleaseHold() {
    std::unique_lock<std::mutex> lock(mutex_);
    if (hold_ == nullptr) return;
    hold_->context.TryCancel();
    changed_.wait(lock, [&] { return hold_->done; });
    hold_.reset();
  }

  void Beat() {
    NameThread("heartbeat");
    const absl::Duration period = absl::Seconds(wire_->registration.heartbeat_period_s());
    absl::Duration last_answer = options_.clock.Now();
    absl::Duration warn_after = deadline();
    std::unique_lock<std::mutex> lock(mutex_);
    while (!ended_) {
      omnitrain::HeartbeatRequest request;
      request.set_step(step_);
      request.set_phase(phase_);
      grpc::ClientContext context;
      beating_ = &context;
      lock.unlock();
      omnitrain::HeartbeatReply reply;
      const grpc::Status status =
          Call(*wire_, &omnitrain::Coordinator::Stub::Heartbeat, request, &reply, &context);
      lock.lock();
      beating_ = nullptr;
      const absl::Duration silent = options_.clock.Now() - last_answer;
      if (status.ok()) {
        last_answer = options_.clock.Now();
        warn_after = deadline();
        if (reply.stop()) wire_->stop = true;
        if (!reply.abort_reason().empty() && job_status_.ok()) {
          job_status_ = absl::AbortedError(reply.abort_reason());
        }
      } else if (status.error_code() == grpc::StatusCode::FAILED_PRECONDITION) {
        if (job_status_.ok()) job_status_ = ToAbsl(status);
      } else if (silent > (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED
                               ? PatienceFor(deadline())
                               : deadline()) &&
                 job_status_.ok()) {
        job_status_ = absl::AbortedError(absl::StrCat("the coordinator at ", options_.coordinator,
                                                      " is lost: no answer for ", Brief(silent)));
      } else if (silent > warn_after && job_status_.ok()) {
        warn_after = 2 * silent;
        lock.unlock();
        Warn(absl::StrCat("the coordinator at ", options_.coordinator, " is silent for ",
                          Brief(silent), ", but connected: training goes on without it until ",
                          Brief(PatienceFor(deadline())), " have passed"));
        lock.lock();
      }
      if (ended_) break;
      if (status.ok() && hold_ != nullptr && hold_->done) {  // the connection broke and is back
        lock.unlock();
        ReleaseHold();
        StartHold();
        lock.lock();
      }
      changed_.wait_for(lock, absl::ToChronoNanoseconds(std::min(period, absl::Milliseconds(500))));
    }
  }

  const JoinOptions options_;
  const std::shared_ptr<Wire> wire_;
  JobPlan plan_;
  std::thread beat_;

  std::mutex send_mutex_;
  uint64_t sequence_ = 0;  // under send_mutex_
  WriterThread reports_{"reports to the coordinator"};

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::unique_ptr<PendingHold> hold_;
  grpc::ClientContext* beating_ = nullptr;  // the call under way
  std::function<void(const std::string&)> warn_;
  bool ended_ = false;
  int64_t step_ = 0;
  std::string phase_ = "starting";
  absl::Status job_status_;
};

CoordinatorClient::CoordinatorClient(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CoordinatorClient::~CoordinatorClient() = default;

absl::Status CheckCoordinatorAddress(const std::string& address) {
  const auto place = ParseHostPort(address);
  if (place.ok() && !place->host.empty() && place->port > 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "coordinator \"", address, "\": expected host:port or [v6]:port, port 1 to 65535"));
}

absl::StatusOr<std::unique_ptr<CoordinatorClient>> CoordinatorClient::Join(
    const JoinOptions& options) {
  OMNI_RETURN_IF_ERROR(CheckCoordinatorAddress(options.coordinator));
  auto impl = std::make_unique<Impl>(options);
  OMNI_RETURN_IF_ERROR(impl->Register());
  return std::unique_ptr<CoordinatorClient>(new CoordinatorClient(std::move(impl)));
}

int32_t CoordinatorClient::rank() const { return impl_->registration().rank(); }
const JobPlan& CoordinatorClient::plan() const { return impl_->plan(); }
const std::string& CoordinatorClient::recipe_yaml() const {
  return impl_->registration().recipe_yaml();
}
const std::string& CoordinatorClient::run_dir() const { return impl_->registration().run_dir(); }
const std::string& CoordinatorClient::job_id() const { return impl_->registration().job_id(); }
int64_t CoordinatorClient::saved_step() const { return impl_->registration().saved_step(); }
const std::string& CoordinatorClient::saved_state() const {
  return impl_->registration().saved_state();
}
absl::StatusOr<std::vector<std::string>> CoordinatorClient::Rendezvous(absl::Duration deadline) {
  return impl_->Rendezvous(deadline);
}
void CoordinatorClient::SetProgress(int64_t step, const std::string& phase) {
  impl_->SetProgress(step, phase);
}
bool CoordinatorClient::stop_requested() const { return impl_->stop_requested(); }
absl::Status CoordinatorClient::job_status() const { return impl_->job_status(); }

void CoordinatorClient::set_warn(std::function<void(const std::string&)> warn) {
  impl_->set_warn(std::move(warn));
}

void CoordinatorClient::ReportStep(int64_t step, const std::map<std::string, double>& values) {
  omnitrain::StepReport request;
  request.set_step(step);
  request.mutable_values()->insert(values.begin(), values.end());
  impl_->Send(&omnitrain::Coordinator::Stub::ReportStep, std::move(request));
}

void CoordinatorClient::Notice(const std::string& kind, const std::string& text) {
  omnitrain::NoticeRequest request;
  request.set_kind(kind);
  request.set_text(PrintableLines(text));  // a message with other bytes than UTF-8 is lost
  impl_->Send(&omnitrain::Coordinator::Stub::Notice, std::move(request));
}

bool CoordinatorClient::Goodbye(const absl::Status& status, bool stopped_early) {
  return impl_->Goodbye(status, stopped_early);
}

}  // namespace omni::scheduler
