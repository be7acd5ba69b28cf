#include "trainer/worker.h"

#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "runtime/base/address.h"
#include "runtime/base/limits.h"
#include "runtime/base/log.h"
#include "runtime/base/metrics.h"
#include "runtime/base/process.h"
#include "runtime/base/rng.h"
#include "runtime/base/status.h"
#include "runtime/base/working_clock.h"
#include "runtime/base/writer_thread.h"
#include "runtime/comm/route.h"
#include "runtime/comm/shm.h"
#include "runtime/comm/tcp.h"
#include "scheduler/coordinator.h"
#include "scheduler/coordinator_client.h"
#include "trainer/metrics_host.h"
#include "trainer/trainer.h"

namespace omni::trainer {
namespace {

// What tools/main.cc ends with when training was stopped before its end.
constexpr int kExitStopped = 3;

// A thread that ends this process where the one that trains can't: that may be in a call that never
// returns (storage that stalls), or hears of a stop only after its step.
//
//   before the first step   a stop is obeyed at once: there is nothing to save
//   the job has failed      the training thread has the heartbeat's deadline to leave by itself
//   a second signal         at once
//   after the goodbye       10 s, for threads to end and memory to be given back
class LeaveWatch {
 public:
  LeaveWatch() : thread_([this] { Watch(); }) {}
  ~LeaveWatch() {
    is_over_ = true;
    thread_.join();
  }

  void SetClient(scheduler::CoordinatorClient* client, absl::Duration deadline) {
    const std::lock_guard<std::mutex> lock(mutex_);
    client_ = client;
    deadline_ = deadline;
  }
  void SetLog(Logger* log) {  // null: it is gone
    const std::lock_guard<std::mutex> lock(mutex_);
    log_ = log;
  }
  // From now on a stop waits for the end of the step.
  void BeginTraining() { state_ = State::kTraining; }
  // Said, or about to be, by the training thread; the process may end.
  void BeginGoodbye() { state_ = State::kGoodbye; }
  void GoodbyeIsSaid(int exit_code) {
    exit_code_ = exit_code;
    state_ = State::kLeaving;
  }

 private:
  enum class State { kStarting, kTraining, kGoodbye, kLeaving };

  void Watch() {
    const WorkingClock& clock = WorkingClock::OfProcess();
    std::optional<absl::Duration> failed_at, leaving_at;
    for (; !is_over_; absl::SleepFor(absl::Milliseconds(50))) {
      // What it uses stays while it leaves: the lock is held for good then.
      const std::lock_guard<std::mutex> lock(mutex_);
      const State state = state_;
      const bool stop = NumStopRequests() > 0 || (client_ != nullptr && client_->stop_requested());
      const absl::Status job = client_ == nullptr ? absl::OkStatus() : client_->job_status();
      if (state == State::kLeaving) {
        if (!leaving_at.has_value()) leaving_at = clock.Now();
        if (clock.Now() - *leaving_at > absl::Seconds(10)) EndProcess(exit_code_);
        continue;
      }
      if (NumStopRequests() > 1) {
        Leave(absl::AbortedError("interrupted twice"), "a second signal");
      }
      if (state == State::kStarting && stop)
        Leave(absl::OkStatus(), "stopped before the first step");
      if (job.ok() || state == State::kGoodbye) continue;
      if (!failed_at.has_value()) failed_at = clock.Now();
      if (clock.Now() - *failed_at > deadline_) {
        Leave(job, "the job has failed, and the training thread does not come back");
      }
    }
  }

  [[noreturn]] void Leave(const absl::Status& status, absl::string_view why) {
    if (log_ != nullptr) log_->Warning("leaves: ", why);
    const bool is_heard = client_ != nullptr && client_->Goodbye(status, status.ok());
    if (!is_heard) {
      WriteWithin(STDERR_FILENO,
                  absl::StrCat("omnitrain: ", status.ok() ? why : status.message(), "\n"),
                  absl::Seconds(2));
    }
    EndProcess(!status.ok() ? 1 : is_heard ? 0 : kExitStopped);
  }

