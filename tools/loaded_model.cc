#include "tools/loaded_model.h"

#include <unistd.h>

#include <filesystem>
#include <thread>

#include "absl/strings/str_cat.h"
#include "runtime/base/exists.h"
#include "runtime/base/status.h"
#include "runtime/checkpoint/checkpoint.h"
#include "trainer/huggingface/pretrained.h"

namespace omni::tools {
namespace {

namespace fs = std::filesystem;

bool IsHuggingFace(const std::string& path) { return Exists(path + "/config.json"); }

// Reserved, not touched: what the model does not use costs nothing.
double PhysicalGib() {
  return static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE)) /
         (int64_t{1} << 30);
}

}  // namespace

absl::StatusOr<RunCheckpoint> FindCheckpoint(const std::string& path) {
  const fs::path given = fs::absolute(path).lexically_normal();
  const fs::path folder = given.filename().empty() ? given.parent_path() : given;
  if (Exists(folder / "manifest.json")) {
    return RunCheckpoint{folder.parent_path().parent_path().string(), folder.string()};
  }
  OMNI_ASSIGN_OR_RETURN(const auto all, ListCheckpoints((folder / "checkpoints").string()));
  if (all.empty()) {
    return absl::NotFoundError(absl::StrCat(
        path, ": no checkpoint, expected a run directory or RUN/checkpoints/step-NNNNNNNN"));
  }
  return RunCheckpoint{folder.string(), all.back().second};
}

absl::StatusOr<trainer::Recipe> RecipeFor(const std::string& path, const std::string& conversation,
                                          absl::Span<const std::string> overrides) {
  std::vector<std::string> all = {"data.eval=[]", "data.phases=[]", "data.overlong=drop"};
  all.push_back(absl::StrCat("data.sources=[{name: conversation, path: \"", conversation, "\"}]"));
  all.push_back(absl::StrCat("runtime.reserve_gib=", PhysicalGib()));
  all.push_back(absl::StrCat("runtime.threads=", std::thread::hardware_concurrency()));
  if (IsHuggingFace(path)) {
    OMNI_ASSIGN_OR_RETURN(const ConfigNode config, trainer::HuggingFaceFolder::ReadConfig(path));
    for (const std::string& override : trainer::ReferenceLossOverrides(config)) {
      all.push_back(override);
    }
    all.insert(all.end(), overrides.begin(), overrides.end());
    const std::string yaml = absl::StrCat("name: ", "model\nmodel: {from: \"", path,
                                          "\"}\ndata: {sequence_length: 131072, sources: []}\n"
                                          "training: {steps: 1}\n");
    return trainer::LoadRecipeText(yaml, path, all);
  }
  all.insert(all.end(), overrides.begin(), overrides.end());
  OMNI_ASSIGN_OR_RETURN(const RunCheckpoint found, FindCheckpoint(path));
  return trainer::LoadRecipe(found.run_dir + "/resolved.yaml", all);
}

absl::StatusOr<std::unique_ptr<LoadedModel>> LoadedModel::Load(trainer::Recipe recipe,
                                                               const std::string& path,
                                                               bool gradients) {
  std::unique_ptr<LoadedModel> loaded(new LoadedModel);
  RegisterCpuKernels(loaded->kernels_);
  recipe.training.modules.clear();  // nothing is frozen: gradients of every parameter
  recipe.training.phases.clear();
  trainer::TrainerOptions options{.recipe = std::move(recipe),
                                  .kernels = &loaded->kernels_,
                                  .trains = false,
                                  .gradients = gradients};
  if (!IsHuggingFace(path)) {
    OMNI_ASSIGN_OR_RETURN(const RunCheckpoint found, FindCheckpoint(path));
    options.run_dir = found.run_dir;
    options.checkpoint = found.checkpoint;
  }
  OMNI_ASSIGN_OR_RETURN(loaded->trainer_, trainer::Trainer::Create(std::move(options)));
  return loaded;
}

}  // namespace omni::tools
