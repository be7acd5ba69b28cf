#include "trainer/resume_check.h"

#include <cstdio>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "runtime/base/exists.h"
#include "runtime/base/file.h"
#include "runtime/base/status.h"
#include "trainer/init_from.h"
#include "trainer/resume_rules.h"

namespace omni::trainer {
namespace {

namespace fs = std::filesystem;

std::string LegFile(const std::string& run_dir, int64_t step) {
  return absl::StrFormat("%s/recipes/step-%08d.yaml", run_dir, step);
}

// A tokenizer that has moved is the same one.
bool IsSameTokenizer(const RecipeChange& change) {
  if (change.key != "data.tokenizer") return false;
  const auto was = ReadFile(change.was), is = ReadFile(change.is);
  return was.ok() && is.ok() && *was == *is;
}

ResumeDecision BeginRun(const Recipe& recipe, absl::Span<const std::string> allow) {
  ResumeDecision decision;
  if (recipe.training.init_from.empty()) {
    decision.status = CheckChanges({}, allow, "");
    return decision;
  }
  const auto saved = CheckInitFrom(recipe, allow);
  decision.status = saved.status();
  if (saved.ok()) {
    decision.text =
        absl::StrCat("a new run with the weights of ", saved->path, " (training.init_from)");
  }
  return decision;
}

}  // namespace

ResumeDecision DecideResume(const std::string& run_dir, const Recipe& recipe,
                            absl::Span<const std::string> allow) {
  auto newest = NewestOf(run_dir);
  if (!newest.ok()) return {.status = newest.status(), .text = "", .begin_step = -1, .state = ""};
  SavedRun& saved = *newest;
  if (saved.step < 0) return BeginRun(recipe, allow);
  ResumeDecision decision{.status = absl::OkStatus(),
                          .text = "",
                          .begin_step = saved.step,
                          .state = std::move(saved.state)};
  const auto was = ValuesOf(saved.recipe, saved.recipe_at);
  if (!was.ok()) {
    // Not a reason to lose a run; shapes are checked where tensors are read.
    decision.text = absl::StrCat(
        "warning: the recipe of the checkpoint can't be read, so what has "
        "changed since can't be told: ",
        was.status().message());
    return decision;
  }
  const auto is = ValuesOf(recipe.yaml, "recipe");
  if (!is.ok()) {
    decision.status = is.status();
    return decision;
  }
  std::vector<RecipeChange> changes;
  for (RecipeChange& change : DiffRecipes(*was, *is)) {
    if (!IsSameTokenizer(change)) changes.push_back(std::move(change));
  }
  if (!changes.empty()) {
    decision.text =
        absl::StrCat("the recipe has changed since step ", saved.step, ":\n", Describe(changes));
  }
  decision.status = CheckChanges(changes, allow, run_dir);
  return decision;
}

absl::Status KeepRecipe(const std::string& run_dir, const std::string& recipe_text,
                        const Recipe& recipe, const ResumeDecision& decision) {
  std::error_code error;
  fs::create_directories(run_dir + "/recipes", error);
  if (error) {
    return absl::InvalidArgumentError(
        absl::StrCat("run directory ", run_dir, "/recipes: ", error.message()));
  }
  OMNI_RETURN_IF_ERROR(WriteFileAtomically(run_dir + "/recipe.yaml", recipe_text));
  OMNI_RETURN_IF_ERROR(WriteFileAtomically(run_dir + "/resolved.yaml", recipe.yaml));
  const std::string leg = LegFile(run_dir, decision.begin_step);
  if (!decision.text.empty() || !Exists(leg)) {
    OMNI_RETURN_IF_ERROR(WriteFileAtomically(leg, recipe.yaml));
  }
  if (decision.text.empty()) return absl::OkStatus();
  const std::string log = run_dir + "/logs/recipes.log";
  std::FILE* file = std::fopen(log.c_str(), "ae");
  if (file == nullptr) return absl::UnavailableError(absl::StrCat(log, ": can't be written"));
  std::fprintf(file, "%s %s\n", absl::FormatTime(absl::Now()).c_str(), decision.text.c_str());
  std::fclose(file);
  return absl::OkStatus();
}

}  // namespace omni::trainer
