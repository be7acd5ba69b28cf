// What goes on from a checkpoint and what begins anew; docs/resuming.md has the rules.
#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "dataloader/carry_over.h"
#include "runtime/base/status.h"
#include "runtime/checkpoint/host_ranges.h"
#include "trainer/init_from.h"
#include "trainer/trainer.h"

namespace omni::trainer {
namespace {

std::set<std::string> NamesOf(const Checkpoint& checkpoint) {
  const std::vector<std::string> names = checkpoint.names();
  return {names.begin(), names.end()};
}

absl::StatusOr<std::map<std::string, int64_t>> UpdateCountsOf(const Checkpoint& checkpoint) {
  const auto state = nlohmann::json::parse(checkpoint.state(), nullptr, /*allow_exceptions=*/false);
  std::map<std::string, int64_t> counts;
  if (!state.is_object() || !state.contains("update_counts")) {
    return absl::DataLossError(checkpoint.path() + "/state.json: has no update_counts");
  }
  for (const auto& [key, count] : state["update_counts"].items()) {
    if (count.is_number_integer()) counts[key] = count.get<int64_t>();
  }
  return counts;
}

}  // namespace

// Of the whole model, so that all ranks decide alike.
std::set<std::string> Trainer::KeysWithoutMoments(const Checkpoint& checkpoint) const {
  const Recipe& recipe = options_.recipe;
  const std::set<std::string> saved = NamesOf(checkpoint);
  std::set<std::string> keys;
  for (const parallel::ParameterSpec& spec : costs_->Parameters()) {
    const std::string module = costs_->ModuleOf(spec.path);
    if (!modules_.EverTrained(module, recipe.training.steps)) continue;
    const parallel::UpdateRule rule = recipe.training.optimizer.RuleOf(spec);
    for (const std::string& suffix : MomentSuffixes(rule)) {
      if (saved.count(spec.path + suffix) == 0) keys.insert(parallel::UpdateKeyName(module, rule));
    }
  }
  return keys;
}

void Trainer::SetUpdateCounts(const std::set<std::string>& restarted,
                              std::map<std::string, int64_t> update_counts) {
  for (const std::string& key : restarted) update_counts[key] = 0;
  optimizer_->set_update_counts(update_counts);
  if (rank() == 0 && !restarted.empty()) {
    options_.link->Notice("info",
                          absl::StrCat("the checkpoint has no optimizer state for ",
                                       absl::StrJoin(restarted, ", "), ": it starts at 0 there"));
  }
}

// Rank 0: where another schedule than the run's gives the next step another learning rate.
void Trainer::TellLearningRate(const std::string& recipe_yaml) {
  if (rank() != 0 || recipe_yaml.empty() || recipe_yaml == options_.recipe.yaml) return;
  const auto was = ParseRecipe(recipe_yaml, "recipe of the checkpoint");
  if (!was.ok() || step_ == 0) return;
  const double last = was->training.LearningRate(step_ - 1);
  const double planned = was->training.LearningRate(step_);
  const double now = options_.recipe.training.LearningRate(step_);
  if (now == planned || step_ >= options_.recipe.training.steps) return;
  options_.link->Notice(
      "warning",
      absl::StrFormat("the learning rate of step %d is %.3g; the recipe of the checkpoint has %.3g "
                      "there, and had %.3g in step %d",
                      step_ + 1, now, planned, last, step_));
}

absl::Status Trainer::CarryData(const dataloader::SamplePlanner& samples) {
  dataloader::CarriedOver carried = dataloader::CarryOver(std::move(loader_state_), samples);
  loader_state_ = std::move(carried.state);
  if (rank() != 0) return absl::OkStatus();
  for (const std::string& note : carried.notes) {
    options_.link->Notice("info", absl::StrCat("data: ", note));
    if (options_.log != nullptr) options_.log->Info("data: ", note);
  }
  return absl::OkStatus();
}

absl::Status Trainer::InitFromRun() {
  const TrainingConfig& training = options_.recipe.training;
  SetPhase("taking weights from another run");
  // The run may be under way: rank 0 says which checkpoint it is.
  std::vector<double> step = {0.0};
  if (rank() == 0) {
    const auto found = FindSaved(training.init_from);
    step[0] = found.ok() ? static_cast<double>(found->step + 1) : 0.0;
  }
  OMNI_RETURN_IF_ERROR(AllReduce(&step, ReduceOp::kSum));
  OMNI_ASSIGN_OR_RETURN(SavedRun saved, FindSaved(training.init_from));
  if (step[0] > 0 && saved.step != static_cast<int64_t>(step[0]) - 1) {
    OMNI_ASSIGN_OR_RETURN(
        saved, FindSaved(absl::StrCat(training.init_from, "@", static_cast<int64_t>(step[0]) - 1)));
  }
  const SharedLoadOptions options = load_options();
  OMNI_ASSIGN_OR_RETURN(const auto checkpoint, ShareIndex(saved.path, options));
  const std::set<std::string> names = NamesOf(*checkpoint);
  std::vector<std::string> without;
  for (const parallel::ParameterSpec& spec : costs_->Parameters()) {
    if (names.count(spec.path) == 0 && given_.count(spec.path) == 0) without.push_back(spec.path);
  }
  for (const std::string& name : names) given_.erase(name);
  if (pretrained_ != nullptr && !given_.empty()) OMNI_RETURN_IF_ERROR(LoadPretrained());
  ExecContext ctx{.device = *device_, .stream = *stream_, .tape = nullptr, .arena = arena_.get()};
  std::vector<TensorRange> ranges =
      optimizer_->ValuesToLoad(ctx, [&](const std::string& path) { return names.count(path) > 0; });
  if (routers_->IsIn(names)) {
    for (TensorRange& range : routers_->StateRanges()) ranges.push_back(std::move(range));
  }
  std::set<std::string> restarted;
  std::map<std::string, int64_t> counts;
  if (training.init_optimizer) {
    OMNI_ASSIGN_OR_RETURN(counts, UpdateCountsOf(*checkpoint));
    restarted = KeysWithoutMoments(*checkpoint);
    for (TensorRange& range : optimizer_->MomentsToLoad(ctx, restarted)) {
      ranges.push_back(std::move(range));
    }
  }
  HostRanges host(ctx, std::move(ranges));
  OMNI_RETURN_IF_ERROR(LoadShared(*checkpoint, host.ranges(), options));
  host.Upload();
  routers_->Loaded(ctx);
  if (training.init_optimizer) SetUpdateCounts(restarted, std::move(counts));
  if (rank() != 0) return absl::OkStatus();
  options_.link->Notice(
      "info", absl::StrCat("weights", training.init_optimizer ? " and optimizer state" : "", " of ",
                           saved.path, "; steps, schedule and data begin anew"));
  if (!without.empty()) {
    options_.link->Notice(
        "warning", absl::StrCat("not in ", saved.path,
                                ", so at their initial values: ", absl::StrJoin(without, ", ")));
  }
  return absl::OkStatus();
}

}  // namespace omni::trainer
