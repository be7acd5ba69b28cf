#include "trainer/optimizer/optimizer_config.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <optional>

namespace omni::trainer {

parallel::UpdateRule OptimizerConfig::RuleOf(const parallel::ParameterSpec& spec) const {
  switch (spec.optimizer) {
    case parallel::OptimizerClass::kMatrix:
      return kind == Kind::kMuon ? parallel::UpdateRule::kMuon : parallel::UpdateRule::kAdamW;
    case parallel::OptimizerClass::kEmbedding:
      return parallel::UpdateRule::kAdamW;
    case parallel::OptimizerClass::kVector:
      return parallel::UpdateRule::kAdamWNoDecay;
    case parallel::OptimizerClass::kFixed:
      return parallel::UpdateRule::kFixed;
  }
  return parallel::UpdateRule::kAdamW;
}

absl::Status Read(const ConfigNode& node, OptimizerConfig* out) {
  ConfigReader reader(node);
  reader.ReadEnum(
      "kind", &out->kind,
      {{"adamw", OptimizerConfig::Kind::kAdamW}, {"muon", OptimizerConfig::Kind::kMuon}});
  reader.Read("lr", &out->lr, NonNegative());
  std::vector<double> betas = {out->beta1, out->beta2};
  reader.Read("betas", &betas, Between(0, 1));
  if (betas.size() != 2 || betas[0] >= 1 || betas[1] >= 1) {
    reader.Keep(reader.Error("betas", "expected two numbers in [0, 1)"));
  } else {
    out->beta1 = betas[0];
    out->beta2 = betas[1];
  }
  reader.Read("eps", &out->eps, Positive());
  reader.Read("weight_decay", &out->weight_decay, NonNegative());
  reader.Read("momentum", &out->momentum, Between(0, 1));
  reader.Read("newton_schulz_steps", &out->newton_schulz_steps, Between(1, 20));
  reader.Read("clip", &out->clip, NonNegative());
  reader.Read("max_skipped_steps", &out->max_skipped_steps, NonNegative());
  return reader.Finish();
}

absl::Status Read(const ConfigNode& node, ScheduleConfig* out) {
  ConfigReader reader(node);
  reader.ReadEnum("kind", &out->kind,
                  {{"constant", ScheduleConfig::Kind::kConstant},
                   {"linear", ScheduleConfig::Kind::kLinear},
                   {"cosine", ScheduleConfig::Kind::kCosine},
                   {"wsd", ScheduleConfig::Kind::kWsd}});
  reader.Read("warmup_steps", &out->warmup_steps, NonNegative());
  reader.Read("final_fraction", &out->final_fraction, Between(0, 1));
  reader.Read("decay_steps", &out->decay_steps, NonNegative());
  if (out->kind == ScheduleConfig::Kind::kWsd && out->decay_steps == 0) {
    reader.Keep(reader.Error("kind: wsd needs decay_steps, the length of the final decay"));
  }
  return reader.Finish();
}

double ScheduleFactor(const ScheduleConfig& schedule, int64_t step, int64_t num_steps) {
  if (step < schedule.warmup_steps) {
    return static_cast<double>(step + 1) / static_cast<double>(schedule.warmup_steps);
  }
  const double low = schedule.final_fraction;
  // From 0 at `from` to 1 at the last step.
  const auto progress = [&](int64_t from) {
    const double length = static_cast<double>(std::max<int64_t>(1, num_steps - 1 - from));
    return std::clamp(static_cast<double>(step - from) / length, 0.0, 1.0);
  };
  switch (schedule.kind) {
    case ScheduleConfig::Kind::kConstant:
      return 1.0;
    case ScheduleConfig::Kind::kLinear:
      return 1.0 - (1.0 - low) * progress(schedule.warmup_steps);
    case ScheduleConfig::Kind::kCosine:
      return low + (1.0 - low) * 0.5 *
                       (1.0 + std::cos(std::numbers::pi * progress(schedule.warmup_steps)));
    case ScheduleConfig::Kind::kWsd: {
      const int64_t from = std::max(schedule.warmup_steps, num_steps - schedule.decay_steps);
      return step < from ? 1.0 : 1.0 - (1.0 - low) * progress(from);
    }
  }
  return 1.0;
}

absl::Status Read(const ConfigNode& node, ModuleConfig* out) {
  ConfigReader reader(node);
  reader.Read("lr_scale", &out->lr_scale, NonNegative());
  reader.Read("frozen", &out->frozen);
  return reader.Finish();
}

absl::Status Read(const ConfigNode& node, TrainingPhase* out) {
  ConfigReader reader(node);
  reader.Read("until_step", &out->until_step, Positive());
  reader.Read("until_tokens", &out->until_tokens, Positive());
  if (out->until_step > 0 && out->until_tokens > 0) {
    reader.Keep(reader.Error("expected until_step or until_tokens, found both"));
  }
  reader.ReadMap("modules", &out->modules);
  if (double lr = 0; reader.Has("lr")) {
    reader.Read("lr", &lr, NonNegative());
    out->lr = lr;
  }
  if (reader.Has("schedule")) reader.ReadStruct("schedule", &out->schedule.emplace());
  if (double final_lr = 0; reader.Has("final_lr")) {
    reader.Read("final_lr", &final_lr, NonNegative());
    if (!out->lr || !out->schedule || *out->lr <= 0 || final_lr > *out->lr) {
      reader.Keep(reader.Error("final_lr",
                               "ends a schedule that starts at lr: expected both in "
                               "this phase, and no more than lr"));
    } else {
      out->schedule->final_fraction = final_lr / *out->lr;
    }
  }
  return reader.Finish();
}

double LearningRate(const OptimizerConfig& optimizer, const ScheduleConfig& schedule,
                    const std::vector<TrainingPhase>& phases, int64_t step, int64_t num_steps) {
  int64_t begin = 0;
  for (const TrainingPhase& phase : phases) {
    if (step < phase.until_step) {
      const double lr = phase.lr.value_or(optimizer.lr);
      if (phase.schedule) {
        return lr * ScheduleFactor(*phase.schedule, step - begin, phase.until_step - begin);
      }
      return lr * ScheduleFactor(schedule, step, num_steps);
    }
    begin = phase.until_step;
  }
  return optimizer.lr * ScheduleFactor(schedule, step, num_steps);
}

namespace {

// The setting whose name is `module` or the longest dotted prefix of it.
std::optional<ModuleConfig> Closest(
    const std::vector<std::pair<std::string, ModuleConfig>>& settings, const std::string& module) {
  std::optional<ModuleConfig> found;
  size_t length = 0;
  for (const auto& [name, config] : settings) {
    const bool covers =
        module == name || (module.size() > name.size() &&
                           module.compare(0, name.size(), name) == 0 && module[name.size()] == '.');
    if (covers && (!found || name.size() > length)) {
      found = config;
      length = name.size();
    }
  }
  return found;
}

}  // namespace

ModuleConfig ModuleSchedule::At(const std::string& module, int64_t step) const {
  for (const TrainingPhase& phase : phases_) {
    if (step >= phase.until_step) continue;
    if (const auto config = Closest(phase.modules, module)) return *config;
    break;
  }
  return Closest(base_, module).value_or(ModuleConfig{});
}

bool ModuleSchedule::EverTrained(const std::string& module, int64_t num_steps) const {
  if (!At(module, num_steps - 1).frozen) return true;
  return std::any_of(phases_.begin(), phases_.end(), [&](const TrainingPhase& phase) {
    return !At(module, phase.until_step - 1).frozen;
  });
}

bool ModuleSchedule::ChangesAt(int64_t step) const {
  return std::any_of(phases_.begin(), phases_.end(),
                     [&](const TrainingPhase& phase) { return phase.until_step == step; });
}

std::vector<std::string> ModuleSchedule::Mentioned() const {
  std::vector<std::string> names;
  for (const auto& [name, config] : base_) names.push_back(name);
  for (const TrainingPhase& phase : phases_) {
    for (const auto& [name, config] : phase.modules) names.push_back(name);
  }
  return names;
}

}  // namespace omni::trainer
