// One microbatch at a time forward through all chunks, for evaluation of models that lie over
// several ranks.
//
// Ranks of the first stage encode what their replica's microbatch needs themselves, whole, and keep
// the rows of their own tokens: no sample travels, at the price of encoding it once on each of
// them.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "dataloader/batch.h"
#include "trainer/pipeline/executor.h"

namespace omni::trainer {

struct TokenScores {
  // Of all the pack's tokens; without a target 0 and -1. Empty but on the first rank of those that
  // share the replica's sequences on the stage with the head.
  std::vector<double> losses;
  std::vector<int32_t> argmax;
};

class Scorer {
 public:
  // As the executor's, which it has to itself.
  explicit Scorer(const ExecutorOptions& options) : options_(options), executor_(options) {}

  // All ranks of the job call alike; those of a replica with the same microbatch, with its media,
  // which may be empty.
  absl::StatusOr<TokenScores> Score(const dataloader::Microbatch& microbatch);

 private:
  parallel::ReshardPlan PlanFor(const dataloader::Microbatch& microbatch) const;
  parallel::Program ForwardProgram() const;
  absl::Status SumOverSequence(TokenScores* scores);

  const ExecutorOptions options_;
  Executor executor_;
};

}  // namespace omni::trainer
