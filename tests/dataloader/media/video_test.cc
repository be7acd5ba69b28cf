#include "dataloader/media/video.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "dataloader/media/encode.h"
#include "dataloader/media/patches.h"
#include "runtime/base/progress.h"
#include "tests/dataloader/media/golden_inputs.h"

namespace omni::dataloader {
namespace {

using ::testing::HasSubstr;

std::shared_ptr<const VideoPlugin> Plugin() {
  absl::StatusOr<std::shared_ptr<const VideoPlugin>> plugin = VideoPlugin::Load();
  OMNI_CHECK_OK(plugin.status());
  return *plugin;
}

// Frame i is grey of brightness 20 + 7 i.
std::vector<uint8_t> GreyFrames(int32_t n, ImageSize size) {
  std::vector<uint8_t> frames;
  for (int32_t i = 0; i < n; ++i) {
    frames.insert(frames.end(), size.height * size.width * 3, static_cast<uint8_t>(20 + 7 * i));
  }
  return frames;
}

class ContainerTest : public testing::TestWithParam<MediaFormat> {};

TEST_P(ContainerTest, FramesComeBackByNumber) {
  const auto plugin = Plugin();
  const ImageSize size{48, 64};
  absl::StatusOr<std::string> bytes =
      plugin->Encode(GreyFrames(30, size), size, {.format = GetParam(), .fps = 10});
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  absl::StatusOr<MediaInfo> info = ProbeMedia(MediaKind::kVideo, *bytes, plugin.get());
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->format, GetParam());
  EXPECT_EQ(info->num_frames, 30);
  EXPECT_NEAR(info->fps, 10, 0.05);
  EXPECT_NEAR(info->duration_s, 3, 0.02);
  EXPECT_EQ(info->height, 48);
  EXPECT_EQ(info->width, 64);

