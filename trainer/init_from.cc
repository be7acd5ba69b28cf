#include "trainer/init_from.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/base/exists.h"
#include "runtime/base/file.h"
#include "runtime/base/status.h"
#include "runtime/checkpoint/checkpoint.h"
#include "trainer/assemble.h"
#include "trainer/resume_rules.h"

namespace omni::trainer {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

// DataLoss: it is damaged, or not there.
absl::Status ReadState(const std::string& path, SavedRun* saved) {
  auto text = ReadFile(path + "/state.json");
  if (absl::IsNotFound(text.status()) || absl::IsInvalidArgument(text.status())) {
    return absl::DataLossError(text.status().message());
  }
  OMNI_RETURN_IF_ERROR(text.status());
  const Json state = Json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!state.is_object() || !state.contains("step") || !state["step"].is_number_integer()) {
    return absl::DataLossError(absl::StrCat(path, "/state.json: is damaged"));
  }
  saved->step = state["step"].get<int64_t>();
  saved->path = path;
  saved->state = *std::move(text);
  if (state.contains("recipe") && state["recipe"].is_string()) {
    saved->recipe = state["recipe"].get<std::string>();
    saved->recipe_at = path + "/state.json";
    return absl::OkStatus();
  }
  // Of a version that kept it in the run directory only.
  saved->recipe_at = (fs::path(path).parent_path().parent_path() / "resolved.yaml").string();
  const auto recipe = ReadFile(saved->recipe_at);
  if (recipe.ok()) saved->recipe = *recipe;
  return absl::OkStatus();
}

std::string Clean(const std::string& path) {
  std::error_code error;
  const fs::path given = fs::absolute(path, error).lexically_normal();
  return (given.filename().empty() ? given.parent_path() : given).string();
}

using ParameterShapes = std::map<std::string, std::vector<int64_t>>;

absl::StatusOr<ParameterShapes> ShapesOf(const Recipe& recipe) {
  encoders::EncoderRegistry registry;
  encoders::RegisterEncoders(registry);
  OMNI_ASSIGN_OR_RETURN(const auto model, MultimodalModel::Create(recipe.model, registry));
  ParameterShapes shapes;
  for (const parallel::ParameterSpec& spec : model->Parameters()) shapes[spec.path] = spec.shape;
  return shapes;
}

}  // namespace

absl::StatusOr<SavedRun> NewestOf(const std::string& run_dir) {
  OMNI_ASSIGN_OR_RETURN(const auto all, ListCheckpoints(run_dir + "/checkpoints"));
  SavedRun saved;
  for (auto it = all.rbegin(); it != all.rend(); ++it) {
    const absl::Status status = ReadState(it->second, &saved);
    if (status.ok()) break;
    if (!absl::IsDataLoss(status)) return status;
  }
  return saved;
}

absl::StatusOr<SavedRun> FindSaved(const std::string& from) {
  const std::string where = absl::StrCat("training.init_from: ", from);
  SavedRun saved;
  std::string folder = Clean(from);
  if (Exists(folder + "/manifest.json") && Exists(folder + "/state.json")) {
    OMNI_RETURN_IF_ERROR(ReadState(folder, &saved));
    return saved;
  }
  int64_t step = -1;
  const size_t at = from.rfind('@');
  if (at != std::string::npos && !Exists(folder) && absl::SimpleAtoi(from.substr(at + 1), &step)) {
    folder = Clean(from.substr(0, at));
  }
  OMNI_ASSIGN_OR_RETURN(const auto all, ListCheckpoints(folder + "/checkpoints"));
  if (all.empty()) {
    return absl::NotFoundError(
        absl::StrCat(where, Exists(folder) ? ": has no checkpoint" : ": no such folder",
                     ", expected a run directory, RUN@STEP or RUN/checkpoints/step-NNNNNNNN"));
  }
  if (step < 0) {
    OMNI_ASSIGN_OR_RETURN(saved, NewestOf(folder));
    if (saved.step >= 0) return saved;
    return absl::DataLossError(
        absl::StrCat(where, ": none of its ", all.size(), " checkpoints can be read"));
  }
  for (const auto& [found, path] : all) {
    if (found != step) continue;
    OMNI_RETURN_IF_ERROR(ReadState(path, &saved));
    return saved;
  }
  return absl::NotFoundError(
      absl::StrCat(where, ": found no checkpoint of step ", step, ", there are those of ",
                   absl::StrJoin(all, ", ", [](std::string* out, const auto& entry) {
                     absl::StrAppend(out, entry.first);
                   })));
}

absl::StatusOr<SavedRun> CheckInitFrom(const Recipe& recipe,
                                       absl::Span<const std::string> allowed) {
  const std::string& from = recipe.training.init_from;
  OMNI_ASSIGN_OR_RETURN(SavedRun saved, FindSaved(from));
  const auto was = ValuesOf(saved.recipe, saved.recipe_at);
  if (!was.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "training.init_from: ", from, ": can't read what model it has: ", was.status().message()));
  }
  OMNI_ASSIGN_OR_RETURN(const RecipeValues is, ValuesOf(recipe.yaml, "recipe"));
  OMNI_RETURN_IF_ERROR(CheckModelChanges(ChangesOfModel(*was, is), allowed, from));
  OMNI_ASSIGN_OR_RETURN(const Recipe there, ParseRecipe(saved.recipe, saved.recipe_at));
  OMNI_ASSIGN_OR_RETURN(const ParameterShapes old_shapes, ShapesOf(there));
  OMNI_ASSIGN_OR_RETURN(const ParameterShapes new_shapes, ShapesOf(recipe));
  for (const auto& [path, shape] : new_shapes) {
    const auto found = old_shapes.find(path);
    if (found == old_shapes.end() || found->second == shape) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("training.init_from: ", from, " has weights of another model: \"", path,
                     "\" is [", absl::StrJoin(found->second, ", "), "] there and [",
                     absl::StrJoin(shape, ", "), "] in the recipe"));
  }
  return saved;
}

}  // namespace omni::trainer
