// What a test binary asks of the system: malloc and its kin, mmap and its kin are replaced in it by
// functions that count and call the originals. Not under sanitizers, which replace them too.
//
// malloc maps and unmaps large blocks by itself, out of reach; so those are counted where they are
// asked for, and what malloc has from the system is read from its own statistics.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace omni::test {

struct SystemUse {
  int64_t live_bytes = 0;   // allocated, and not freed
  int64_t heap_bytes = 0;   // that malloc has from the system
  int64_t mappings = 0;     // calls of mmap and mremap
  int64_t unmappings = 0;   // of munmap, and of madvise where it gives pages back
  int64_t large_calls = 0;  // allocations of kLargeBytes or more, but for FFmpeg's
};
SystemUse ReadSystemUse();

inline constexpr int64_t kLargeBytes = int64_t{256} << 10;

// The most live_bytes since the last call of ResetPeak.
int64_t PeakLiveBytes();
void ResetPeak();

// While true, large allocations and mappings print from where they come.
void ShowLargeCalls(bool shows);

// What of it must not be, between two looks with steps of a warm process in between; a line each.
// Heaps of threads grow by pages as blocks of the same sizes come to lie elsewhere: `slack_bytes`;
// `slack_calls` large allocations are allowed.
std::vector<std::string> WhatWasAsked(const SystemUse& before, const SystemUse& after,
                                      int64_t slack_bytes, int64_t slack_calls = 0);

}  // namespace omni::test