  const std::vector<int64_t> indices = {0, 1, 1, 13, 28, 29};
  const ImageSize wanted{28, 56};
  const int64_t frame_bytes = 28 * 56 * 3;
  std::vector<uint8_t> rgb(indices.size() * frame_bytes);
  std::vector<double> times;
  const absl::Status status = plugin->Decode(*bytes, indices, wanted, absl::MakeSpan(rgb), &times);
  ASSERT_TRUE(status.ok()) << status;
  for (size_t i = 0; i < indices.size(); ++i) {
    double mean = 0;
    for (int64_t b = 0; b < frame_bytes; ++b) mean += rgb[i * frame_bytes + b];
    EXPECT_NEAR(mean / static_cast<double>(frame_bytes), 20 + 7.0 * indices[i], 3) << "frame " << i;
    EXPECT_NEAR(times[i], static_cast<double>(indices[i]) / 10, 2e-3);
  }
}

// Key frames every 12 at x264's default would not come in 30 frames; a long clip has many.
TEST_P(ContainerTest, LongClipsSkipToWhatIsWanted) {
  const auto plugin = Plugin();
  const ImageSize size{16, 16};
  std::vector<uint8_t> frames;
  for (int32_t i = 0; i < 700; ++i) {
    frames.insert(frames.end(), 16 * 16 * 3, static_cast<uint8_t>(16 + i % 200));
  }
  const std::string bytes =
      plugin->Encode(frames, size, {.format = GetParam(), .fps = 25, .quality = 10}).value();
  for (const std::vector<int64_t>& indices :
       {std::vector<int64_t>{650}, {0, 699}, {249, 250, 251, 500}, {3, 600}}) {
    std::vector<uint8_t> rgb(indices.size() * 16 * 16 * 3);
    const absl::Status status = plugin->Decode(bytes, indices, size, absl::MakeSpan(rgb), nullptr);
    ASSERT_TRUE(status.ok()) << status;
    for (size_t i = 0; i < indices.size(); ++i) {
      EXPECT_NEAR(rgb[i * 16 * 16 * 3], 16 + static_cast<int>(indices[i] % 200), 6)
          << "frame " << indices[i];
    }
  }
}

TEST_P(ContainerTest, EncodingIsRepeatable) {
  const auto plugin = Plugin();
  const std::vector<uint8_t> frames = GreyFrames(6, {32, 32});
  EXPECT_EQ(plugin->Encode(frames, {32, 32}, {.format = GetParam()}).value(),
            plugin->Encode(frames, {32, 32}, {.format = GetParam()}).value());
}

TEST_P(ContainerTest, TornClipsAreDataLoss) {
  const auto plugin = Plugin();
  const std::string whole =
      plugin->Encode(GreyFrames(30, {64, 64}), {64, 64}, {.format = GetParam(), .quality = 5})
          .value();
  for (const size_t keep : {size_t{0}, size_t{12}, size_t{40}}) {
    EXPECT_TRUE(absl::IsDataLoss(plugin->Probe(whole.substr(0, keep)).status())) << keep;
  }
  if (GetParam() == MediaFormat::kMp4) {  // its table of frames is at the end
    EXPECT_TRUE(absl::IsDataLoss(plugin->Probe(whole.substr(0, whole.size() / 2)).status()));
  }
}

TEST_P(ContainerTest, DamagedBytesAreAnErrorOrSomeFrames) {
  const auto plugin = Plugin();
  const std::string whole =
      plugin->Encode(GreyFrames(8, {32, 32}), {32, 32}, {.format = GetParam()}).value();
  Lcg lcg(7);
  for (int round = 0; round < 100; ++round) {
    std::string bytes = whole;
    bytes[lcg.Next() % bytes.size()] = static_cast<char>(lcg.Next());
    absl::StatusOr<MediaInfo> info = ProbeMedia(MediaKind::kVideo, bytes, plugin.get());
    if (!info.ok() || info->num_frames > 1000) continue;
    std::vector<uint8_t> rgb(2 * 28 * 28 * 3);
    plugin->Decode(bytes, {0, info->num_frames - 1}, {28, 28}, absl::MakeSpan(rgb), nullptr)
        .IgnoreError();
  }
}

TEST_P(ContainerTest, ClipsBecomePatches) {
  const auto plugin = Plugin();
  const ImageSize size{84, 112};
  const std::string bytes =
      plugin->Encode(GreyFrames(16, size), size, {.format = GetParam(), .fps = 8}).value();
  const MediaInfo info = plugin->Probe(bytes).value();
  const VideoPlan plan =
      PlanVideo(info, {.fps = 4, .min_frames = 4, .max_frames = 8, .max_pixels = 84 * 112}).value();
  EXPECT_EQ(plan.grid, (PatchGrid{4, 6, 8}));
  std::vector<uint8_t> rows(plan.grid.num_rows() * 1176);
  Progress frames;
  ASSERT_TRUE(VideoToPatches(*plugin, bytes, info, plan, {}, {0, plan.grid.num_rows()},
                             absl::MakeSpan(rows), &frames)
                  .ok());
  EXPECT_EQ(frames.count(), 8);
  for (int32_t frame = 0; frame < 8; ++frame) {
    const Image image = UnpackPatches(rows, {}, plan.grid, frame);
    EXPECT_NEAR(image.rgb[1000], 20 + 7.0 * plan.frame_indices[frame], 4) << "frame " << frame;
  }
}

TEST_P(ContainerTest, FramesMayComeOneByOne) {
  const auto plugin = Plugin();
  const ImageSize size{48, 64};
  const std::string bytes =
      plugin->Encode(GreyFrames(12, size), size, {.format = GetParam(), .fps = 10}).value();
  const std::vector<int64_t> indices = {0, 3, 3, 11};
  const int64_t frame_bytes = 48 * 64 * 3;
  std::vector<uint8_t> all(4 * frame_bytes), one(frame_bytes);
  ASSERT_TRUE(plugin->Decode(bytes, indices, size, absl::MakeSpan(all), nullptr).ok());
  std::vector<int64_t> told;
  const absl::Status status =
      plugin->DecodeEach(bytes, indices, size, absl::MakeSpan(one), [&](int64_t i) {
        told.push_back(i);
        EXPECT_TRUE(std::equal(one.begin(), one.end(), all.begin() + i * frame_bytes)) << i;
      });
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(told, (std::vector<int64_t>{0, 1, 2, 3}));
}

TEST_P(ContainerTest, WholeFramesAreResizedAsPicturesAre) {
  const auto plugin = Plugin();
  const ImageSize size{100, 150};
  std::vector<uint8_t> frames;
  for (uint32_t i = 0; i < 6; ++i) {
    const Image frame = GoldenPicture(size.height, size.width, 3);
    frames.insert(frames.end(), frame.rgb.begin(), frame.rgb.end());
  }
  const std::string bytes = plugin->Encode(frames, size, {.format = GetParam(), .fps = 3}).value();
  const MediaInfo info = plugin->Probe(bytes).value();
  const VideoOptions options{.resize = ResizeMode::kTorchvision, .max_pixels = 56 * 84};
  const VideoPlan plan = PlanVideo(info, options).value();
  EXPECT_EQ(plan.size, (ImageSize{56, 84}));
  std::vector<uint8_t> rows(plan.grid.num_rows() * 1176), decoded(size.height * size.width * 3);
  ASSERT_TRUE(VideoToPatches(*plugin, bytes, info, plan, options, absl::MakeSpan(rows)).ok());
  for (size_t i = 0; i < plan.frame_indices.size(); ++i) {
    ASSERT_TRUE(
        plugin->Decode(bytes, {plan.frame_indices[i]}, size, absl::MakeSpan(decoded), nullptr)
            .ok());
    EXPECT_EQ(UnpackPatches(rows, {}, plan.grid, static_cast<int32_t>(i)).rgb,
              ResizeBicubic({size, decoded}, plan.size, ResizeMode::kTorchvision).rgb)
        << "frame " << i;
  }
}

TEST(VideoPluginTest, WholeFramesHaveTheBytesOfOtherReaders) {
  const ImageSize size{34, 50};  // no multiple of what is converted at once
  const std::string bytes = ReadGolden("clip_34x50.mp4"), expected = ReadGolden("clip_34x50.u8");
  std::vector<uint8_t> rgb(3 * size.height * size.width * 3, 111);
  const absl::Status status =
      Plugin()->Decode(bytes, {0, 1, 2}, size, absl::MakeSpan(rgb), nullptr);
  ASSERT_TRUE(status.ok()) << status;
  ASSERT_EQ(rgb.size(), expected.size());
  int most = 0;
  for (size_t i = 0; i < rgb.size(); ++i) {
    most = std::max(most, std::abs(rgb[i] - static_cast<uint8_t>(expected[i])));
  }
  EXPECT_LE(most, 1);
}

uint32_t BigEndian(absl::string_view bytes, size_t at) {
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i) value = value << 8 | static_cast<uint8_t>(bytes[at + i]);
  return value;
}

