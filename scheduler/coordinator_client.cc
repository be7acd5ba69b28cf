#include "scheduler/coordinator_client.h"

#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/time/clock.h"
#include "proto/omnitrain.grpc.pb.h"
#include "runtime/base/process.h"
#include "runtime/base/status.h"
#include "scheduler/coordinator.h"

namespace omni::scheduler {
namespace {

absl::Status ToAbsl(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
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

std::string HostName() {
  char name[256] = {};
  return gethostname(name, sizeof(name) - 1) == 0 ? name : "unknown";
}

}  // namespace

class CoordinatorClient::Impl {
 public:
  explicit Impl(const JoinOptions& options) : options_(options) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
    arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    stub_ = omnitrain::Coordinator::NewStub(grpc::CreateCustomChannel(
        options.coordinator, grpc::InsecureChannelCredentials(), arguments));
  }

  ~Impl() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      ended_ = true;
      changed_.notify_all();
    }
    if (beat_.joinable()) beat_.join();
    ReleaseHold();
  }

  absl::Status Register() {
    omnitrain::RegisterRequest request;
    request.set_protocol_version(kProtocolVersion);
    request.set_host(HostName());
    request.set_pid(getpid());
    request.set_wanted_rank(options_.wanted_rank);
    request.set_comm_address(options_.comm_address);
    grpc::ClientContext context;
    context.set_wait_for_ready(true);
    SetDeadline(context, options_.deadline);
    const grpc::Status status = stub_->Register(&context, request, &registration_);
    if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED ||
        status.error_code() == grpc::StatusCode::UNAVAILABLE) {
      return absl::UnavailableError(absl::StrCat("no coordinator answers at ", options_.coordinator,
                                                 " (tried for ",
                                                 absl::FormatDuration(options_.deadline), ")"));
    }
    if (!status.ok()) return ToAbsl(status);
    plan_ = FromProto(registration_.plan());
    StartHold();
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<std::string>> Rendezvous(absl::Duration deadline) {
    beat_ = std::thread([this] { Beat(); });
    const absl::Time end = absl::Now() + deadline;
    int32_t registered = 0;
    while (absl::Now() < end) {
      omnitrain::RendezvousRequest request;
      request.set_rank(registration_.rank());
      request.set_job_id(registration_.job_id());
      omnitrain::RendezvousReply reply;
      grpc::ClientContext context;
      SetDeadline(context, end - absl::Now() + absl::Seconds(1));
      const grpc::Status status = stub_->Rendezvous(&context, request, &reply);
      if (!status.ok()) return ToAbsl(status);
      if (reply.ready()) {
        return std::vector<std::string>(reply.comm_addresses().begin(),
                                        reply.comm_addresses().end());
      }
      registered = reply.num_registered();
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

  bool stop_requested() const { return stop_.load(std::memory_order_relaxed); }
  void SetStopRequested() { stop_.store(true, std::memory_order_relaxed); }

  absl::Status job_status() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return job_status_;
  }

  template <typename Request, typename Reply>
  grpc::Status Call(grpc::Status (omnitrain::Coordinator::Stub::*method)(grpc::ClientContext*,
                                                                         const Request&, Reply*),
                    Request& request, Reply* reply) {
    request.set_rank(registration_.rank());
    request.set_job_id(registration_.job_id());
    grpc::ClientContext context;
    SetDeadline(context, absl::Seconds(registration_.heartbeat_period_s() * 4));
    return (stub_.get()->*method)(&context, request, reply);
  }

  omnitrain::Coordinator::Stub* stub() { return stub_.get(); }
  const omnitrain::RegisterReply& registration() const { return registration_; }
  const JobPlan& plan() const { return plan_; }

 private:
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
    hold->request.set_rank(registration_.rank());
    hold->request.set_job_id(registration_.job_id());
    PendingHold* pending = hold.get();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      hold_ = std::move(hold);
    }
    stub_->async()->Hold(&pending->context, &pending->request, &pending->reply,
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
    const absl::Duration period = absl::Seconds(registration_.heartbeat_period_s());
    absl::Time last_answer = absl::Now();
    std::unique_lock<std::mutex> lock(mutex_);
    while (!ended_) {
      omnitrain::HeartbeatRequest request;
      request.set_step(step_);
      request.set_phase(phase_);
      lock.unlock();
      omnitrain::HeartbeatReply reply;
      const grpc::Status status = Call(&omnitrain::Coordinator::Stub::Heartbeat, request, &reply);
      lock.lock();
      if (status.ok()) {
        last_answer = absl::Now();
        if (reply.stop()) stop_.store(true, std::memory_order_relaxed);
        if (!reply.abort_reason().empty() && job_status_.ok()) {
          job_status_ = absl::AbortedError(reply.abort_reason());
        }
      } else if (status.error_code() == grpc::StatusCode::FAILED_PRECONDITION) {
        if (job_status_.ok()) job_status_ = ToAbsl(status);
      } else if (absl::Now() - last_answer > 4 * period && job_status_.ok()) {
        job_status_ = absl::AbortedError(
            absl::StrCat("the coordinator at ", options_.coordinator, " is lost: no answer for ",
                         absl::FormatDuration(absl::Now() - last_answer)));
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
  std::unique_ptr<omnitrain::Coordinator::Stub> stub_;
  omnitrain::RegisterReply registration_;
  JobPlan plan_;
  std::thread beat_;
  std::atomic<bool> stop_{false};

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::unique_ptr<PendingHold> hold_;
  bool ended_ = false;
  int64_t step_ = 0;
  std::string phase_ = "starting";
  absl::Status job_status_;
};

CoordinatorClient::CoordinatorClient(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CoordinatorClient::~CoordinatorClient() = default;

absl::StatusOr<std::unique_ptr<CoordinatorClient>> CoordinatorClient::Join(
    const JoinOptions& options) {
  const size_t colon = options.coordinator.rfind(':');
  int32_t port = 0;
  if (colon == std::string::npos || colon == 0 ||
      !absl::SimpleAtoi(options.coordinator.substr(colon + 1), &port) || port < 1 || port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("coordinator \"", options.coordinator, "\": expected host:port"));
  }
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
absl::StatusOr<std::vector<std::string>> CoordinatorClient::Rendezvous(absl::Duration deadline) {
  return impl_->Rendezvous(deadline);
}
void CoordinatorClient::SetProgress(int64_t step, const std::string& phase) {
  impl_->SetProgress(step, phase);
}
bool CoordinatorClient::stop_requested() const { return impl_->stop_requested(); }
absl::Status CoordinatorClient::job_status() const { return impl_->job_status(); }

void CoordinatorClient::ReportStep(int64_t step, const std::map<std::string, double>& values) {
  omnitrain::StepReport request;
  request.set_step(step);
  request.mutable_values()->insert(values.begin(), values.end());
  omnitrain::StepReply reply;
  const grpc::Status status =
      impl_->Call(&omnitrain::Coordinator::Stub::ReportStep, request, &reply);
  if (status.ok() && reply.stop()) impl_->SetStopRequested();
}

void CoordinatorClient::Notice(const std::string& kind, const std::string& text) {
  omnitrain::NoticeRequest request;
  request.set_kind(kind);
  request.set_text(text);
  omnitrain::NoticeReply reply;
  (void)impl_->Call(&omnitrain::Coordinator::Stub::Notice, request, &reply);
}

bool CoordinatorClient::Goodbye(const absl::Status& status) {
  omnitrain::GoodbyeRequest request;
  request.set_code(static_cast<int32_t>(status.code()));
  request.set_message(std::string(status.message()));
  omnitrain::GoodbyeReply reply;
  return impl_->Call(&omnitrain::Coordinator::Stub::Goodbye, request, &reply).ok();
}

}  // namespace omni::scheduler
