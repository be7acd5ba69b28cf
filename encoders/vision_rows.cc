#include "encoders/vision_rows.h"

#include <utility>

namespace omni::encoders {
namespace {

VisionRows WholeRows(VisionLayout layout) {
  VisionRows rows{.num_patches = layout.cu_frames.back(),
                  .num_cells = static_cast<int64_t>(layout.cells.size()),
                  .positions = std::move(layout.positions),
                  .frames = SegmentAttention(layout.cu_frames),
                  .windows = SegmentAttention(layout.cu_windows)};
  if (!layout.is_identity) {
    rows.cells = std::move(layout.cells);
    rows.places = std::move(layout.places);
  }
  return rows;
}

// Patches in the order of the layout's cells.
std::vector<int32_t> PatchOrder(const VisionLayout& layout, int32_t patches_per_cell) {
  std::vector<int32_t> order;
  order.reserve(layout.cells.size() * patches_per_cell);
  for (const int32_t cell : layout.cells) {
    for (int32_t patch = 0; patch < patches_per_cell; ++patch) {
      order.push_back(cell * patches_per_cell + patch);
    }
  }
  return order;
}

}  // namespace

VisionRows MakeVisionRows(const std::vector<parallel::MediaItem>& items, int32_t merge,
                          int32_t window_cells, const parallel::SampleShard& shard) {
  if (shard.is_whole()) return WholeRows(MakeVisionLayout(items, merge, window_cells));
  const int32_t patches_per_cell = merge * merge;
  const VisionLayout layout = MakeVisionLayout(items, merge, 0);
  const SplitRows split =
      SplitItems(items, {.input_rows = patches_per_cell, .output_rows = 1}, shard);
  const SegmentAttention frames(split, layout.cu_frames, {});
  SegmentAttention windows = frames;
  if (window_cells > 0) {
    const VisionLayout windowed = MakeVisionLayout(items, merge, window_cells);
    windows = SegmentAttention(split, windowed.cu_windows, PatchOrder(windowed, patches_per_cell));
  }
  VisionRows rows{.num_patches = split.NumRows(shard.index()),
                  .held = split.of_rank[shard.index()],
                  .frames = frames,
                  .windows = std::move(windows)};
  rows.num_cells = rows.num_patches / patches_per_cell;
  const auto half = layout.positions.begin() + layout.cu_frames.back();
  rows.positions = rows.Held(std::vector<float>(layout.positions.begin(), half), 1);
  const std::vector<float> columns = rows.Held(std::vector<float>(half, layout.positions.end()), 1);
  rows.positions.insert(rows.positions.end(), columns.begin(), columns.end());
  return rows;
}

}  // namespace omni::encoders
