// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy
// as 1, 2, 3", SC'11). A draw is a pure function of (seed, stream, counter), so initial weights,
// data order and noise do not depend on which rank asks, in which order, or how often.
#pragma once

#include <array>
#include <cstdint>

#include "absl/strings/string_view.h"

namespace omni {

// The bijection itself: 128-bit counter, 64-bit key.
std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// 64-bit FNV-1a: names a stream after a string, the same on every machine.
constexpr uint64_t StreamOf(absl::string_view name) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
  return hash;
}

// A generator that counts for you. `at(i)` draws are independent of the running counter.
class CounterRng {
 public:
  CounterRng(uint64_t seed, uint64_t stream) : seed_(seed), stream_(stream) {}

  uint64_t Bits(uint64_t index) const;   // 64 uniform bits of draw `index`
  double Uniform(uint64_t index) const;  // [0, 1)
  double Normal(uint64_t index) const;   // Box-Muller, one normal per index
  uint64_t Below(uint64_t index,
                 uint64_t bound) const;  // [0, bound), bias < 2^-40 for bound < 2^24

  uint64_t NextBits() { return Bits(counter_++); }
  double NextUniform() { return Uniform(counter_++); }
  double NextNormal() { return Normal(counter_++); }
  uint64_t NextBelow(uint64_t bound) { return Below(counter_++, bound); }

 private:
  uint64_t seed_, stream_;
  uint64_t counter_ = 0;
};

// A pseudo-random permutation of [0, n) evaluated one element at a time, in O(1) memory
// (a Feistel network over the smallest even-bit power of two >= n, cycle-walking).
class Permutation {
 public:
  Permutation(uint64_t n, uint64_t seed, uint64_t stream);
  uint64_t operator()(uint64_t index) const;  // index in [0, n)

 private:
  uint64_t n_, seed_, stream_;
  int half_bits_;
};

}  // namespace omni
