// What the coordinator makes of a recipe for a run directory that has checkpoints, before anything
// there is written over.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "trainer/recipe.h"

namespace omni::trainer {

struct ResumeDecision {
  absl::Status status;     // InvalidArgument: the recipe may not go on here
  std::string text;        // to print and to keep; "": nothing has changed
  int64_t begin_step = 0;  // steps done when this leg begins
  std::string state;       // state.json of the checkpoint it begins from; "": there is none
};
// `allow`: keys of --allow.
ResumeDecision DecideResume(const std::string& run_dir, const Recipe& recipe,
                            absl::Span<const std::string> allow);

// After acceptance: recipe.yaml, resolved.yaml and recipes/step-N.yaml, each at once or not at all;
// `text` goes to logs/recipes.log.
absl::Status KeepRecipe(const std::string& run_dir, const std::string& recipe_text,
                        const Recipe& recipe, const ResumeDecision& decision);

}  // namespace omni::trainer
