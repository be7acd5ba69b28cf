#include "dataloader/media/patches.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dataloader/media/encode.h"
#include "tests/dataloader/media/golden_inputs.h"

namespace omni::dataloader {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(PackPatchesTest, AgreesWithQwensProcessor) {
  const std::string golden = ReadGolden("patches_56x84.u8");
  const Image image = GoldenPicture(56, 84, 9);
  std::vector<uint8_t> rows(24 * 1176);
  PackPatches(image.rgb, /*repeat_frame=*/true, {}, {1, 4, 6}, absl::MakeSpan(rows));
  EXPECT_TRUE(std::equal(rows.begin(), rows.end(), golden.begin(), golden.end(),
                         [](uint8_t a, char b) { return a == static_cast<uint8_t>(b); }));
}

// Against the definition, one element at a time.
void CheckAgainstDefinition(const PatchGeometry& geometry, PatchGrid grid, bool repeat) {
  const int32_t frames = grid.t * (repeat ? 1 : geometry.temporal_patch);
  const int32_t h = grid.h * geometry.patch, w = grid.w * geometry.patch;
  std::vector<uint8_t> pixels;
  for (int32_t f = 0; f < frames; ++f) {
    const Image frame = GoldenPicture(h, w, 100 + f);
    pixels.insert(pixels.end(), frame.rgb.begin(), frame.rgb.end());
  }
  std::vector<uint8_t> rows(grid.num_rows() * geometry.row_elements());
  PackPatches(pixels, repeat, geometry, grid, absl::MakeSpan(rows));
  const int32_t m = geometry.merge, p = geometry.patch, tp = geometry.temporal_patch;
  size_t at = 0;
  for (int32_t t = 0; t < grid.t; ++t) {
    for (int32_t by = 0; by < grid.h / m; ++by) {
      for (int32_t bx = 0; bx < grid.w / m; ++bx) {
        for (int32_t i = 0; i < m * m; ++i) {
          const int32_t y0 = (by * m + i / m) * p, x0 = (bx * m + i % m) * p;
          for (int32_t c = 0; c < 3; ++c) {
            for (int32_t f = 0; f < tp; ++f) {
              for (int32_t y = 0; y < p; ++y) {
                for (int32_t x = 0; x < p; ++x, ++at) {
                  const int64_t frame = repeat ? t : t * tp + f;
                  const int64_t pixel = (frame * h + y0 + y) * w + x0 + x;
                  ASSERT_EQ(rows[at], pixels[pixel * 3 + c]);
                }
              }
            }
          }
        }
      }
    }
  }
  ASSERT_EQ(at, rows.size());
  const Image first = UnpackPatches(rows, geometry, grid, 0);
  EXPECT_TRUE(std::equal(first.rgb.begin(), first.rgb.end(), pixels.begin()));
}

TEST(PackPatchesTest, FollowsTheDefinitionForAnyGeometry) {
  CheckAgainstDefinition({.patch = 14, .temporal_patch = 2, .merge = 2}, {3, 2, 4}, false);
  CheckAgainstDefinition({.patch = 14, .temporal_patch = 2, .merge = 2}, {1, 2, 2}, true);
  CheckAgainstDefinition({.patch = 14, .temporal_patch = 1, .merge = 1}, {2, 1, 3}, false);
  CheckAgainstDefinition({.patch = 16, .temporal_patch = 2, .merge = 2}, {2, 4, 2}, false);
  CheckAgainstDefinition({.patch = 16, .temporal_patch = 2, .merge = 2}, {1, 2, 4}, true);
  CheckAgainstDefinition({.patch = 5, .temporal_patch = 3, .merge = 3}, {1, 3, 6}, true);
}

TEST(ImageToPatchesTest, SizedPicturesArePackedAsTheyAre) {
  const Image image = GoldenPicture(56, 84, 9);
  const ImageOptions options{.min_pixels = 56 * 56, .max_pixels = 100 * 100};
  const PatchGrid grid = ImageGrid(image.size, options).value();
  EXPECT_EQ(grid, (PatchGrid{1, 4, 6}));
  std::vector<uint8_t> rows(grid.num_rows() * 1176);
  ASSERT_TRUE(ImageToPatches(EncodePng(image).value(), options, grid, absl::MakeSpan(rows)).ok());
  EXPECT_EQ(UnpackPatches(rows, {}, grid, 0).rgb, image.rgb);
  EXPECT_EQ(UnpackPatches(rows, {}, grid, 1).rgb, image.rgb);
}

TEST(ImageToPatchesTest, SizedJpegsArePackedAsTheyAreDecoded) {
  for (const int32_t patch : {14, 16}) {
    const ImageOptions options{.geometry = {.patch = patch}, .max_pixels = 1 << 20};
    const std::string jpeg = EncodeJpeg(GoldenPicture(6 * patch, 16 * patch, 9)).value();
    const PatchGrid grid = ImageGrid({6 * patch, 16 * patch}, options).value();
    EXPECT_EQ(grid, (PatchGrid{1, 6, 16}));
    std::vector<uint8_t> rows(grid.num_rows() * options.geometry.row_elements());
    ASSERT_TRUE(ImageToPatches(jpeg, options, grid, absl::MakeSpan(rows)).ok());
    EXPECT_EQ(UnpackPatches(rows, options.geometry, grid, 1).rgb, DecodeImage(jpeg)->rgb);
  }
}

TEST(ImageToPatchesTest, OtherSizesAreResized) {
  const Image image = GoldenPicture(100, 131, 4);
  const ImageOptions options{.min_pixels = 56 * 56, .max_pixels = 100 * 100};
  const PatchGrid grid = ImageGrid(image.size, options).value();
  std::vector<uint8_t> rows(grid.num_rows() * 1176);
  ASSERT_TRUE(ImageToPatches(EncodePng(image).value(), options, grid, absl::MakeSpan(rows)).ok());
  EXPECT_EQ(UnpackPatches(rows, {}, grid, 1).rgb,
            ResizeBicubic(image, {grid.h * 14, grid.w * 14}).rgb);
}

// Decoder and resize together, against Pillow's decoder and torchvision's resize.
TEST(ImageToPatchesTest, WholeDecodedJpegsHaveTorchvisionsBytes) {
  const std::string golden = ReadGolden("waves_130x180_28x56.u8");
  const std::string file = ReadGolden("waves_130x180.jpg");
  const auto frame = [&](ResizeMode mode) {
    const ImageOptions options{.resize = mode, .min_pixels = 1, .max_pixels = 3136};
    const PatchGrid grid = ImageGrid({130, 180}, options).value();
    EXPECT_EQ(grid, (PatchGrid{1, 2, 4}));
    std::vector<uint8_t> rows(grid.num_rows() * 1176);
    EXPECT_TRUE(ImageToPatches(file, options, grid, absl::MakeSpan(rows)).ok());
    const Image image = UnpackPatches(rows, {}, grid, 0);
    return std::string(image.rgb.begin(), image.rgb.end());
  };
  EXPECT_EQ(frame(ResizeMode::kTorchvision), golden);
  EXPECT_NE(frame(ResizeMode::kFast), golden);  // reduced to 65 x 90 by the decoder
}

TEST(ImageToPatchesTest, RefusesAPictureThatChanged) {
  const ImageOptions options;
  std::vector<uint8_t> rows(16 * 1176);
  const absl::Status status = ImageToPatches(EncodePng(GoldenPicture(560, 28, 1)).value(), options,
                                             {1, 4, 4}, absl::MakeSpan(rows));
  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_THAT(status.message(), HasSubstr("28 x 560 pixels"));
}

MediaInfo Clip(int64_t frames, double fps) {
  return {.kind = MediaKind::kVideo, .height = 112, .width = 112, .num_frames = frames, .fps = fps};
}

TEST(PlanVideoTest, DrawsFramesBySecondsWithinBounds) {
  VideoOptions options{.fps = 2, .min_frames = 4, .max_frames = 8};
  // 3 s at 30 frames/s: six frames, the first and the last among them.
  VideoPlan plan = PlanVideo(Clip(90, 30), options).value();
  EXPECT_EQ(plan.grid, (PatchGrid{3, 8, 8}));
  EXPECT_THAT(plan.frame_indices, ElementsAre(0, 18, 36, 53, 71, 89));
  EXPECT_NEAR(plan.timestamps_s[0], 0.3, 1e-9);
  EXPECT_NEAR(plan.seconds_per_grid, 1.0, 1e-9);
  EXPECT_EQ(PlanVideo(Clip(900, 30), options)->frame_indices.size(), 8u);  // max
  EXPECT_EQ(PlanVideo(Clip(15, 30), options)->frame_indices.size(), 4u);   // min
  EXPECT_THAT(PlanVideo(Clip(3, 30), options)->frame_indices, ElementsAre(0, 2));
  EXPECT_THAT(PlanVideo(Clip(1, 30), options)->frame_indices, ElementsAre(0, 0));
  EXPECT_EQ(PlanVideo(Clip(75, 30), options)->frame_indices.size(), 4u);  // five is not even
}

TEST(SeedBudgetTest, TakesTheMostGenerousLevelThatFits) {
  struct Case {
    int64_t frames, drawn;
    int32_t tokens;
  };
  // The report's table: 128 frames at 640 tokens up to 640 at 128.
  const Case cases[] = {{0, 0, 640},     {1, 1, 640},     {128, 128, 640},   {129, 129, 512},
                        {160, 160, 512}, {161, 161, 384}, {213, 213, 384},   {214, 214, 256},
                        {320, 320, 256}, {321, 321, 160}, {512, 512, 160},   {513, 513, 128},
                        {640, 640, 128}, {641, 640, 128}, {100000, 640, 128}};
  for (const Case& c : cases) {
    const SeedBudget budget = FitSeedBudget(c.frames);
    EXPECT_EQ(budget.frames, c.drawn) << c.frames;
    EXPECT_EQ(budget.tokens_per_frame, c.tokens) << c.frames;
    EXPECT_LE(budget.frames * budget.tokens_per_frame, 81920) << c.frames;
  }
}

TEST(PlanVideoTest, SeedsBudgetBoundsTheTokensOfAClip) {
  VideoOptions options{.geometry = {.temporal_patch = 1},
                       .budget = VideoBudget::kSeed,
                       .fps = 1,
                       .min_frames = 1,
                       .max_frames = 100000,
                       .max_pixels = 28 * 28 * 4096};
  const auto plan = [&](int64_t seconds) {
    MediaInfo clip = Clip(seconds * 30, 30);
    clip.height = 1080;
    clip.width = 1920;
    return PlanVideo(clip, options).value();
  };
  for (const auto& [seconds, frames, tokens] :
       {std::tuple<int64_t, int64_t, int64_t>{100, 100, 640}, {300, 300, 256}, {3600, 640, 128}}) {
    const VideoPlan video = plan(seconds);
    EXPECT_EQ(video.grid.t, frames);
    EXPECT_EQ(static_cast<int64_t>(video.frame_indices.size()), frames);
    const int64_t cells = int64_t{video.grid.h} * video.grid.w / 4;
    EXPECT_LE(cells, tokens);
    EXPECT_GT(cells, tokens * 8 / 10) << "a frame of 16:9 comes near its level";
    EXPECT_EQ(video.frame_indices.back(), seconds * 30 - 1);
    EXPECT_NEAR(video.timestamps_s.back(), static_cast<double>(seconds), 0.1);
  }
  options.fps = 5;
  EXPECT_EQ(plan(100).grid.t, 500);
  // Small frames are not enlarged to their level.
  EXPECT_EQ(PlanVideo(Clip(300, 30), options)->grid, (PatchGrid{50, 8, 8}));
}

TEST(PlanVideoTest, RefusesNoFrames) {
  EXPECT_TRUE(absl::IsInvalidArgument(PlanVideo(Clip(0, 30), {}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(PlanVideo(Clip(10, 0), {}).status()));
}

}  // namespace
}  // namespace omni::dataloader
