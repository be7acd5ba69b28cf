#include "runtime/base/open_files.h"

#include <sys/resource.h>

#include <algorithm>
#include <cerrno>

#include "absl/strings/str_cat.h"

namespace omni {
namespace {

// Some programs walk through all descriptors there may be; containers allow for a thousand million.
constexpr rlim_t kMost = 1 << 20;

}  // namespace

int64_t RaiseOpenFilesLimit() {
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 0;
  const rlim_t wanted = std::min(limit.rlim_max, kMost);
  if (limit.rlim_cur < wanted) {
    const rlimit raised = {.rlim_cur = wanted, .rlim_max = limit.rlim_max};
    if (setrlimit(RLIMIT_NOFILE, &raised) == 0) limit.rlim_cur = wanted;
  }
  return static_cast<int64_t>(limit.rlim_cur);
}

int64_t OpenFilesLimit() {
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 1024;
  return static_cast<int64_t>(std::min(limit.rlim_cur, kMost));
}

std::string OpenFilesHint(int error) {
  if (error == ENFILE) return " (the machine has no more open files to give: fs.file-max)";
  if (error != EMFILE) return "";
  return absl::StrCat(" (this process may have ", OpenFilesLimit(),
                      " files open; raise the hard limit: ulimit -Hn, LimitNOFILE)");
}

}  // namespace omni
