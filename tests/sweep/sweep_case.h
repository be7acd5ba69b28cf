// One case of the equivalence sweep: a job, which one rank could do alone, and a plan for several
// ranks. Both are a choice of one level for each of their features, by name; a recipe follows from
// the names.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace omni::test {

// A feature and the names of its levels, the plainest first.
struct Feature {
  const char* name;
  std::vector<const char*> levels;
};

// Level by feature.
using Levels = std::map<std::string, std::string>;

// What one rank's result depends on: model, data, training.
const std::vector<Feature>& JobFeatures();
// "moe=shared vision=qwen3" -> all features, those not mentioned at their first level.
// InvalidArgument naming what is unknown.
absl::StatusOr<Levels> ParseJob(absl::string_view text);
// Whether the levels make sense together.
bool IsJob(const Levels& job);

// The `parallel:` section of a recipe in words, and what goes with it.
struct SweepPlan {
  int32_t workers = 1, pipeline = 1, chunks_per_rank = 1;
  std::string schedule = "1f1b";
  std::vector<int32_t> layers;  // of each chunk; empty: even
  int32_t tensor = 1, context = 1, expert = 1;
  std::string context_kind = "ring";
  int32_t ring_threshold = 0;
  std::string recompute = "none", weights = "replicated";
  std::string joint = "uniform";
  int32_t q = 1, groups_ahead = 1;
  std::string rounds = "whole";  // how rows travel: whole (so small), or in rounds: half, tenth
  struct Encoder {
    int32_t sequence = 1;
    std::string threshold = "auto", weights = "replicated", recompute = "none";
  };
  std::map<std::string, Encoder> encoders;
  int32_t micro_batch_sequences = 1;
  std::string comm = "shm";

  int32_t data() const { return workers / (pipeline * context * tensor); }
  // The inside of the section, without what is at its default.
  std::string ToYaml() const;
};

// A whole recipe over the data in `data_dir`. `parallel`: the inside of its section.
struct RecipeOptions {
  std::string data_dir;
  std::string parallel = "workers: 1";
  int32_t micro_batch_sequences = 1;
  std::string dtype = "fp64", device = "cpu", comm = "shm", gpu_comm = "auto";
  int64_t steps = 3;
};
std::string SweepRecipe(const Levels& job, const RecipeOptions& options);

// Facts of a job that plans must fit.
struct JobShape {
  int32_t layers, heads, kv_heads, experts, lanes;
  bool has_vision, has_audio;
};
JobShape ShapeOf(const Levels& job);

}  // namespace omni::test
