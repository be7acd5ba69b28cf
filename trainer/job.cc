#include "trainer/job.h"

#include <algorithm>
#include <filesystem>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "runtime/base/address.h"
#include "runtime/base/file.h"
#include "runtime/base/limits.h"
#include "runtime/base/status.h"
#include "runtime/base/text.h"
#include "scheduler/plan.h"
#include "trainer/huggingface/export.h"
#include "trainer/metrics_host.h"
#include "trainer/report/read_metrics.h"
#include "trainer/worker_link.h"

namespace omni::trainer {
namespace {

namespace fs = std::filesystem;

// Prometheus' names have base units and no abbreviations, and _total is for counters.
void ToBaseUnit(std::string* name, double* value) {
  if (absl::EndsWith(*name, "_ms")) {
    *name = absl::StrCat(name->substr(0, name->size() - 3), "_seconds");
    *value /= 1e3;
  } else if (*name == "tokens_per_s") {
    *name = "tokens_per_second";
  } else if (*name == "tokens_total") {
    *name = "tokens_seen";
  }
}

// A prometheus name out of "loss/image": omnitrain_job_loss_part{part="image"}.
void Export(MetricsServer& metrics, std::string name, double value) {
  const size_t slash = name.find('/');
  // What follows the slash is a name that others gave: "_ms" is no unit there.
  if (slash == std::string::npos) ToBaseUnit(&name, &value);
  if (slash == std::string::npos) {
    metrics.Set("omnitrain_job_" + name, "Last value reported by rank 0", {}, value);
  } else {
    metrics.Set("omnitrain_job_" + name.substr(0, slash) + "_part",
                "Last value reported by rank 0, by part", {{"part", name.substr(slash + 1)}},
                value);
  }
}

}  // namespace

Job::Job(JobOptions options) : options_(std::move(options)) {}

Job::~Job() { coordinator_.reset(); }

absl::StatusOr<std::unique_ptr<Job>> Job::Start(JobOptions options) {
  std::unique_ptr<Job> job(new Job(std::move(options)));
  OMNI_ASSIGN_OR_RETURN(ResumeDecision decision, job->Prepare());
  const Recipe& recipe = job->options_.recipe;
  OMNI_ASSIGN_OR_RETURN(const scheduler::JobPlan plan, scheduler::MakePlan(recipe.plan_options()));
  OMNI_RETURN_IF_ERROR(WriteFileAtomically(job->options_.run_dir + "/plan.yaml", plan.ToYaml()));
  if (recipe.observe.prometheus) {
    OMNI_ASSIGN_OR_RETURN(const HostPort own, ParseHostPort(job->options_.address));
    const MetricsHost host = MetricsHostFor(recipe.observe.metrics_host, own.host);
    auto server = MetricsServer::Create(
        {.address = absl::StrCat(host.listen, ":", recipe.observe.metrics_port),
         .labels = {{"job", recipe.name}, {"role", "coordinator"}}});
    if (!server.ok()) return Annotate(server.status(), "observe.metrics_port");
    job->metrics_ = *std::move(server);
    job->metrics_->Set("omnitrain_job_workers", "Workers the plan asks for", {},
                       recipe.parallel.workers);
    job->CountTokens(job->tokens_counted_);
    OMNI_RETURN_IF_ERROR(WriteFileAtomically(
        job->options_.run_dir + "/metrics_addresses.txt",
        absl::StrFormat("coordinator %s:%d\n", host.reach, job->metrics_->port())));
  }
  Job* self = job.get();
  OMNI_ASSIGN_OR_RETURN(
      job->coordinator_,
      scheduler::Coordinator::Create(
          {.address = job->options_.address,
           .plan = plan,
           .recipe_yaml = recipe.yaml,
           .run_dir = fs::absolute(job->options_.run_dir).string(),
           .saved_step = decision.begin_step,
           .saved_state = std::move(decision.state),
           .heartbeat_deadline = Limits::From(recipe.runtime.deadline_s).heartbeat,
           .join_limit = job->join_limit()},
          {.on_step = [self](const scheduler::StepRecord& record) { return self->OnStep(record); },
           .on_notice = [self](int32_t rank, const std::string& kind,
                               const std::string& text) { self->OnNotice(rank, kind, text); },
           .on_register = nullptr}));
  return job;
}

absl::StatusOr<ResumeDecision> Job::Prepare() {
  const std::string& dir = options_.run_dir;
  std::error_code error;
  OMNI_ASSIGN_OR_RETURN(lock_, RunLock::Take(dir));
  ResumeDecision decision = DecideResume(dir, options_.recipe, options_.allow);
  OMNI_RETURN_IF_ERROR(decision.status);
  OMNI_ASSIGN_OR_RETURN(const std::string recipe_text, ReadFile(options_.recipe_path));
  OMNI_RETURN_IF_ERROR(KeepRecipe(dir, recipe_text, options_.recipe, decision));
  if (!options_.recipe.pretrained.empty() && !fs::exists(dir + "/huggingface", error)) {
    OMNI_ASSIGN_OR_RETURN(const auto pretrained, PretrainedModel::Open(options_.recipe.pretrained));
    OMNI_RETURN_IF_ERROR(KeepModelFiles(*pretrained, dir));
  }
  OMNI_ASSIGN_OR_RETURN(reporter_,
                        JobReporter::Create({.run_dir = dir,
                                             .num_steps = options_.recipe.training.steps,
                                             .terminal = options_.terminal,
                                             .tensorboard = options_.recipe.observe.tensorboard}));
  if (!lock_->note().empty()) reporter_->Print(absl::StrCat("warning: ", lock_->note()));
  if (!decision.text.empty()) reporter_->Print(decision.text);
  tokens_counted_ = TokensReported(dir + "/metrics.jsonl");
  return decision;
}

void Job::CountTokens(double tokens) {
  metrics_->Add("omnitrain_job_tokens_total",
                "Tokens that the run was trained on; steps done again after a crash count once", {},
                tokens);
}

bool Job::OnStep(const scheduler::StepRecord& record) {
  if (!reporter_->Step(record.step, record.values)) return false;
  if (record.values.count("loss") > 0) last_step_ = record.step;
  if (metrics_ != nullptr) {
    metrics_->Set("omnitrain_job_step", "Steps done", {}, static_cast<double>(record.step));
    const auto tokens = record.values.find("tokens_total");
    if (tokens != record.values.end() && tokens->second > tokens_counted_) {
      CountTokens(tokens->second - tokens_counted_);
      tokens_counted_ = tokens->second;
    }
    for (const auto& [name, value] : record.values) {
      if (!absl::StartsWith(name, "eval/")) Export(*metrics_, name, value);
    }
  }
  return true;
}

void Job::OnNotice(int32_t rank, const std::string& kind, const std::string& text) {
  if (kind == "metrics") {
    // A word of a line that others read.
    if (text.find_first_of(" \t") != std::string::npos || Printable(text) != text) return;
    reporter_->AddMetricsAddress(absl::StrCat("rank-", rank, " ", text));
    return;
  }
  if (kind == kFinished || kind == kAlreadyFinished || kind == kStopped) {
    int64_t step = 0;
    if (absl::SimpleAtoi(text, &step)) last_step_ = step;
    const std::lock_guard<std::mutex> lock(end_mutex_);
    end_ = kind;
    return;
  }
  if (kind == kResumed) {
    int64_t step = 0;
    if (absl::SimpleAtoi(text, &step)) reporter_->Begin(step + 1);
    return;
  }
  if (kind == "warning") {
    reporter_->Print(absl::StrCat("warning: rank ", rank, ": ", PrintableLines(text)));
  } else {
    reporter_->Print(PrintableLines(text));
  }
}

absl::Duration Job::join_limit() const {
  return scheduler::PatienceFor(absl::Seconds(options_.recipe.runtime.deadline_s));
}

absl::StatusOr<JobEnd> Job::Wait() {
  absl::Status status = coordinator_->Wait();
  // Of a failure a person should hear soon.
  const absl::Duration deadline = absl::Seconds(options_.recipe.runtime.deadline_s);
  status.Update(reporter_->FinishMetrics(status.ok() ? std::max(deadline, absl::Seconds(10))
                                                     : absl::Seconds(5)));
  if (!status.ok()) {
    reporter_->FinishTerminal("");
    return status;
  }
  std::string end;
  {
    const std::lock_guard<std::mutex> lock(end_mutex_);
    end = end_;
  }
  // It stopped before rank 0 had a word.
  if (end.empty()) end = last_step_ >= options_.recipe.training.steps ? kFinished : kStopped;
  reporter_->FinishTerminal(absl::StrFormat(
      "%s %s; run directory %s%s", end,
      last_step_ == 0 ? "before a step was done" : absl::StrCat("at step ", last_step_.load()),
      options_.run_dir, end == kStopped ? "; the same command goes on from there" : ""));
  return end == kStopped ? JobEnd::kStopped : JobEnd::kFinished;
}

}  // namespace omni::trainer
