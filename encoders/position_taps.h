// A learned grid of positions, read for pictures of any size: which rows of the table each patch
// mixes, and how much of each (bilinear, corners on corners, as Qwen3-VL's
// fast_pos_embed_interpolate).
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/pack.h"

namespace omni::encoders {

// Four taps a patch: (row, column), (row, column + 1), (row + 1, column), (row + 1, column + 1) of
// the table's grid; past its edge the edge itself. Patches in merge order, every frame alike.
struct PositionTaps {
  std::vector<int32_t> taps_P4;
  std::vector<float> weights_P4;
};

// `side`: the table's grid is side x side. Coordinates are formed in fp32 as torch.linspace(0,
// side - 1, n) does; a grid of one patch stands at 0.
PositionTaps MakePositionTaps(const std::vector<parallel::MediaItem>& items, int32_t merge,
                              int32_t side);

}  // namespace omni::encoders
