// Paths in a recipe: relative ones are resolved once, when a job starts, and absolute from then on.
//
// `data/train` is looked up beside the current directory, then beside the recipe and in the folders
// above it; the first place that has it counts. So what works where a recipe is written works from
// everywhere, for every worker, and for those who ask the run later: `resolved.yaml` has absolute
// paths. A recipe of a run made before this was so is read by the same rule. `~/` is the home.
#pragma once

#include <string>
#include <vector>

#include "runtime/base/config.h"

namespace omni::trainer {

// What `path` means in the file `recipe_path`. What is found nowhere is taken to be beside the
// current directory. Globs are found if anything matches.
std::string ResolvePath(const std::string& path, const std::string& recipe_path);

// What to set so that model.from, training.init_from, data.tokenizer, and the paths of data.sources
// and data.eval are absolute: "data.tokenizer=\"/...\"", as ConfigNode::ApplyOverrides takes it.
std::vector<std::string> AbsolutePaths(const ConfigNode& root, const std::string& recipe_path);

}  // namespace omni::trainer