  std::atomic<bool> is_over_{false};
  std::atomic<State> state_{State::kStarting};
  std::atomic<int> exit_code_{0};
  std::mutex mutex_;
  scheduler::CoordinatorClient* client_ = nullptr;
  Logger* log_ = nullptr;
  absl::Duration deadline_ = absl::Seconds(30);
  std::thread thread_;  // last: it uses the rest
};

// The control plane as the trainer sees it.
class ClientLink : public WorkerLink {
 public:
  explicit ClientLink(scheduler::CoordinatorClient& client) : client_(client) {}

  void SetProgress(int64_t step, const std::string& phase) override {
    client_.SetProgress(step, phase);
  }
  bool stop_requested() override { return client_.stop_requested() || NumStopRequests() > 0; }
  absl::Status job_status() override { return client_.job_status(); }
  void ReportStep(int64_t step, const std::map<std::string, double>& values) override {
    client_.ReportStep(step, values);
  }
  void Notice(const std::string& kind, const std::string& text) override {
    client_.Notice(kind, text);
  }

 private:
  scheduler::CoordinatorClient& client_;
};

absl::StatusOr<std::unique_ptr<MetricsServer>> ServeMetrics(const Recipe& recipe, int32_t rank,
                                                            const MetricsHost& host) {
  if (!recipe.observe.prometheus) return std::unique_ptr<MetricsServer>();
  const int32_t port =
      recipe.observe.metrics_port == 0 ? 0 : recipe.observe.metrics_port + 1 + rank;
  auto server =
      MetricsServer::Create({.address = absl::StrCat(host.listen, ":", port),
                             .labels = {{"job", recipe.name}, {"rank", absl::StrCat(rank)}}});
  if (!server.ok()) return Annotate(server.status(), "observe.metrics_port");
  return server;
}

absl::StatusOr<std::unique_ptr<Communicator>> Connect(const scheduler::CoordinatorClient& client,
                                                      absl::Span<const std::string> addresses,
                                                      TcpListener listener) {
  const auto& plan = client.plan().options;
  if (plan.num_workers == 1) return std::unique_ptr<Communicator>();
  const Limits limits = Limits::From(plan.deadline_s);
  const CommOptions options{.deadline = limits.collective,
                            .connect_deadline = limits.connect,
                            .token = StreamOf(client.job_id())};
  if (plan.comm_engine == "tcp") {
    return ConnectTcp(std::move(listener), addresses, client.rank(), options);
  }
  return ConnectShm("omnitrain-" + client.job_id(), client.rank(), plan.num_workers, options);
}

// What a worker is made of once it has joined. Outlives its goodbye: destroying it may take long
// where storage stalls, and nobody should wait for that to hear how it went.
class JoinedWorker {
 public:
  JoinedWorker(scheduler::CoordinatorClient& client, LeaveWatch& watch, int32_t local_rank)
      : client_(client), watch_(watch), local_rank_(local_rank), link_(client) {}
  ~JoinedWorker() {
    watch_.SetLog(nullptr);
    client_.set_warn(nullptr);
  }

  // `host`: where metrics are served.
  absl::Status Train(const std::string& host, TcpListener listener);

