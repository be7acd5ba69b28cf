// What a trainer tells whoever watches over it, and what it hears back. The control plane
// implements it for real jobs; by default nobody listens.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "absl/status/status.h"

namespace omni::trainer {

// Kinds of the notice that rank 0 gives when it ends well, the number of steps done as its text:
// nothing is left to do; nothing was; or the same command has more to do.
inline constexpr char kFinished[] = "finished", kAlreadyFinished[] = "already finished",
                      kStopped[] = "stopped";
// And before its first step, with the steps that the checkpoint has: what was reported beyond them
// gives way to what comes now.
inline constexpr char kResumed[] = "resumed";

class WorkerLink {
 public:
  virtual ~WorkerLink() = default;

  virtual void SetProgress(int64_t /*step*/, const std::string& /*phase*/) {}
  // True once the job should end after the running step.
  virtual bool stop_requested() { return false; }
  // Not OK once the job has failed elsewhere.
  virtual absl::Status job_status() { return absl::OkStatus(); }
  // Rank 0, after each step.
  virtual void ReportStep(int64_t /*step*/, const std::map<std::string, double>& /*values*/) {}
  virtual void Notice(const std::string& /*kind*/, const std::string& /*text*/) {}
};

}  // namespace omni::trainer
