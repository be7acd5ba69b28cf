// A recipe, read: what a person wrote, checked as far as it can be without touching data.
//
// Each folder reads its own section; here they meet, and what must agree between sections (patch
// sizes, mel bands, module names) is checked.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "dataloader/data_config.h"
#include "parallel/parallel_config.h"
#include "runtime/base/config.h"
#include "runtime/tensor/dtype.h"
#include "scheduler/plan.h"
#include "trainer/fault.h"
#include "trainer/optimizer/optimizer_config.h"

namespace omni::trainer {

class MultimodalModel;  // trainer/assemble.h

struct CheckpointConfig {
  int64_t every = 0;  // steps; 0: only at the end and when stopped
  int32_t keep = 2;   // newest kept; 0: all
  // Each checkpoint also as a folder that transformers loads, in its subfolder "huggingface".
  bool export_huggingface = false;
};
absl::Status Read(const ConfigNode& node, CheckpointConfig* out);

struct TrainingConfig {
  int64_t steps = 0;
  uint64_t seed = 1;
  DType dtype = DType::kFloat32;
  OptimizerConfig optimizer;
  ScheduleConfig schedule;
  std::vector<std::pair<std::string, ModuleConfig>> modules;
  std::vector<TrainingPhase> phases;  // until_step is set in all, and grows
  int64_t eval_every = 0;             // steps; 0: at the end only
  bool eval_at_end = true;
  CheckpointConfig checkpoint;
  // Where a run without checkpoints takes its weights: RUN, RUN@STEP or a checkpoint's folder
  // (trainer/init_from.h). "": they are initial, or of model.from.
  std::string init_from;
  bool init_optimizer = false;  // and the optimizer's moments

  double LearningRate(int64_t step) const {
    return trainer::LearningRate(optimizer, schedule, phases, step, steps);
  }
};
absl::Status Read(const ConfigNode& node, TrainingConfig* out);

// Tensors of GPUs between ranks: over NCCL (one GPU a rank), or through host memory over `comm`.
// auto: NCCL between GPUs where the plugin has it, else host memory.
enum class GpuComm { kAuto, kNccl, kHost };

struct RuntimeConfig {
  DeviceKind device = DeviceKind::kCpu;
  int32_t threads = 1;       // per worker
  double reserve_gib = 4.0;  // page pool per worker
  std::string comm =
      "auto";  // shm: workers of one machine; tcp; auto: which it is, by where they are
  GpuComm gpu_comm = GpuComm::kAuto;
  double deadline_s = 30.0;  // the one deadline; the others derive from it
  FaultConfig fault;         // for tests
};
absl::Status Read(const ConfigNode& node, RuntimeConfig* out);

struct ObserveConfig {
  bool prometheus = true;
  // Where metrics are served. "": a worker on its --host, the coordinator on the host of its
  // --address, so on 127.0.0.1 unless they are told otherwise (trainer/metrics_host.h).
  std::string metrics_host;
  int32_t metrics_port = 0;  // of the coordinator; workers take the ports after it; 0: any
  bool tensorboard = true;
  std::vector<int32_t> trace_steps;
};
absl::Status Read(const ConfigNode& node, ObserveConfig* out);

struct Recipe {
  std::string name = "run";
  ConfigNode model;        // read by MultimodalModel
  std::string pretrained;  // model.from: a Hugging Face folder to start from; "" for none
  dataloader::DataConfig data;
  TrainingConfig training;
  parallel::ParallelConfig parallel;
  RuntimeConfig runtime;
  ObserveConfig observe;
  std::string yaml;  // with overrides applied
  // Of the layout that `parallel` makes of this model.
  std::string decoder_mesh;    // "pipeline 2 x data 2 x tensor 2"
  int32_t sequence_ranks = 1;  // that share a replica's sequences on a stage

  ModuleSchedule modules() const { return {training.modules, training.phases}; }
  scheduler::PlanOptions plan_options() const;
  // Of `parallel` for this model; reading the recipe has checked it.
  parallel::Layout layout(const MultimodalModel& model) const;
};

// NotFound or InvalidArgument with file, line and key. With `model: {from: DIR}` the folder's
// config.json fills whatever the recipe leaves open in `model` and `data`, and the result is what
// `yaml` holds: nothing reads the folder's configuration again.
absl::StatusOr<Recipe> LoadRecipe(const std::string& path, absl::Span<const std::string> overrides);
// The same from text.
absl::StatusOr<Recipe> LoadRecipeText(const std::string& yaml, const std::string& file_name,
                                      absl::Span<const std::string> overrides);
// From text that was resolved before (a worker's copy).
absl::StatusOr<Recipe> ParseRecipe(const std::string& yaml, const std::string& file_name);
// Every key that readers of such a text know, and what it comes to (ConfigRecording).
absl::StatusOr<std::map<std::string, std::string>> ReadRecipeValues(const std::string& yaml,
                                                                    const std::string& file_name);

}  // namespace omni::trainer
