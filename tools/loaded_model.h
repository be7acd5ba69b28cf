// A trained or published model in this process, to be looked at: a Hugging Face folder, a run
// directory (its newest checkpoint), or one checkpoint of a run.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "trainer/recipe.h"
#include "trainer/trainer.h"

namespace omni::tools {

struct RunCheckpoint {
  std::string run_dir;
  std::string checkpoint;  // a folder with manifest.json
};
// `path`: a run directory or one of its checkpoints. NotFound if it is neither, or has none.
absl::StatusOr<RunCheckpoint> FindCheckpoint(const std::string& path);

// The recipe of the model at `path`, whose only source is the conversation file. For a Hugging
// Face folder it is made from its configurations, with transformers' own loss; other parts have
// their defaults.
absl::StatusOr<trainer::Recipe> RecipeFor(const std::string& path, const std::string& conversation,
                                          absl::Span<const std::string> overrides);

class LoadedModel {
 public:
  // With `gradients` there is memory for those of every parameter.
  static absl::StatusOr<std::unique_ptr<LoadedModel>> Load(trainer::Recipe recipe,
                                                           const std::string& path, bool gradients);

  trainer::Trainer& trainer() { return *trainer_; }
  const trainer::MultimodalModel& model() const { return trainer_->model(); }

 private:
  LoadedModel() = default;
  KernelRegistry kernels_;
  std::unique_ptr<trainer::Trainer> trainer_;
};

}  // namespace omni::tools
