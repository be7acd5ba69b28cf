// What memory a rank may take, by whom: reckoned before the first step, told where the job starts,
// and held against what its host has.
//
// Everything a rank keeps or may fill is here, or is bounded by something that is. Who adds a
// queue, a table or a buffer adds it (HACKING.md, "Memory").
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/span.h"

namespace omni::trainer {

// Bytes of one rank.
struct MemoryBill {
  int64_t pool = 0;        // the page pool's reservation: all tensors
  int64_t weights = 0;     // of it: weights, gradients and optimizer state, there for good
  int64_t loader = 0;      // most: decoded media waiting and in use, what is being decoded
  int64_t plans = 0;       // most: samples planned ahead
  int64_t tables = 0;      // most: where the sources' samples lie, sizes measured
  int64_t checkpoint = 0;  // the copy of what changes, while a save is written
  int64_t process = 0;     // what the process has beside all of it: libraries, tokenizer, shared
                           // memory of communicators

  int64_t total() const { return pool + loader + plans + tables + checkpoint + process; }

  static constexpr size_t kSize = 7;
  std::vector<double> ToDoubles() const;
  static MemoryBill FromDoubles(absl::Span<const double> values);
};

// "memory a rank: 4.00 GiB pool (1.20 GiB weights, gradients and optimizer), ..."
std::string FormatBill(const MemoryBill& bill);

// What this rank's host says to the sum of its ranks' bills: empty if it has as much, else a
// warning. `host_ranks`, `host_bytes`: of those ranks.
std::string CheckHost(int32_t host_ranks, int64_t host_bytes, int64_t limit_bytes,
                      const std::string& limit_source);

}  // namespace omni::trainer
