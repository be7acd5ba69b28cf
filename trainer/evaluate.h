// Exact-match accuracy on held-out sources: teacher forced, an answer counts when every one of
// its tokens is the model's most likely one.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "dataloader/eval_loader.h"
#include "dataloader/sample_tally.h"
#include "runtime/base/limits.h"
#include "runtime/base/log.h"
#include "runtime/base/progress.h"
#include "runtime/comm/communicator.h"
#include "runtime/device/exec_context.h"
#include "trainer/pipeline/executor.h"

namespace omni::trainer {

struct Score {
  int64_t samples = 0;
  int64_t exact = 0;  // every answer token right
  int64_t tokens = 0;
  double loss_sum = 0.0;  // over answer tokens

  Score& operator+=(const Score& other);
  // Of nothing there is neither.
  std::optional<double> accuracy() const;
  std::optional<double> loss() const;
};

struct SourceScore {
  // More groups than this are no groups: those of fewest samples are together in kOther, as are
  // those whose name is long or of several lines.
  static constexpr size_t kMaxGroups = 32;
  static constexpr size_t kMaxGroupBytes = 64;
  static constexpr const char* kOther = "other";
  static constexpr const char* kNone = "none";  // of samples without the key

  std::string source;
  Score all;
  std::map<std::string, Score> by_group;  // by the value of EvalConfig::group_by; empty without one
  dataloader::SampleTally left_out;       // of this source
};

struct EvaluateOptions {
  dataloader::Blind blind = dataloader::Blind::kNone;
  std::shared_ptr<dataloader::Storage> storage;  // null: nothing is tried again
  Logger* log = nullptr;                         // names every sample left out; may be null
  Limits limits = Limits::From(30);
  // Ticked while this rank waits for its samples, as they get ready; may be null.
  Progress* progress = nullptr;
  // Asked before each microbatch: once it is true on any rank, all end with Cancelled. May be
  // empty.
  std::function<bool()> stops = {};
};

// Over every eval source of `data`. Collective over `comm` (null: alone), which has the ranks that
// `executor` describes; all ranks get the sums. Replicas of the decoder share the samples. If the
// data fail on one rank all return: that one its failure, the others Aborted.
absl::StatusOr<std::vector<SourceScore>> Evaluate(const ExecutorOptions& executor,
                                                  const dataloader::DataConfig& data,
                                                  Communicator* comm,
                                                  const EvaluateOptions& options);

// A table for people: a line per source and, where there are several, per group; "-" where nothing
// was scored. Below it what was left out.
std::string FormatScores(const std::vector<SourceScore>& scores, const std::string& title);
// "eval/image/accuracy" -> 0.93 etc., for metrics; NaN where nothing was scored. Also ".../samples"
// and ".../left_out/overlong" and the like, where there are any.
std::map<std::string, double> ScoreValues(const std::vector<SourceScore>& scores);
// FailedPrecondition, saying what became of the samples, if no source has a score.
absl::Status CheckScored(const std::vector<SourceScore>& scores);

// Folds what is too much or no name into kOther; in tests.
std::map<std::string, Score> BoundGroups(const std::map<std::string, Score>& groups);

}  // namespace omni::trainer