// The same file with its table of frames (moov) first, as files meant for streaming have it: such
// a file opens when its frames are cut off.
std::string TableFirst(const std::string& mp4) {
  std::string head, moov, rest;
  for (size_t at = 0; at + 8 <= mp4.size();) {
    const uint32_t size = BigEndian(mp4, at);
    const std::string type = mp4.substr(at + 4, 4);
    (type == "ftyp" ? head : type == "moov" ? moov : rest) += mp4.substr(at, size);
    at += size;
  }
  const size_t stco = moov.find("stco");
  const uint32_t entries = BigEndian(moov, stco + 8);
  for (uint32_t i = 0; i < entries; ++i) {
    const size_t at = stco + 12 + 4 * i;
    const uint32_t moved = BigEndian(moov, at) + static_cast<uint32_t>(moov.size());
    for (int b = 0; b < 4; ++b) moov[at + b] = static_cast<char>(moved >> (24 - 8 * b));
  }
  return head + moov + rest;
}

TEST(VideoPluginTest, FramesCutOffBehindTheirTableAreDataLoss) {
  const auto plugin = Plugin();
  std::vector<uint8_t> frames;
  for (int32_t i = 0; i < 10; ++i) {
    const Image noise = GoldenPicture(64, 64, i);
    frames.insert(frames.end(), noise.rgb.begin(), noise.rgb.end());
  }
  const std::string whole = TableFirst(plugin->Encode(frames, {64, 64}, {}).value());
  ASSERT_EQ(plugin->Probe(whole)->num_frames, 10);
  for (const size_t cut : {size_t{100}, whole.size() / 2}) {
    const std::string bytes = whole.substr(0, whole.size() - cut);
    EXPECT_TRUE(absl::IsDataLoss(plugin->Probe(bytes).status())) << "cut by " << cut;
    std::vector<uint8_t> rgb(2 * 28 * 28 * 3);
    EXPECT_TRUE(
        absl::IsDataLoss(plugin->Decode(bytes, {0, 9}, {28, 28}, absl::MakeSpan(rgb), nullptr)));
  }
}

INSTANTIATE_TEST_SUITE_P(All, ContainerTest, testing::Values(MediaFormat::kMp4, MediaFormat::kWebm),
                         [](const auto& info) { return std::string(Name(info.param)); });

TEST(VideoPluginTest, RefusesWhatIsNoClip) {
  const auto plugin = Plugin();
  EXPECT_THAT(ProbeMedia(MediaKind::kVideo, EncodePng(GoldenPicture(2, 2, 1)).value(), plugin.get())
                  .status()
                  .message(),
              HasSubstr("found PNG, expected video (MP4 or WebM)"));
  EXPECT_TRUE(
      absl::IsInvalidArgument(plugin->Encode(GreyFrames(1, {15, 16}), {15, 16}, {}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(
      plugin->Encode(GreyFrames(1, {16, 16}), {16, 16}, {.format = MediaFormat::kWav}).status()));
}

TEST(VideoPluginTest, AMissingPluginSaysHowToGetIt) {
  const absl::Status status = VideoPlugin::Load("/nonexistent/omnitrain_ffmpeg.so").status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_THAT(status.message(), HasSubstr("/nonexistent/omnitrain_ffmpeg.so (no such file)"));
  EXPECT_THAT(status.message(), HasSubstr("Build the target omnitrain_ffmpeg"));
}

}  // namespace
}  // namespace omni::dataloader
