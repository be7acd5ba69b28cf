// What there is at a path, asked without the exceptions of std::filesystem. What can't be asked
// for, by lack of permission or by a disk that fails, counts as there: who opens it says what is
// wrong with it.
#pragma once

#include <sys/stat.h>

#include <cerrno>
#include <string>

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

}  // namespace omni
