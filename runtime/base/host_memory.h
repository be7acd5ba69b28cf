// How much memory there is for this process, and how much it has.
#pragma once

#include <cstdint>
#include <string>

namespace omni {

struct MemoryLimit {
  int64_t bytes = 0;   // 0: not known
  std::string source;  // what says so: "/proc/meminfo", or a file of a control group (containers,
                       // Slurm, systemd)
};
// The least of the machine's memory and the limits of the control groups the process is in, version
// 1 or 2. `root`: where /proc and /sys are found; for tests.
MemoryLimit HostMemoryLimit(const std::string& root = "");

// Equal for two processes if they share that limit's memory, so far as can be told: the boot, the
// host's name (containers have their own) and the control group with the limit.
std::string HostIdentity();

int64_t ResidentBytes();  // of this process, shared pages included; 0 if /proc does not say

// "3.20 GiB", "512 MiB", "12 KiB".
std::string FormatBytes(int64_t num_bytes);

}  // namespace omni
