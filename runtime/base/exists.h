// What there is at a path, asked without the exceptions of std::filesystem. What can't be asked
// for, by lack of permission or by a disk that fails, counts as there: who opens it says what is
// wrong with it.
#pragma once

#include <sys/stat.h>

#include <cerrno>
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

namespace omni {

inline bool Exists(const std::string& path) {
  struct stat info {};
  return stat(path.c_str(), &info) == 0 || (errno != ENOENT && errno != ENOTDIR);
}

inline bool IsFolder(const std::string& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) == 0) return S_ISDIR(info.st_mode);
  return errno != ENOENT && errno != ENOTDIR;
}

// Paths in a folder (with recursive_directory_iterator: also below it), as many as can be read. To
// walk a std::filesystem iterator by `for` throws when the disk fails on the way.
template <typename Iterator = std::filesystem::directory_iterator>
std::vector<std::filesystem::path> EntriesOf(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> entries;
  std::error_code error;
  for (Iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    entries.push_back(entry->path());
  }
  return entries;
}

}  // namespace omni
