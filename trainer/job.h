// The coordinator's side of a job: the run directory, what is written there, what is printed.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/base/metrics.h"
#include "scheduler/coordinator.h"
#include "trainer/recipe.h"
#include "trainer/report/reporter.h"
#include "trainer/resume_check.h"
#include "trainer/run_lock.h"

namespace omni::trainer {

enum class JobEnd {
  kFinished,  // nothing is left to do
  kStopped,   // on request: the same command goes on
};

struct JobOptions {
  Recipe recipe;
  std::string recipe_path;
  std::string run_dir;
  std::string address = "127.0.0.1:0";  // of the coordinator
  bool terminal = false;                // stdout is one on which lines can be rewritten
  std::vector<std::string> allow = {};  // keys that may differ from the run's (resume_rules.h)
};

// The run directory of a job and the coordinator that serves it:
//
//   recipe.yaml resolved.yaml recipes/ plan.yaml metrics.jsonl tensorboard/ logs/ traces/
//   checkpoints/
class Job {
 public:
  // Creates the directory, or takes up what is there. Errors as RunLock; InvalidArgument if what is
  // there can't go on with the recipe (resume_rules.h), before anything there is written over.
  static absl::StatusOr<std::unique_ptr<Job>> Start(JobOptions options);
  ~Job();

  const std::string& address() const { return coordinator_->address(); }
  scheduler::Coordinator& coordinator() { return *coordinator_; }
  void Print(const std::string& text) { reporter_->Print(text); }  // above the progress line
  // How long workers may take to register.
  absl::Duration join_limit() const;
  // Blocks until the job has ended and its metrics are written; prints how. DeadlineExceeded if
  // they can't be.
  absl::StatusOr<JobEnd> Wait();

 private:
  explicit Job(JobOptions options);
  absl::StatusOr<ResumeDecision> Prepare();
  bool OnStep(const scheduler::StepRecord& record);
  void CountTokens(double tokens);
  void OnNotice(int32_t rank, const std::string& kind, const std::string& text);

  JobOptions options_;
  std::unique_ptr<RunLock> lock_;  // held while the job runs
  std::unique_ptr<JobReporter> reporter_;
  std::unique_ptr<MetricsServer> metrics_;
  std::atomic<int64_t> last_step_{0};
  // Most tokens that any leg of the run has reported; rank 0's reports come one after the other.
  double tokens_counted_ = 0;
  std::mutex end_mutex_;
  std::string end_;  // kind of rank 0's last notice: "finished", "already finished", "stopped"
  std::unique_ptr<scheduler::Coordinator> coordinator_;
};

}  // namespace omni::trainer
