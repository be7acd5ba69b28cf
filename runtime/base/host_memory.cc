#include "runtime/base/host_memory.h"

#include <unistd.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "runtime/base/file.h"

namespace omni {
namespace {

std::string TextOf(const std::string& path) { return ReadFile(path).value_or(""); }

// "MemTotal:  24000000 kB"
int64_t KibOf(const std::string& text, absl::string_view key) {
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    const std::vector<absl::string_view> words =
        absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
    int64_t kib = 0;
    if (words.size() >= 2 && words[0] == key && absl::SimpleAtoi(words[1], &kib)) return kib;
  }
  return 0;
}

// A group's limit holds for all below it.
void TakeLeast(const std::string& mount, absl::string_view group, const char* file,
               MemoryLimit* least) {
  while (true) {
    const std::string path = absl::StrCat(mount, group, group == "/" ? "" : "/", file);
    int64_t bytes = 0;
    const std::string text = TextOf(path);
    const bool is_number = absl::SimpleAtoi(text, &bytes);  // else "max", or no such file
    if (is_number && bytes > 0 && (least->bytes == 0 || bytes < least->bytes)) {
      *least = {.bytes = bytes, .source = path};
    }
    if (group.size() <= 1) return;
    group = group.substr(0, std::max<size_t>(group.rfind('/'), 1));
  }
}

}  // namespace

MemoryLimit HostMemoryLimit(const std::string& root) {
  MemoryLimit least = {.bytes = KibOf(TextOf(root + "/proc/meminfo"), "MemTotal:") << 10,
                       .source = "/proc/meminfo"};
  const std::string groups = TextOf(root + "/proc/self/cgroup");
  for (absl::string_view line : absl::StrSplit(groups, '\n')) {
    // 4:memory:/job, or 0::/job in version 2
    const std::vector<std::string> parts = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (parts.size() != 3 || !absl::StartsWith(parts[2], "/")) continue;
    const std::vector<std::string> controllers = absl::StrSplit(parts[1], ',');
    const std::string mount = root + "/sys/fs/cgroup";
    if (parts[1].empty()) {
      TakeLeast(mount, parts[2], "memory.max", &least);
    } else if (std::find(controllers.begin(), controllers.end(), "memory") != controllers.end()) {
      TakeLeast(mount + "/memory", parts[2], "memory.limit_in_bytes", &least);
    }
  }
  return least;
}

std::string HostIdentity() {
  char name[256] = "";
  gethostname(name, sizeof(name) - 1);
  return absl::StrCat(TextOf("/proc/sys/kernel/random/boot_id"), name, HostMemoryLimit().source);
}

int64_t ResidentBytes() { return KibOf(TextOf("/proc/self/status"), "VmRSS:") << 10; }

std::string FormatBytes(int64_t num_bytes) {
  const auto bytes = static_cast<double>(num_bytes);
  if (num_bytes >= int64_t{1} << 30) return absl::StrFormat("%.2f GiB", bytes / (1 << 30));
  if (num_bytes >= int64_t{1} << 20) return absl::StrFormat("%.0f MiB", bytes / (1 << 20));
  return absl::StrFormat("%.0f KiB", bytes / (1 << 10));
}

}  // namespace omni
