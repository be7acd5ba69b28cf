#include "trainer/recipe_paths.h"

#include <glob.h>

#include <cstdlib>
#include <filesystem>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

namespace omni::trainer {
namespace {

namespace fs = std::filesystem;

bool Exists(const std::string& path) {
  std::error_code error;
  if (fs::exists(path, error)) return true;
  glob_t found{};
  const bool matches = glob(path.c_str(), GLOB_NOSORT, nullptr, &found) == 0;
  globfree(&found);
  return matches;
}

// "/a/./b" as "/a/b". ".." stays where a link before it makes it another folder.
std::string Tidy(const fs::path& path) {
  const fs::path shorter = path.lexically_normal();
  std::error_code error;
  const bool is_same = !fs::exists(path, error) || fs::equivalent(path, shorter, error);
  return (is_same ? shorter : path).string();
}

std::string Quoted(const std::string& text) {
  return absl::StrCat("\"", absl::StrReplaceAll(text, {{"\\", "\\\\"}, {"\"", "\\\""}}), "\"");
}

// Adds `key` where what stands there is a relative path.
void Add(const ConfigNode& node, const std::string& resolved, std::vector<std::string>* all) {
  if (resolved != node.text()) all->push_back(absl::StrCat(node.path(), "=", Quoted(resolved)));
}

// RUN@STEP: a path, and a number that stays.
std::string ResolveRun(const std::string& run, const std::string& recipe_path) {
  const size_t at = run.rfind('@');
  if (at == std::string::npos) return ResolvePath(run, recipe_path);
  return ResolvePath(run.substr(0, at), recipe_path) + run.substr(at);
}

}  // namespace

std::string ResolvePath(const std::string& path, const std::string& recipe_path) {
  if (path.empty() || path[0] == '/') return path;
  if (path == "~" || absl::StartsWith(path, "~/")) {
    const char* home = std::getenv("HOME");
    return home == nullptr ? path : home + path.substr(1);
  }
  std::error_code error;
  const fs::path here = fs::current_path(error) / path;
  if (Exists(here.string())) return Tidy(here);
  fs::path folder = fs::absolute(recipe_path, error).parent_path();
  while (true) {
    if (Exists((folder / path).string())) return Tidy(folder / path);
    if (!folder.has_relative_path()) break;
    folder = folder.parent_path();
  }
  return Tidy(here);
}

std::vector<std::string> AbsolutePaths(const ConfigNode& root, const std::string& recipe_path) {
  std::vector<std::string> all;
  const auto add = [&](const ConfigNode& node) {
    if (node.is_scalar()) Add(node, ResolvePath(node.text(), recipe_path), &all);
  };
  add(root.Get("model").Get("from"));
  const ConfigNode run = root.Get("training").Get("init_from");
  if (run.is_scalar()) Add(run, ResolveRun(run.text(), recipe_path), &all);
  const ConfigNode data = root.Get("data");
  add(data.Get("tokenizer"));
  for (const char* list : {"sources", "eval"}) {
    for (const ConfigNode& source : data.Get(list).items()) add(source.Get("path"));
  }
  return all;
}

}  // namespace omni::trainer
