// Exact-match accuracy on held-out sources: teacher forced, an answer counts when every one of
// its tokens is the model's most likely one.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "dataloader/eval_loader.h"
#include "runtime/comm/communicator.h"
#include "runtime/device/exec_context.h"
#include "trainer/pipeline/executor.h"

namespace omni::trainer {

struct Score {
  int64_t samples = 0;
  int64_t exact = 0;  // every answer token right
  int64_t tokens = 0;
  double loss_sum = 0.0;  // over answer tokens

  double accuracy() const { return samples == 0 ? 0.0 : static_cast<double>(exact) / samples; }
  double loss() const { return tokens == 0 ? 0.0 : loss_sum / static_cast<double>(tokens); }
};

struct SourceScore {
  std::string source;
  Score all;
  std::map<std::string, Score> by_question;
};

struct EvaluateOptions {
  dataloader::Blind blind = dataloader::Blind::kNone;
  absl::Duration deadline = absl::Seconds(30);
};

// Over every eval source of `data`. Collective over `comm` (null: alone), which has the ranks that
// `executor` describes; all ranks get the sums. Replicas of the decoder share the samples.
absl::StatusOr<std::vector<SourceScore>> Evaluate(const ExecutorOptions& executor,
                                                  const dataloader::DataConfig& data,
                                                  Communicator* comm,
                                                  const EvaluateOptions& options);

// A table for people: a line per source and, where there are several, per question.
std::string FormatScores(const std::vector<SourceScore>& scores, const std::string& title);
// "eval/image/accuracy" -> 0.93 etc., for metrics.
std::map<std::string, double> ScoreValues(const std::vector<SourceScore>& scores);

}  // namespace omni::trainer
