#include "dataloader/lane.h"

#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/rng.h"

namespace omni::dataloader {
namespace {

// Streams of one source's permutations and of one lane's choices.
constexpr uint64_t Mix(uint64_t a, uint64_t b) {
  uint64_t x = a ^ (b + 0x9e3779b97f4a7c15u + (a << 6) + (a >> 2));
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

}  // namespace

LaneOrder::LaneOrder(Options options) : options_(std::move(options)) {
  OMNI_CHECK(options_.lane >= 0 && options_.lane < options_.num_lanes);
  OMNI_CHECK_EQ(options_.source_streams.size(), options_.source_sizes.size());
}

int64_t LaneOrder::share_size(int32_t source) const {
  const int64_t size = options_.source_sizes[source];
  if (size < options_.num_lanes) return size;
  return (size - options_.lane + options_.num_lanes - 1) / options_.num_lanes;
}

int64_t LaneOrder::SampleAt(int32_t source, int64_t draw) const {
  const int64_t size = options_.source_sizes[source];
  const int64_t share = share_size(source);
  const uint64_t stream = options_.source_streams[source];
  const auto epoch = static_cast<uint64_t>(draw / share);
  const Permutation order(share, options_.seed, Mix(Mix(stream, options_.lane + 1), epoch));
  const auto in_share = static_cast<int64_t>(order(draw % share));
  if (size < options_.num_lanes) return in_share;
  const Permutation deal(size, options_.seed, stream);
  return static_cast<int64_t>(deal(in_share * options_.num_lanes + options_.lane));
}

std::vector<SampleKey> LaneOrder::Draw(const LaneState& state, absl::Span<const double> weights,
                                       std::vector<int64_t>* cursors_after,
                                       int32_t num_draws) const {
  OMNI_CHECK_EQ(weights.size(), options_.source_sizes.size());
  OMNI_CHECK_EQ(state.cursors.size(), weights.size());
  const CounterRng offsets(options_.seed, Mix(StreamOf("lane window"), options_.lane));
  const double offset = offsets.Uniform(state.window);
  std::vector<SampleKey> draws;
  const int32_t window = num_draws > 0 ? num_draws : options_.window;
  draws.reserve(window);
  *cursors_after = state.cursors;
  int32_t source = 0;
  const auto last = static_cast<int32_t>(weights.size()) - 1;
  double bound = weights[0];
  for (int32_t i = 0; i < window; ++i) {
    const double point = (i + offset) / window;
    while (source < last && point >= bound) bound += weights[++source];
    // Rounding may leave the last point beyond the last source with a weight.
    int32_t drawn = source;
    while (weights[drawn] <= 0 && drawn > 0) --drawn;
    OMNI_CHECK(weights[drawn] > 0 && options_.source_sizes[drawn] > 0);
    const int64_t draw = (*cursors_after)[drawn]++;
    draws.push_back({.source = drawn, .index = SampleAt(drawn, draw), .draw = draw});
  }
  return draws;
}

std::vector<int32_t> LaneOrder::SequenceOrder(int64_t window, int32_t num_sequences) const {
  const Permutation order(
      num_sequences, options_.seed,
      Mix(Mix(StreamOf("lane sequences"), options_.lane), static_cast<uint64_t>(window)));
  std::vector<int32_t> sequences(num_sequences);
  for (int32_t i = 0; i < num_sequences; ++i) sequences[i] = static_cast<int32_t>(order(i));
  return sequences;
}

}  // namespace omni::dataloader
