// Windows, chunks and positions against the published formulas, computed another way.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "encoders/position_taps.h"
#include "encoders/qwen2_audio.h"
#include "encoders/qwen_audio.h"
#include "encoders/vision_layout.h"

namespace omni::encoders {
namespace {

using parallel::MediaItem;

// Qwen2.5-VL's get_window_index, line by line: pads the grid to whole windows (by a full window
// where it already is), cuts it, drops the padding.
void ReferenceWindows(const std::vector<MediaItem>& items, int merge, int side,
                      std::vector<int32_t>* index, std::vector<int32_t>* cu_windows) {
  *cu_windows = {0};
  int first = 0;
  for (const MediaItem& item : items) {
    const int rows = item.h / merge, columns = item.w / merge;
    const int padded_rows = rows + side - rows % side;
    const int padded_columns = columns + side - columns % side;
    for (int t = 0; t < item.t; ++t) {
      for (int wr = 0; wr < padded_rows / side; ++wr) {
        for (int wc = 0; wc < padded_columns / side; ++wc) {
          int cells = 0;
          for (int r = wr * side; r < (wr + 1) * side; ++r) {
            for (int c = wc * side; c < (wc + 1) * side; ++c) {
              if (r >= rows || c >= columns) continue;
              index->push_back(first + (t * rows + r) * columns + c);
              ++cells;
            }
          }
          if (cells > 0) cu_windows->push_back(cu_windows->back() + cells * merge * merge);
        }
      }
    }
    first += item.t * rows * columns;
  }
}

TEST(VisionLayoutTest, WorkIsCountedWithoutTheLayout) {
  const std::vector<MediaItem> items = {{.t = 1, .h = 6, .w = 14},
                                        {.t = 2, .h = 4, .w = 18},
                                        {.t = 3, .h = 2, .w = 30},
                                        {.t = 1, .h = 8, .w = 8}};
  for (const int side : {0, 1, 2, 4, 100}) {
    const VisionLayout layout = MakeVisionLayout(items, 2, side);
    const VisionWork work = CountVisionWork(items, 2, side);
    EXPECT_EQ(work.patches, layout.cu_frames.back());
    EXPECT_EQ(work.cells, static_cast<int64_t>(layout.cells.size()));
    const auto pairs = [](const std::vector<int32_t>& cu) {
      int64_t sum = 0;
      for (size_t i = 1; i < cu.size(); ++i)
        sum += int64_t{cu[i] - cu[i - 1]} * (cu[i] - cu[i - 1]);
      return sum;
    };
    EXPECT_EQ(work.frame_pairs, pairs(layout.cu_frames));
    EXPECT_EQ(work.window_pairs, pairs(layout.cu_windows)) << side;
  }
  EXPECT_EQ(CountVisionWork({}, 2, 4).patches, 0);
}

TEST(VisionLayoutTest, WindowsAreThePublishedOnes) {
  const std::vector<std::vector<MediaItem>> packs = {
      {{.t = 1, .h = 8, .w = 8}},
      {{.t = 1, .h = 2, .w = 2}},
      {{.t = 1, .h = 10, .w = 6}},
      {{.t = 3, .h = 12, .w = 4}},
      {{.t = 1, .h = 6, .w = 14}, {.t = 2, .h = 4, .w = 18}, {.t = 1, .h = 2, .w = 30}},
      {}};
  for (const auto& items : packs) {
    for (const int side : {1, 2, 4}) {
      std::vector<int32_t> index, cu_windows;
      ReferenceWindows(items, 2, side, &index, &cu_windows);
      const VisionLayout layout = MakeVisionLayout(items, 2, side);
      EXPECT_EQ(layout.cells, index);
      EXPECT_EQ(layout.cu_windows, cu_windows);
      EXPECT_EQ(layout.is_identity, std::is_sorted(index.begin(), index.end()));
      for (size_t i = 0; i < index.size(); ++i) {
        EXPECT_EQ(layout.places[layout.cells[i]], static_cast<int32_t>(i));
      }
      std::vector<int32_t> cu_frames = {0};
      for (const auto& item : items) {
        for (int t = 0; t < item.t; ++t) cu_frames.push_back(cu_frames.back() + item.h * item.w);
      }
      EXPECT_EQ(layout.cu_frames, cu_frames);
    }
  }
}

TEST(VisionLayoutTest, PositionsFollowThePatches) {
  // One frame of 2 x 3 cells in windows of 2 x 2 cells: the last column is a window by itself.
  const VisionLayout layout = MakeVisionLayout({{.t = 1, .h = 4, .w = 6}}, 2, 2);
  const std::vector<int32_t> cells = {0, 1, 3, 4, 2, 5};
  EXPECT_EQ(layout.cells, cells);
  ASSERT_EQ(layout.positions.size(), 48u);
  for (size_t place = 0; place < cells.size(); ++place) {
    for (int patch = 0; patch < 4; ++patch) {
      const int row = cells[place] / 3 * 2 + patch / 2, column = cells[place] % 3 * 2 + patch % 2;
      EXPECT_EQ(layout.positions[place * 4 + patch], row);
      EXPECT_EQ(layout.positions[24 + place * 4 + patch], column);
    }
  }
}

TEST(VisionLayoutTest, WithoutWindowsOrdersAreTheSame) {
  const VisionLayout layout = MakeVisionLayout({{.t = 2, .h = 6, .w = 10}}, 2, 0);
  EXPECT_TRUE(layout.is_identity);
  EXPECT_EQ(layout.cu_windows, layout.cu_frames);
}

TEST(VisionLayoutDeathTest, GridsMustBeMultiplesOfMerge) {
  EXPECT_DEATH(MakeVisionLayout({{.t = 1, .h = 3, .w = 4}}, 2, 2), "item.h % merge");
}

TEST(PositionTapsTest, CornersStandOnCornersAndWeightsAddUp) {
  const PositionTaps taps = MakePositionTaps({{.t = 2, .h = 4, .w = 6}}, 2, 5);
  ASSERT_EQ(taps.taps_P4.size(), 2u * 24 * 4);
  const std::vector<int32_t> first(taps.taps_P4.begin(), taps.taps_P4.begin() + 4);
  EXPECT_EQ(first, (std::vector<int32_t>{0, 1, 5, 6}));
  EXPECT_EQ(taps.weights_P4[0], 1.0f);
  // The last patch stands on the last row of the table: nothing lies beyond it.
  EXPECT_EQ(taps.taps_P4[4 * 23], 24);
  EXPECT_EQ(taps.weights_P4[4 * 23], 1.0f);
  for (size_t i = 0; i < taps.weights_P4.size(); i += 4) {
    const float* weights = &taps.weights_P4[i];
    EXPECT_NEAR(weights[0] + weights[1] + weights[2] + weights[3], 1.0, 1e-6);
  }
  // Patch 5, the second of the second cell, is (0, 3): column 3 * 4 / 5 = 2.4.
  EXPECT_EQ(taps.taps_P4[4 * 5], 2);
  EXPECT_NEAR(taps.weights_P4[4 * 5 + 1], 0.4, 1e-6);
  for (int i = 0; i < 24 * 4; ++i) EXPECT_EQ(taps.taps_P4[i], taps.taps_P4[24 * 4 + i]);
}

TEST(PositionTapsTest, OnePatchAndOneRowWork) {
  const PositionTaps lone = MakePositionTaps({{.t = 1, .h = 1, .w = 1}}, 1, 1);
  EXPECT_EQ(lone.taps_P4, (std::vector<int32_t>{0, 0, 0, 0}));
  EXPECT_EQ(lone.weights_P4, (std::vector<float>{1, 0, 0, 0}));
  EXPECT_EQ(MakePositionTaps({}, 2, 5).taps_P4.size(), 0u);
}

TEST(WindowedAudioLayoutTest, StepsOfThePaddingAreLeftOut) {
  // 5 frames give 3 steps of the 4 that their 7 rows make; 8 fill the window.
  const auto layout = MakeWindowedAudioLayout(
      {{.t = 5, .num_input_rows = 7}, {.t = 8, .num_input_rows = 8}, {.t = 0}}, 8);
  EXPECT_EQ(layout.cu_frames, (std::vector<int32_t>{0, 7, 15, 15}));
  EXPECT_EQ(layout.kept_steps, (std::vector<int32_t>{0, 1, 2, 4, 5, 6, 7}));
  EXPECT_EQ(layout.cu_steps, (std::vector<int32_t>{0, 3, 7, 7}));
  EXPECT_EQ(layout.cu_items, layout.cu_steps);
  EXPECT_EQ(layout.positions, (std::vector<int32_t>{0, 1, 2, 0, 1, 2, 3}));
}

TEST(WindowedAudioLayoutTest, AShardHasTheFramesItsConvolutionsSee) {
  // 18 frames and 2 past their end: units of frames 0..4, 4..8, ..., 16..20; the last makes one
  // step and no output row.
  const std::vector<parallel::MediaItem> items = {
      {.t = 18, .num_input_rows = 20, .num_output_rows = 4}};
  const auto first = MakeWindowedAudioLayout(items, 100, 0, 2);
  EXPECT_EQ(first.cu_frames, (std::vector<int32_t>{0, 9}));  // 0..8 and one after
  EXPECT_EQ(first.kept_steps, (std::vector<int32_t>{0, 1, 2, 3}));
  EXPECT_EQ(first.positions, (std::vector<int32_t>{0, 1, 2, 3}));
  const auto second = MakeWindowedAudioLayout(items, 100, 1, 2);
  EXPECT_EQ(second.cu_frames, (std::vector<int32_t>{0, 14}));  // 8..20 and two before
  EXPECT_EQ(second.kept_steps, (std::vector<int32_t>{1, 2, 3, 4, 5}));
  EXPECT_EQ(second.positions, (std::vector<int32_t>{4, 5, 6, 7, 8}));
  EXPECT_EQ(Qwen2Audio::kUnit.OutputRows(items[0], 1, 2), (parallel::UnitRange{2, 4}));
  // More shards than units: some have nothing.
  const auto none = MakeWindowedAudioLayout(items, 100, 0, 7);
  EXPECT_EQ(none.cu_frames, (std::vector<int32_t>{0, 0}));
  EXPECT_EQ(none.kept_steps, std::vector<int32_t>{});
}

TEST(AudioLayoutTest, LengthsAreThePublishedOnes) {
  QwenAudioConfig config;
  config.hidden = config.ffn = 8;
  config.layers = config.heads = 1;
  const QwenAudio encoder(config, {.name = "audio", .output_hidden = 8, .init = {}});
  for (const int frames : {1, 2, 3, 4, 5, 96, 99, 199, 200, 201, 202, 399, 400, 401, 3000}) {
    const auto layout = MakeAudioLayout({{.t = frames}}, 200);
    const int steps = (frames - 1) / 2 + 1;
    EXPECT_EQ(layout.cu_items, (std::vector<int32_t>{0, steps})) << frames;
    EXPECT_EQ(encoder.NumOutputRows({.t = frames}), steps == 1 ? 0 : (steps - 2) / 2 + 1) << frames;
    for (size_t chunk = 0; chunk + 1 < layout.cu_steps.size(); ++chunk) {
      EXPECT_LE(layout.cu_steps[chunk + 1] - layout.cu_steps[chunk], 100);
    }
  }
}

TEST(AudioLayoutTest, ChunksStopAtItems) {
  const auto layout = MakeAudioLayout({{.t = 31}, {.t = 403}, {.t = 200}}, 200);
  EXPECT_EQ(layout.cu_frames, (std::vector<int32_t>{0, 31, 231, 431, 434, 634}));
  EXPECT_EQ(layout.cu_steps, (std::vector<int32_t>{0, 16, 116, 216, 218, 318}));
  EXPECT_EQ(layout.cu_items, (std::vector<int32_t>{0, 16, 218, 318}));
}

}  // namespace
}  // namespace omni::encoders