 private:
  scheduler::CoordinatorClient& client_;
  LeaveWatch& watch_;
  const int32_t local_rank_;
  std::unique_ptr<Logger> log_;
  std::unique_ptr<MetricsServer> metrics_;
  std::unique_ptr<Communicator> comm_;
  KernelRegistry kernels_;
  ClientLink link_;
  std::unique_ptr<Trainer> trainer_;
};

absl::Status JoinedWorker::Train(const std::string& host, TcpListener listener) {
  OMNI_ASSIGN_OR_RETURN(const Recipe recipe,
                        ParseRecipe(client_.recipe_yaml(), "recipe of the coordinator"));
  const std::string run_dir = client_.run_dir();
  OMNI_ASSIGN_OR_RETURN(
      log_,
      Logger::Create({.file = absl::StrFormat("%s/logs/rank-%05d.log", run_dir, client_.rank()),
                      .who = absl::StrCat("rank ", client_.rank()),
                      .stderr_level = LogLevel::kOff}));
  watch_.SetLog(log_.get());
  client_.set_warn([log = log_.get()](const std::string& text) { log->Warning(text); });
  const MetricsHost metrics_host = MetricsHostFor(recipe.observe.metrics_host, host);
  OMNI_ASSIGN_OR_RETURN(metrics_, ServeMetrics(recipe, client_.rank(), metrics_host));
  if (metrics_ != nullptr) {
    client_.Notice("metrics", absl::StrCat(metrics_host.reach, ":", metrics_->port()));
  }
  // As long as the coordinator waits, which then says who is missing.
  OMNI_ASSIGN_OR_RETURN(
      const auto addresses,
      client_.Rendezvous(scheduler::PatienceFor(absl::Seconds(recipe.runtime.deadline_s)) +
                         absl::Seconds(recipe.runtime.deadline_s)));
  OMNI_ASSIGN_OR_RETURN(comm_, Connect(client_, addresses, std::move(listener)));

  RegisterCpuKernels(kernels_);
  OMNI_ASSIGN_OR_RETURN(trainer_, Trainer::Create({.recipe = recipe,
                                                   .run_dir = run_dir,
                                                   .comm = comm_.get(),
                                                   .link = &link_,
                                                   .log = log_.get(),
                                                   .metrics = metrics_.get(),
                                                   .kernels = &kernels_,
                                                   .local_rank = local_rank_,
                                                   .saved_step = client_.saved_step(),
                                                   .saved_state = client_.saved_state()}));
  log_->Info("training from step ", trainer_->step(), " of ", recipe.training.steps);
  watch_.BeginTraining();
  const absl::Status status = trainer_->Run();
  if (status.ok()) {
    log_->Info("done at step ", trainer_->step());
    return status;
  }
  log_->Error(status.ToString());
  if (comm_ != nullptr) {
    comm_->Abort(status.message());
    for (const std::string& line : comm_->FaultReport()) log_->Error("  ", line);
  }
  return status;
}

struct Own {
  comm::OwnAddress address;
  std::string name;         // for people
  std::string coordinator;  // numeric
};

absl::StatusOr<Own> FindOwnAddress(const WorkerOptions& options) {
  OMNI_RETURN_IF_ERROR(scheduler::CheckCoordinatorAddress(options.coordinator));
  const auto route = comm::RouteTo(options.coordinator, absl::Now() + options.wait);
  if (!route.ok()) {
    return absl::UnavailableError(absl::StrCat("no coordinator answers at ", options.coordinator,
                                               " (tried for ", absl::FormatDuration(options.wait),
                                               "): ", route.status().message()));
  }
  Own own;
  OMNI_ASSIGN_OR_RETURN(own.address,
                        comm::ChooseOwnAddress(*route, options.coordinator, options.host));
  own.name = absl::StrCat(options.host.empty() ? MachineName() : options.host, " (",
                          own.address.advertise, ")");
  own.coordinator = route->coordinator.ToString();
  return own;
}

}  // namespace

WorkerResult RunWorker(const WorkerOptions& options) {
  CatchStopSignals();
  LeaveWatch watch;  // ends the process where a stop finds it waiting
  const auto own = FindOwnAddress(options);
  if (!own.ok()) return {own.status()};
  // Made before the plan is known: the address is part of the registration, and unused with shm.
  auto listener = TcpListener::Create(own->address.listen, own->address.advertise);
  if (!listener.ok()) {
    return {options.host.empty()
                ? listener.status()
                : Annotate(listener.status(), absl::StrCat("--host ", options.host))};
  }
  const auto client = scheduler::CoordinatorClient::Join({.coordinator = options.coordinator,
                                                          .wanted_rank = options.rank,
                                                          .comm_address = listener->address(),
                                                          .host = own->name,
                                                          .reached = own->coordinator,
                                                          .deadline = options.wait});
  if (!client.ok()) return {client.status()};
  if (!own->address.note.empty()) (*client)->Notice("warning", own->address.note);
  if (options.on_rank) options.on_rank((*client)->rank());
  watch.SetClient(client->get(), Limits::From((*client)->plan().options.deadline_s).heartbeat);
  WorkerResult result;
  {
    JoinedWorker worker(**client, watch, options.local_rank);
    result.status = worker.Train(own->address.metrics, *std::move(listener));
    watch.BeginGoodbye();
    result.is_heard = (*client)->Goodbye(result.status);
    watch.GoodbyeIsSaid(result.status.ok() ? 0 : 1);
  }
  watch.SetClient(nullptr, absl::ZeroDuration());
  return result;
}

}  // namespace omni::trainer
