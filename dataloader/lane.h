// In which order a lane visits the samples.
//
// A job has a fixed number of lanes, each an endless sequence of windows of `window` draws. All
// is a function of (seed, lane, state), so a lane can be taken up anywhere by anyone:
//   - each source is dealt out over the lanes once, by a seeded permutation; a source with fewer
//     samples than lanes is every lane's in full
//   - a lane goes through its share in a permutation of its own, another one each epoch
//   - a window of N draws has floor or ceil of N * weight draws of each source (systematic
//     sampling: one random offset per window), so the mixture is exact in the long run and
//     steady from step to step
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "dataloader/sample_planner.h"

namespace omni::dataloader {

// Where a lane stands, as of the last consumed step: at the start of a window whose first
// `position` sequences are consumed.
struct LaneState {
  std::vector<int64_t> cursors;  // per source: draws made before the window
  int64_t window = 0;            // windows before this one
  int64_t position = 0;          // sequences of it consumed
  int64_t window_step = 0;       // the step that opened it: which phase's weights it has
  // Of a window that is open, as it was opened: a recipe that changes then holds for the next one.
  std::vector<double> weights;  // per source, adding up to 1; empty: it is not open
  int64_t sequence_length = 0;
  int32_t draws = 0;

  bool operator==(const LaneState&) const = default;
};

class LaneOrder {
 public:
  struct Options {
    uint64_t seed = 1;
    int32_t lane = 0, num_lanes = 1;
    int32_t window = 64;
    std::vector<uint64_t> source_streams;  // StreamOf(name): order does not depend on other sources
    std::vector<int64_t> source_sizes;     // samples
  };
  explicit LaneOrder(Options options);

  // The draws of the window at `state`; `cursors_after` are those of the next. Weights add up to
  // 1; none but sources with samples may be positive. `num_draws`: 0 stands for the options'.
  // O(window).
  std::vector<SampleKey> Draw(const LaneState& state, absl::Span<const double> weights,
                              std::vector<int64_t>* cursors_after, int32_t num_draws = 0) const;

  // The order in which the window's sequences are consumed: packing leaves them sorted.
  std::vector<int32_t> SequenceOrder(int64_t window, int32_t num_sequences) const;

  int64_t share_size(int32_t source) const;  // samples of one epoch

 private:
  int64_t SampleAt(int32_t source, int64_t draw) const;

  const Options options_;
};

}  // namespace omni::dataloader
