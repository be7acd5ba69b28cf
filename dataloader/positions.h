// M-RoPE positions of one sample, by the rule of the model family.
//
// Three axes: temporal, height, width.
//   text, audio    +1 a token on all three axes (an audio token is 40 ms)
//   image          temporal constant, height and width its grid after merging
//   video          height and width as an image; temporal and where the next span starts differ:
//
//   qwen2_5_max    temporal trunc(i * seconds_per_grid * positions_per_second) for the i-th pair of
//                  frames; the next span starts one after the largest position on any axis
//                  (Qwen2.5-Omni, and Qwen2.5-VL as released)
//   qwen2_5_whole  the same with seconds_per_grid cut to a whole number first (Qwen2.5-VL in
//                  transformers 4.57)
//   qwen2_5_grid   cut too; the next span starts max(h, w) later, whatever temporal reached
//                  (transformers 5). Images are the same by all three.
//   qwen3_vl       every frame is an image of its own, with text between (FrameText)
//   sequential     no grids: +1 a token for everything (Qwen2-Audio, decoders with plain RoPE)
//
// Start and end tokens around media are text. Example: 2 text tokens, an image of 1 x 2 x 2
// merged cells, 1 text token:
//   temporal 0 1 | 2 2 2 2 | 4
//   height   0 1 | 2 2 3 3 | 4
//   width    0 1 | 2 3 2 3 | 4
#pragma once

#include <cstdint>

#include "absl/types/span.h"

namespace omni::dataloader {

enum class PositionRule : uint8_t {
  kQwen2_5Max,
  kQwen2_5Whole,
  kQwen2_5Grid,
  kQwen3Vl,
  kSequential
};

struct PositionOptions {
  PositionRule rule = PositionRule::kQwen2_5Max;
  double positions_per_second = 25;  // of the temporal axis, for video
};

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
// By qwen3_vl a span has one frame.
void MropePositions(absl::Span<const PositionSpan> spans, const PositionOptions& options,
                    absl::Span<float> temporal, absl::Span<float> height, absl::Span<float> width);

}  // namespace omni::dataloader
