#include "encoders/vision_layout.h"

#include <algorithm>

#include "runtime/base/check.h"

namespace omni::encoders {
namespace {

struct Cell {
  int32_t index;  // in merge order
  int32_t row, column;
};

// The cells of one frame of `rows` x `columns` cells, window by window; appends each window's
// number of cells to `window_sizes`.
std::vector<Cell> FrameInWindowOrder(int32_t rows, int32_t columns, int32_t window_cells,
                                     int32_t first_index, std::vector<int32_t>* window_sizes) {
  const int32_t side = window_cells > 0 ? window_cells : std::max(rows, columns);
  std::vector<Cell> cells;
  for (int32_t top = 0; top < rows; top += side) {
    for (int32_t left = 0; left < columns; left += side) {
      const int32_t bottom = std::min(top + side, rows);
      const int32_t right = std::min(left + side, columns);
      window_sizes->push_back((bottom - top) * (right - left));
      for (int32_t row = top; row < bottom; ++row) {
        for (int32_t column = left; column < right; ++column) {
          cells.push_back({first_index + row * columns + column, row, column});
        }
      }
    }
  }
  return cells;
}

}  // namespace

VisionLayout MakeVisionLayout(const std::vector<parallel::MediaItem>& items, int32_t merge,
                              int32_t window_cells) {
  VisionLayout layout;
  std::vector<float> row_positions, column_positions;
  const int32_t patches_per_cell = merge * merge;
  for (const parallel::MediaItem& item : items) {
    OMNI_CHECK_EQ(item.h % merge, 0);
    OMNI_CHECK_EQ(item.w % merge, 0);
    const int32_t rows = item.h / merge, columns = item.w / merge;
    for (int32_t frame = 0; frame < item.t; ++frame) {
      std::vector<int32_t> window_sizes;
      const std::vector<Cell> cells = FrameInWindowOrder(
          rows, columns, window_cells, static_cast<int32_t>(layout.cells.size()), &window_sizes);
      layout.cu_frames.push_back(layout.cu_frames.back() + item.h * item.w);
      for (const int32_t size : window_sizes) {
        layout.cu_windows.push_back(layout.cu_windows.back() + size * patches_per_cell);
      }
      for (const Cell& cell : cells) {
        layout.cells.push_back(cell.index);
        for (int32_t patch = 0; patch < patches_per_cell; ++patch) {
          row_positions.push_back(static_cast<float>(cell.row * merge + patch / merge));
          column_positions.push_back(static_cast<float>(cell.column * merge + patch % merge));
        }
      }
    }
  }
  layout.places.resize(layout.cells.size());
  for (size_t place = 0; place < layout.cells.size(); ++place) {
    layout.places[layout.cells[place]] = static_cast<int32_t>(place);
    layout.is_identity = layout.is_identity && layout.cells[place] == static_cast<int32_t>(place);
  }
  layout.positions = std::move(row_positions);
  layout.positions.insert(layout.positions.end(), column_positions.begin(), column_positions.end());
  return layout;
}

VisionWork CountVisionWork(absl::Span<const parallel::MediaItem> items, int32_t merge,
                           int32_t window_cells) {
  VisionWork work;
  for (const parallel::MediaItem& item : items) {
    OMNI_CHECK_EQ(item.h % merge, 0);
    OMNI_CHECK_EQ(item.w % merge, 0);
    const int64_t frames = item.t, patches = int64_t{item.h} * item.w;
    work.patches += frames * patches;
    work.cells += frames * patches / (merge * merge);
    work.frame_pairs += frames * patches * patches;
    // Windows are a grid: the sum of their squares is a product of sums.
    const auto squares = [&](int64_t side) {
      const int64_t window = window_cells > 0 ? int64_t{window_cells} * merge : side;
      const int64_t rest = side % window;
      return side / window * window * window + rest * rest;
    };
    if (patches > 0) work.window_pairs += frames * squares(item.h) * squares(item.w);
  }
  return work;
}

}  // namespace omni::encoders
