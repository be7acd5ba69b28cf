// The patches a vision tower works on, on this rank.
//
// Of whole items: all patches, in window order (vision_layout.h). Of a shard: this rank's cells of
// each item in merge order, which is how they come and how their rows go; windows are made inside
// the attention.
#pragma once

#include <cstdint>
#include <vector>

#include "encoders/segment_attention.h"
#include "encoders/vision_layout.h"

namespace omni::encoders {

struct VisionRows {
  int64_t num_patches = 0, num_cells = 0;
  std::vector<int32_t> cells = {};    // [R]: the cell of the payload at each place; empty: as they
  std::vector<int32_t> places = {};   // [R]: the inverse, where each cell stands       come
  std::vector<float> positions = {};  // [2, P]: row and column of each patch
  // The patches' ranges of those of all items end to end, in merge order; empty: all.
  std::vector<parallel::UnitRange> held = {};
  SegmentAttention frames, windows;  // without windows: the same

  // Of a table with a row of `width` values for each patch of all items in merge order, the rows of
  // the patches held here. Only where the order is the merge order.
  template <typename T>
  std::vector<T> Held(std::vector<T> table, int64_t width) const {
    if (held.empty()) return table;
    std::vector<T> rows;
    for (const parallel::UnitRange& range : held) {
      rows.insert(rows.end(), table.begin() + range.begin * width,
                  table.begin() + range.end * width);
    }
    return rows;
  }
};

// `merge` and `window_cells` as in MakeVisionLayout.
VisionRows MakeVisionRows(const std::vector<parallel::MediaItem>& items, int32_t merge,
                          int32_t window_cells, const parallel::SampleShard& shard);

}  // namespace omni::encoders
