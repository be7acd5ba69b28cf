#include "trainer/worker.h"

#include <filesystem>
#include <memory>
#include <optional>

#include "absl/strings/str_format.h"
#include "runtime/base/log.h"
#include "runtime/base/metrics.h"
#include "runtime/base/process.h"
#include "runtime/base/rng.h"
#include "runtime/base/status.h"
#include "runtime/comm/shm.h"
#include "runtime/comm/tcp.h"
#include "scheduler/coordinator_client.h"
#include "trainer/metrics_host.h"
#include "trainer/trainer.h"

namespace omni::trainer {
namespace {

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
  return MetricsServer::Create({.address = absl::StrCat(host.listen, ":", port),
                                .labels = {{"job", recipe.name}, {"rank", absl::StrCat(rank)}}});
}

absl::StatusOr<std::unique_ptr<Communicator>> Connect(const scheduler::CoordinatorClient& client,
                                                      absl::Span<const std::string> addresses,
                                                      std::optional<TcpListener> listener) {
  const auto& plan = client.plan().options;
  if (plan.num_workers == 1) return std::unique_ptr<Communicator>();
  const CommOptions options{.deadline = absl::Seconds(plan.deadline_s),
                            .connect_deadline = absl::Seconds(2 * plan.deadline_s),
                            .token = StreamOf(client.job_id())};
  if (listener.has_value()) {
    return ConnectTcp(*std::move(listener), addresses, client.rank(), options);
  }
  return ConnectShm("omnitrain-" + client.job_id(), client.rank(), plan.num_workers, options);
}

absl::Status Train(scheduler::CoordinatorClient& client, const std::string& host,
                   std::optional<TcpListener> listener) {
  OMNI_ASSIGN_OR_RETURN(const Recipe recipe,
                        ParseRecipe(client.recipe_yaml(), "recipe of the coordinator"));
  const std::string run_dir = client.run_dir();
  OMNI_ASSIGN_OR_RETURN(
      const auto log,
      Logger::Create({.file = absl::StrFormat("%s/logs/rank-%05d.log", run_dir, client.rank()),
                      .who = absl::StrCat("rank ", client.rank()),
                      .stderr_level = LogLevel::kOff}));
  const MetricsHost metrics_host = MetricsHostFor(recipe.observe.metrics_host, host);
  OMNI_ASSIGN_OR_RETURN(const auto metrics, ServeMetrics(recipe, client.rank(), metrics_host));
  if (metrics != nullptr) {
    client.Notice("metrics", absl::StrCat(metrics_host.reach, ":", metrics->port()));
  }
  OMNI_ASSIGN_OR_RETURN(const auto addresses,
                        client.Rendezvous(absl::Seconds(2 * recipe.runtime.deadline_s)));
  OMNI_ASSIGN_OR_RETURN(const auto comm, Connect(client, addresses, std::move(listener)));

  KernelRegistry kernels;
  RegisterCpuKernels(kernels);
  ClientLink link(client);
  OMNI_ASSIGN_OR_RETURN(const auto trainer, Trainer::Create({.recipe = recipe,
                                                             .run_dir = run_dir,
                                                             .comm = comm.get(),
                                                             .link = &link,
                                                             .log = log.get(),
                                                             .metrics = metrics.get(),
                                                             .kernels = &kernels}));
  log->Info("training from step ", trainer->step(), " of ", recipe.training.steps);
  const absl::Status status = trainer->Run();
  if (status.ok()) {
    log->Info("done at step ", trainer->step());
    return status;
  }
  log->Error(status.ToString());
  if (comm != nullptr) {
    comm->Abort(status.message());
    for (const std::string& line : comm->FaultReport()) log->Error("  ", line);
  }
  return status;
}

}  // namespace

WorkerResult RunWorker(const WorkerOptions& options) {
  CatchStopSignals();
  // Made before the plan is known: the address is part of the registration, and unused with shm.
  auto listener = TcpListener::Create(options.host);
  if (!listener.ok()) return {listener.status()};
  const auto client = scheduler::CoordinatorClient::Join({.coordinator = options.coordinator,
                                                          .wanted_rank = options.rank,
                                                          .comm_address = listener->address(),
                                                          .deadline = options.wait});
  if (!client.ok()) return {client.status()};
  if (options.on_rank) options.on_rank((*client)->rank());
  std::optional<TcpListener> for_tcp;
  if ((*client)->plan().options.comm_engine == "tcp") for_tcp = *std::move(listener);
  const absl::Status status = Train(**client, options.host, std::move(for_tcp));
  const bool is_heard = (*client)->Goodbye(status);
  return {status, is_heard};
}

}  // namespace omni::trainer
