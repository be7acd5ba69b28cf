// Where patches stand in the vision tower: windows, attention segments and positions, computed
// on the host from the items' grids alone.
//
// Patches arrive in merge order: per item frames outermost, then cells (merge x merge patches)
// in raster order, then the patches inside a cell. The tower keeps them in window order: frame
// by frame, window by window in raster order, cells in raster order inside each window; a
// window at the right or bottom edge is just smaller. Then a window is one attention segment
// and so is a frame. Example, 1 frame of 3 x 3 cells with windows of 2 x 2 cells:
//
//     merge order   0 1 2        window order  0 1 3 4 | 2 5 | 6 7 | 8
//                   3 4 5
//                   6 7 8
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "parallel/pack.h"

namespace omni::encoders {

struct VisionLayout {
  std::vector<int32_t> cells = {};   // [R]: the cell (in merge order, over all items) that stands
                                     // at each place of the window order
  std::vector<int32_t> places = {};  // [R]: the inverse, where each cell stands
  bool is_identity = true;           // the two orders agree
  std::vector<int32_t> cu_frames = {0};   // patches; one segment per frame
  std::vector<int32_t> cu_windows = {0};  // patches; one segment per window
  std::vector<float> positions = {};      // [2, P]: row and column of each patch, in window order
};

// `merge`: side of a cell in patches; `window_cells`: side of a window in cells, 0 for no
// windows. CHECK-fails if an item's grid is not a multiple of merge.
VisionLayout MakeVisionLayout(const std::vector<parallel::MediaItem>& items, int32_t merge,
                              int32_t window_cells);

// What the layout's segments come to, without making it.
struct VisionWork {
  int64_t patches = 0, cells = 0;
  int64_t frame_pairs = 0, window_pairs = 0;  // of patches that see each other
};
VisionWork CountVisionWork(absl::Span<const parallel::MediaItem> items, int32_t merge,
                           int32_t window_cells);

}  // namespace omni::encoders
