// M-RoPE positions of one sample, as the Qwen2.5-Omni thinker has them.
//
// Three axes: temporal, height, width. Each span starts one after the largest position so far
// on any axis:
//   text, audio    +1 a token on all three axes (an audio token is 40 ms)
//   image          temporal constant, height and width its grid after merging
//   video          temporal trunc(i * seconds_per_grid * positions_per_second) for the i-th pair
//                  of frames, height and width as an image
// Start and end tokens around media are text. Example: 2 text tokens, an image of 1 x 2 x 2
// merged cells, 1 text token:
//   temporal 0 1 | 2 2 2 2 | 4
//   height   0 1 | 2 2 3 3 | 4
//   width    0 1 | 2 3 2 3 | 4
#pragma once

#include <cstdint>

#include "absl/types/span.h"

namespace omni::dataloader {

struct PositionSpan {
  int64_t num_tokens = 0;  // t * h * w for a grid
  // After merging; t = 0: not a grid (text, audio).
  int32_t t = 0, h = 0, w = 0;
  double seconds_per_grid = 0;  // 0 for images

  static PositionSpan Tokens(int64_t n) { return {.num_tokens = n}; }
  static PositionSpan Grid(int32_t t, int32_t h, int32_t w, double seconds_per_grid = 0) {
    return {int64_t{t} * h * w, t, h, w, seconds_per_grid};
  }
};

// Writes the positions of all spans' tokens, from 0 on: `temporal`, `height` and `width` each
// have the spans' total length. The product is formed in fp32 as the reference does it.
void MropePositions(absl::Span<const PositionSpan> spans, double positions_per_second,
                    absl::Span<float> temporal, absl::Span<float> height, absl::Span<float> width);

}  // namespace omni::dataloader
