// The recipe's `training.optimizer`, `training.schedule`, `training.modules` and
// `training.phases`: how parameters are updated, at which rate, and which parts at all.
//
//   optimizer: {kind: muon, lr: 2.5e-3, betas: [0.9, 0.98], weight_decay: 0.05, clip: 1.0}
//   schedule: {kind: linear, warmup_steps: 40, final_fraction: 0.02}
//   modules: {vision: {lr_scale: 0.1}, audio: {frozen: true}}
//   phases:
//   - {until_step: 200, modules: {decoder: {frozen: true}}}
//   - {until_tokens: 1_000_000_000, lr: 1e-4, final_lr: 1e-5, schedule: {kind: cosine}}
//   - {lr: 1e-5, schedule: {kind: constant}}   # to the end
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "parallel/flat_storage.h"
#include "runtime/base/config.h"

namespace omni::trainer {

struct OptimizerConfig {
  enum class Kind : uint8_t { kAdamW, kMuon };
  Kind kind = Kind::kAdamW;
  double lr = 3e-4;
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
  double weight_decay = 0.1;
  double momentum = 0.95;  // Muon's
  int32_t newton_schulz_steps = 5;
  double clip = 1.0;               // global gradient norm; 0: no clipping
  int32_t max_skipped_steps = 10;  // non-finite gradients in a row before the job stops

  parallel::UpdateRule RuleOf(const parallel::ParameterSpec& spec) const;
};
absl::Status Read(const ConfigNode& node, OptimizerConfig* out);

struct ScheduleConfig {
  enum class Kind : uint8_t { kConstant, kLinear, kCosine, kWsd };
  Kind kind = Kind::kCosine;
  int64_t warmup_steps = 0;     // from 0 up to the full rate
  double final_fraction = 0.0;  // of the full rate, at the last step
  int64_t decay_steps = 0;      // kWsd: length of the final decay
};
absl::Status Read(const ConfigNode& node, ScheduleConfig* out);

// The factor on the learning rate in step `step` (0-based) of `num_steps`. Warm-up: (step + 1) /
// warmup_steps. Then from 1 to final_fraction: linear, cosine, or (WSD, Hu et al. 2024, arXiv
// 2404.06395) constant until the last decay_steps, then linear.
double ScheduleFactor(const ScheduleConfig& schedule, int64_t step, int64_t num_steps);

struct TrainingPhase;

// The learning rate in step `step`: the phase's, if one holds and says something about it.
double LearningRate(const OptimizerConfig& optimizer, const ScheduleConfig& schedule,
                    const std::vector<TrainingPhase>& phases, int64_t step, int64_t num_steps);

struct ModuleConfig {
  double lr_scale = 1.0;
  bool frozen = false;
};
absl::Status Read(const ConfigNode& node, ModuleConfig* out);

// A stretch of training with rates and frozen parts of its own; the optimizer's state goes on.
struct TrainingPhase {
  // Where it ends: a step, or nominal tokens (lanes * sequence_length of every step so far), made a
  // step by the recipe. The last phase may have neither and lasts to the end.
  int64_t until_step = 0;
  int64_t until_tokens = 0;
  std::vector<std::pair<std::string, ModuleConfig>> modules;  // while it lasts, on top
  std::optional<double> lr;                                   // absent: the optimizer's
  // Over the phase's own steps; absent: the recipe's schedule goes on, over all steps.
  std::optional<ScheduleConfig> schedule;
};
absl::Status Read(const ConfigNode& node, TrainingPhase* out);

// What holds for each module at each step. A setting for "vision" holds for "vision.merger"
// unless that has its own.
class ModuleSchedule {
 public:
  ModuleSchedule() = default;
  ModuleSchedule(std::vector<std::pair<std::string, ModuleConfig>> base,
                 std::vector<TrainingPhase> phases)
      : base_(std::move(base)), phases_(std::move(phases)) {}

  ModuleConfig At(const std::string& module, int64_t step) const;
  // Is it trained in any step below num_steps?
  bool EverTrained(const std::string& module, int64_t num_steps) const;
  // Does the set of frozen modules change between step - 1 and step?
  bool ChangesAt(int64_t step) const;
  // Every module name that is mentioned, to be checked against the model's.
  std::vector<std::string> Mentioned() const;

 private:
  std::vector<std::pair<std::string, ModuleConfig>> base_;
  std::vector<TrainingPhase> phases_;
};

}  // namespace omni::trainer
