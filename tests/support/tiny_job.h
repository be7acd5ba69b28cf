// A job small enough for tests: the quickstart's data at a fiftieth, and a model of every part
// with a few thousand parameters.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace omni::test {

// Makes the data once per process, in the test's temporary folder; returns where they are.
const std::string& TinyData();

struct TinyRecipe {
  int64_t steps = 12;
  int32_t workers = 1;
  int32_t threads = 1;
  int32_t lanes = 4;
  int32_t micro_batch_sequences = 1;
  std::string comm = "shm";
  std::string device = "cpu", gpu_comm = "auto";
  std::string dtype = "fp64";
  std::string optimizer = "muon";
  int64_t checkpoint_every = 0;
  // Sources drawn from, with weights; phases as in a recipe, e.g. "[{until_step: 3, ...}]".
  std::string sources = "[image, audio, video, text, mixed]";
  std::string phases = "[]";
  std::string moe;             // the decoder's `moe` section, "{experts: 4, ...}"; none: dense
  std::string extra_parallel;  // "pipeline: 2, "
  std::string extra_training;  // further lines under `training:`, indented by two
  std::string extra;           // further top-level lines
};

// The YAML of such a recipe, over TinyData().
std::string TinyRecipeYaml(const TinyRecipe& recipe);

// Lines of a metrics.jsonl that have a loss: step -> values as written (so that equal text means
// equal bits).
std::map<int64_t, std::map<std::string, std::string>> ReadMetrics(const std::string& path);

}  // namespace omni::test
