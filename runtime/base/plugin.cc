#include "runtime/base/plugin.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace omni {
namespace {

std::vector<std::string> Candidates(const Plugin& plugin, const std::string& path) {
  if (!path.empty()) return {path};
  const char* named = std::getenv(plugin.environment);
  if (named != nullptr && *named != '\0') return {named};
  std::error_code error;
  const std::filesystem::path binary = std::filesystem::read_symlink("/proc/self/exe", error);
  const std::string folder = error ? "." : binary.parent_path().string();
  return {absl::StrCat(folder, "/../lib/", plugin.file), absl::StrCat(folder, "/lib/", plugin.file),
          absl::StrCat(folder, "/", plugin.file)};
}

}  // namespace

absl::Status OpenPlugin(const Plugin& plugin, const std::string& path,
                        absl::FunctionRef<bool(void* entry)> accept) {
  std::vector<std::string> failures;
  for (const std::string& candidate : Candidates(plugin, path)) {
    if (access(candidate.c_str(), F_OK) != 0) {
      failures.push_back(absl::StrCat(candidate, " (no such file)"));
      continue;
    }
    void* handle = dlopen(candidate.c_str(), RTLD_NOW | RTLD_LOCAL | plugin.open_flags);
    if (handle == nullptr) {
      const char* error = dlerror();
      failures.push_back(absl::StrCat(candidate, " (", error == nullptr ? "?" : error, ")"));
      continue;
    }
    void* entry = dlsym(handle, plugin.entry);
    if (entry != nullptr && accept(entry)) return absl::OkStatus();
    failures.push_back(absl::StrCat(candidate, " (made for another version of omnitrain)"));
  }
  return absl::FailedPreconditionError(absl::StrCat("tried ", absl::StrJoin(failures, ", ")));
}

}  // namespace omni
