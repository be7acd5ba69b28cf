// Polyphase resampling by a Kaiser-windowed sinc.
//
// With rates from : to reduced to M : L, output sample i lies at input position i * M / L: one of
// L phases, each a filter of `taps` input samples. The cutoff lies below both Nyquist
// frequencies; 48 zero crossings a side make the transition 10 % of the lower one wide.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace omni::dataloader {

class Resampler {
 public:
  Resampler(int32_t from_rate, int32_t to_rate);  // both >= 1

  // ceil(n * to / from)
  int64_t NumOutputs(int64_t num_inputs) const;
  std::vector<float> Run(absl::Span<const float> samples) const;

 private:
  int64_t up_, down_;           // L, M
  int32_t reach_ = 0;           // input samples used to the left of a position
  int32_t taps_ = 0;            // a multiple of 8
  std::vector<float> filters_;  // [L, taps]
};

}  // namespace omni::dataloader
