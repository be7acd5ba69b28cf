// Which samples share a sequence.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace omni::dataloader {

// Packs samples of these many tokens (each in [1, capacity]) into sequences of at most
// `capacity`: indices into `tokens`, those of one sequence in increasing order.
//
// Best-fit decreasing says how many sequences there are. It fills the first ones with the
// largest samples, though, so the samples are then dealt over that many sequences again, the
// largest first to the emptiest: sequences come out equally long and equally mixed. Where that
// does not fit, best fit's own sequences are kept. O(n log n).
//
//   {60, 60, 20, 20, 20, 20} in 100: best fit {60, 20, 20} {60, 20, 20}; spread the same
//   {50, 30, 30, 30} in 100: best fit {50, 30} {30, 30}; spread {50, 30} {30, 30}
std::vector<std::vector<int32_t>> PackSequences(absl::Span<const int64_t> tokens, int64_t capacity);

}  // namespace omni::dataloader
