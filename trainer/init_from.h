// Weights of one run for another: `training.init_from`.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "trainer/recipe.h"

namespace omni::trainer {

// A checkpoint that is there, and what made it.
struct SavedRun {
  int64_t step = -1;      // -1: there is none
  std::string path;       // of the checkpoint
  std::string state;      // its state.json
  std::string recipe;     // resolved; "" if none can be read
  std::string recipe_at;  // the file that has it, for messages
};

// The newest checkpoint in a run directory whose state can be read; step -1 if there is none. Its
// recipe is that of the checkpoint, or else the run directory's. FileError: storage does not
// answer, which is no reason to take an older one.
absl::StatusOr<SavedRun> NewestOf(const std::string& run_dir);

// `from`: a run directory (its newest), RUN@STEP or a checkpoint's folder. NotFound, naming the
// steps there are.
absl::StatusOr<SavedRun> FindSaved(const std::string& from);

// Before a job starts: that there are weights for `recipe` in its training.init_from, of a model
// that computes the same. NotFound or InvalidArgument; keys in `allowed` may differ where shapes
// agree. Returns what was found.
absl::StatusOr<SavedRun> CheckInitFrom(const Recipe& recipe, absl::Span<const std::string> allowed);

}  // namespace omni::trainer
