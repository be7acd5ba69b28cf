// Our own shared libraries, opened when they are first needed: they bring libraries that most jobs
// never use, or that must not meet ours (ARCHITECTURE.md). They stay loaded.
#pragma once

#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"

namespace omni {

struct Plugin {
  const char* file;         // "omnitrain_ffmpeg.so"
  const char* environment;  // a variable that names the only path to try, if it is set
  const char* entry;        // the function it exports
  int open_flags = 0;       // beside RTLD_NOW and RTLD_LOCAL
};

// Opens `path` if given, else what the environment names, else `file` in ../lib of the running
// binary, in lib beside it, or beside it. `accept` gets the entry and says whether the library is
// of our version. FailedPrecondition lists what was tried and what was wrong with each.
absl::Status OpenPlugin(const Plugin& plugin, const std::string& path,
                        absl::FunctionRef<bool(void* entry)> accept);

}  // namespace omni
