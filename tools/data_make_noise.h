// Cheap noise for pixels and samples, and small draws.
#pragma once

#include <cmath>
#include <cstdint>

#include "runtime/base/rng.h"

namespace omni::tools {

// Approximately normal numbers, two for one draw of the generator: each the sum of four bytes.
class NoiseSource {
 public:
  explicit NoiseSource(CounterRng* rng) : rng_(rng) {}

  float Next() {
    if (!has_half_) bits_ = rng_->NextBits();
    const uint32_t half = static_cast<uint32_t>(has_half_ ? bits_ >> 32 : bits_);
    has_half_ = !has_half_;
    const int sum =
        static_cast<int>((half & 255) + (half >> 8 & 255) + (half >> 16 & 255) + (half >> 24));
    return static_cast<float>(sum - 510) * (1.0f / 147.80f);  // sqrt(4 * (256^2 - 1) / 12)
  }

 private:
  CounterRng* rng_;
  uint64_t bits_ = 0;
  bool has_half_ = false;
};

inline double Between(CounterRng& rng, double low, double high) {
  return low + (high - low) * rng.NextUniform();
}

inline uint8_t ToByte(float value) {
  return value <= 0 ? 0 : value >= 255 ? 255 : static_cast<uint8_t>(value + 0.5f);
}

}  // namespace omni::tools
