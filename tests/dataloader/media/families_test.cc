// What the families' processors make of pictures, clips and sounds (tests/golden/families), made by
// us.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "dataloader/media/audio.h"
#include "dataloader/media/encode.h"
#include "dataloader/media/patches.h"
#include "runtime/base/config.h"
#include "runtime/checkpoint/safetensors.h"
#include "runtime/ops/conv.h"
#include "tests/dataloader/media/golden_inputs.h"
#include "tests/support/test_device.h"

namespace omni::dataloader {
namespace {

std::string FamiliesFile(const std::string& name) {
  return std::string(OMNI_SOURCE_DIR "/tests/golden/families/") + name;
}

// JSON is YAML.
ConfigNode ReadJson(const std::string& name) {
  absl::StatusOr<ConfigNode> node = ConfigNode::LoadFile(FamiliesFile(name));
  OMNI_CHECK_OK(node.status());
  return *node;
}

int64_t Int(const ConfigNode& node) { return node.AsInt().value(); }
std::vector<int64_t> Ints(const ConfigNode& list) {
  std::vector<int64_t> values;
  for (const ConfigNode& item : list.items()) values.push_back(Int(item));
  return values;
}
std::vector<float> Floats(const ConfigNode& list) {
  std::vector<float> values;
  for (const ConfigNode& item : list.items()) {
    values.push_back(static_cast<float>(item.AsDouble().value()));
  }
  return values;
}

TEST(ProcessorSizesTest, PicturesGetTheFamiliesSizes) {
  const std::vector<ConfigNode> cases = ReadJson("processors.json").Get("smart_resize").items();
  EXPECT_EQ(cases.size(), 70u);
  for (const ConfigNode& node : cases) {
    const std::vector<int64_t> c = Ints(node);
    const absl::StatusOr<ImageSize> size =
        SmartResize({static_cast<int32_t>(c[0]), static_cast<int32_t>(c[1])},
                    {.factor = static_cast<int32_t>(c[2]), .min_pixels = c[3], .max_pixels = c[4]});
    ASSERT_TRUE(size.ok()) << size.status();
    EXPECT_EQ(size->height, c[5]) << c[0] << " x " << c[1] << ", factor " << c[2];
    EXPECT_EQ(size->width, c[6]) << c[0] << " x " << c[1] << ", factor " << c[2];
  }
}

TEST(ProcessorSizesTest, ClipsGetQwen3VlsSizes) {
  const std::vector<ConfigNode> cases =
      ReadJson("processors.json").Get("smart_resize_video").items();
  EXPECT_EQ(cases.size(), 48u);
  for (const ConfigNode& node : cases) {
    const std::vector<int64_t> c = Ints(node);
    const absl::StatusOr<ImageSize> size = SmartResizeClip(
        c[0], 2, {static_cast<int32_t>(c[1]), static_cast<int32_t>(c[2])},
        {.factor = static_cast<int32_t>(c[3]), .min_pixels = c[4], .max_pixels = c[5]});
    ASSERT_TRUE(size.ok()) << size.status();
    EXPECT_EQ(size->height, c[6]) << c[0] << " x " << c[1] << " x " << c[2];
    EXPECT_EQ(size->width, c[7]) << c[0] << " x " << c[1] << " x " << c[2];
  }
}

TEST(ProcessorSizesTest, ClipsQwen3VlRefusesAreErrors) {
  const ResizeBudget budget{.factor = 32, .min_pixels = 4096, .max_pixels = 1 << 20};
  EXPECT_TRUE(absl::IsInvalidArgument(SmartResizeClip(1, 2, {64, 64}, budget).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(SmartResizeClip(4, 2, {31, 64}, budget).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(SmartResizeClip(4, 2, {32, 32 * 201}, budget).status()));
}

void CheckFrames(const std::string& key, FrameRule rule) {
  const std::vector<ConfigNode> cases = ReadJson("processors.json").Get(key).items();
  EXPECT_EQ(cases.size(), 15u);
  for (const ConfigNode& node : cases) {
    const MediaInfo info{.kind = MediaKind::kVideo,
                         .height = 112,
                         .width = 112,
                         .num_frames = Int(node.Get("total")),
                         .fps = node.Get("fps").AsDouble().value()};
    const absl::StatusOr<VideoPlan> plan =
        PlanVideo(info, {.frame_rule = rule, .fps = node.Get("wanted").AsDouble().value()});
    ASSERT_TRUE(plan.ok()) << plan.status();
    std::vector<int64_t> expected = Ints(node.Get("indices"));
    if (expected.size() % 2 == 1) expected.push_back(expected.back());
    EXPECT_EQ(plan->frame_indices, expected) << info.num_frames << " frames at " << info.fps;
    const ConfigNode stamps = node.Get("stamps");
    if (stamps.is_null()) continue;
    ASSERT_EQ(stamps.items().size(), plan->timestamps_s.size());
    for (size_t t = 0; t < plan->timestamps_s.size(); ++t) {
      EXPECT_EQ(absl::StrFormat("<%.1f seconds>", plan->timestamps_s[t]),
                stamps.items()[t].AsString().value());
    }
  }
}
TEST(ProcessorFramesTest, Qwen25Vl) { CheckFrames("frames_qwen2_5_vl", FrameRule::kQwen2_5); }
TEST(ProcessorFramesTest, Qwen3Vl) { CheckFrames("frames_qwen3_vl", FrameRule::kQwen3); }

TEST(ProcessorFramesTest, ClipsTheRulesCannotDrawFromAreErrors) {
  const MediaInfo one{
      .kind = MediaKind::kVideo, .height = 112, .width = 112, .num_frames = 1, .fps = 25};
  EXPECT_TRUE(PlanVideo(one, {.frame_rule = FrameRule::kEven}).ok());
  for (const FrameRule rule : {FrameRule::kQwen2_5, FrameRule::kQwen3}) {
    const absl::Status status = PlanVideo(one, {.frame_rule = rule}).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status));
    EXPECT_THAT(status.message(), ::testing::HasSubstr("expected 2 at least"));
  }
}

struct PixelCase {
  const char* family;
  const char* name;
};
void PrintTo(const PixelCase& c, std::ostream* out) { *out << c.family << "/" << c.name; }

// Sources to normalised patches, as the encoder normalises them.
class ProcessorPixelsTest : public ::testing::TestWithParam<PixelCase> {
 protected:
  ProcessorPixelsTest() {
    const std::string folder = absl::StrCat(GetParam().family, "/");
    auto file = SafetensorsFile::Open(
        FamiliesFile(absl::StrCat(folder, "case_", GetParam().name, ".safetensors")));
    OMNI_CHECK_OK(file.status());
    file_ = *std::move(file);
    picture_config_ = ReadJson(folder + "preprocessor_config.json");
    clip_config_ = ReadJson(folder + "video_preprocessor_config.json");
  }

  // Least and most pixels, under either of the two names.
  static std::pair<int64_t, int64_t> Bounds(const ConfigNode& config) {
    const ConfigNode size = config.Get("size");
    if (size.is_null()) return {Int(config.Get("min_pixels")), Int(config.Get("max_pixels"))};
    return {Int(size.Get("shortest_edge")), Int(size.Get("longest_edge"))};
  }
  static PatchGeometry Geometry(const ConfigNode& config) {
    return {.patch = static_cast<int32_t>(Int(config.Get("patch_size"))),
            .temporal_patch = static_cast<int32_t>(Int(config.Get("temporal_patch_size"))),
            .merge = static_cast<int32_t>(Int(config.Get("merge_size")))};
  }
  absl::Span<const uint8_t> Bytes(const TensorView& view) const {
    return {view.ptr<const uint8_t>(), static_cast<size_t>(view.num_elements())};
  }

  // Compares and returns how many rows there were.
  int64_t ExpectPixels(const std::string& name, const ConfigNode& config, int64_t first_row,
                       const std::vector<uint8_t>& rows) {
    const TensorView golden = file_->Get(name).value();
    const int64_t width = golden.size(1);
    const auto num_rows = static_cast<int64_t>(rows.size()) / width;
    testing::TestDevice device;
    ExecContext ctx = device.ctx();
    const std::vector<float> values = device.Read<float>(NormalizePatches(
        ctx, device.Upload<uint8_t>(rows, {num_rows, width}), 3, Floats(config.Get("image_mean")),
        Floats(config.Get("image_std")), DType::kFloat32));
    EXPECT_LE(first_row + num_rows, golden.size(0));
    const float* expected = golden.ptr<const float>() + first_row * width;
    float largest = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      largest = std::max(largest, std::abs(values[i] - expected[i]));
    }
    // A byte more or less is 1/255/std, 8e-3 at least.
    EXPECT_LT(largest, 1e-5f) << name << ", rows from " << first_row;
    return num_rows;
  }

  std::unique_ptr<SafetensorsFile> file_;
  ConfigNode picture_config_, clip_config_;
};

TEST_P(ProcessorPixelsTest, SourcesBecomeTheReferencesPatches) {
  const auto [least, most] = Bounds(picture_config_);
  const ImageOptions options{.geometry = Geometry(picture_config_),
                             .resize = ResizeMode::kTorchvision,
                             .min_pixels = least,
                             .max_pixels = most};
  int64_t row = 0;
  size_t num_sources = 0;
  for (int i = 0; file_->Has(absl::StrCat("picture.", i)); ++i, ++num_sources) {
    const TensorView source = file_->Get(absl::StrCat("picture.", i)).value();
    const absl::Span<const uint8_t> bytes = Bytes(source);
    const Image image{{static_cast<int32_t>(source.size(0)), static_cast<int32_t>(source.size(1))},
                      {bytes.begin(), bytes.end()}};
    const PatchGrid grid = ImageGrid(image.size, options).value();
    const int32_t* thw = file_->Get("image_grid_thw")->ptr<const int32_t>() + 3 * i;
    EXPECT_EQ(grid, (PatchGrid{thw[0], thw[1], thw[2]}));
    std::vector<uint8_t> rows(grid.num_rows() * options.geometry.row_elements());
    // By way of a lossless file, so that this is all that training does.
    ASSERT_TRUE(ImageToPatches(EncodePng(image).value(), options, grid, absl::MakeSpan(rows)).ok());
    row += ExpectPixels("pixel_values", picture_config_, row, rows);
  }
  if (row > 0) {
    EXPECT_EQ(row, file_->Get("pixel_values")->size(0));
  }
  row = 0;
  for (int i = 0; file_->Has(absl::StrCat("video.", i)); ++i, ++num_sources) {
    const TensorView source = file_->Get(absl::StrCat("video.", i)).value();
    const bool whole_clip = absl::StartsWith(GetParam().family, "qwen3");
    const auto [clip_least, clip_most] = Bounds(clip_config_);
    VideoOptions clip{.geometry = Geometry(clip_config_),
                      .resize = ResizeMode::kTorchvision,
                      .frame_rule = FrameRule::kQwen3,  // takes every frame here
                      .fps = 1,
                      .min_frames = 1,
                      .min_pixels = clip_least,
                      .max_pixels = clip_most};
    if (whole_clip) std::tie(clip.min_clip_pixels, clip.max_clip_pixels) = Bounds(clip_config_);
    const ImageSize size{static_cast<int32_t>(source.size(1)),
                         static_cast<int32_t>(source.size(2))};
    const VideoPlan plan = PlanVideo({.kind = MediaKind::kVideo,
                                      .height = size.height,
                                      .width = size.width,
                                      .num_frames = source.size(0),
                                      .fps = 1},
                                     clip)
                               .value();
    const int32_t* thw = file_->Get("video_grid_thw")->ptr<const int32_t>() + 3 * i;
    EXPECT_EQ(plan.grid, (PatchGrid{thw[0], thw[1], thw[2]}));
    std::vector<uint8_t> rows(plan.grid.num_rows() * clip.geometry.row_elements());
    FramesToPatches(Bytes(source), size, plan, clip.geometry, absl::MakeSpan(rows));
    row += ExpectPixels("pixel_values_videos", clip_config_, row, rows);
  }
  if (row > 0) {
    EXPECT_EQ(row, file_->Get("pixel_values_videos")->size(0));
  }
  EXPECT_GT(num_sources, 0u);
}

INSTANTIATE_TEST_SUITE_P(
    Families, ProcessorPixelsTest,
    ::testing::Values(PixelCase{"qwen2_5_vl", "image"}, PixelCase{"qwen2_5_vl", "image_ragged"},
                      PixelCase{"qwen2_5_vl", "images_two"}, PixelCase{"qwen2_5_vl", "video"},
                      PixelCase{"qwen2_5_vl", "packed"}, PixelCase{"qwen2_5_vl", "mixed"},
                      PixelCase{"qwen3_vl", "image"}, PixelCase{"qwen3_vl", "image_ragged"},
                      PixelCase{"qwen3_vl", "images_two"}, PixelCase{"qwen3_vl", "video"},
                      PixelCase{"qwen3_vl", "packed"}, PixelCase{"qwen3_vl", "mixed"},
                      PixelCase{"qwen3_vl_moe", "image_ragged"},
                      PixelCase{"qwen3_vl_moe", "images_two"}, PixelCase{"qwen3_vl_moe", "video"},
                      PixelCase{"qwen2_5_omni", "image_ragged"}, PixelCase{"qwen2_5_omni", "video"},
                      PixelCase{"qwen2_5_omni", "audio_video"},
                      PixelCase{"qwen2_5_omni", "audio_in_video"}),
    [](const ::testing::TestParamInfo<PixelCase>& info) {
      std::string name = absl::StrCat(info.param.family, "_", info.param.name);
      std::erase(name, '_');
      return name;
    });

struct SoundCase {
  const char* family;
  const char* name;
  int64_t clips;
};

// Waves to log-mel features, as the feature extractor makes them in its window.
class ProcessorSoundsTest : public ::testing::TestWithParam<SoundCase> {};

TEST_P(ProcessorSoundsTest, WavesBecomeTheReferencesFeatures) {
  const std::string folder = absl::StrCat(GetParam().family, "/");
  const auto file = SafetensorsFile::Open(FamiliesFile(absl::StrCat(
                                              folder, "case_", GetParam().name, ".safetensors")))
                        .value();
  const ConfigNode config = ReadJson(folder + "preprocessor_config.json");
  const auto bands = static_cast<int32_t>(Int(config.Get("feature_size")));
  const auto window = static_cast<int32_t>(Int(config.Get("nb_max_frames")));
  const TensorView sources = file->Get("audio_sources").value();
  const int32_t* lengths = file->Get("feature_lengths")->ptr<const int32_t>();
  const TensorView golden = file->Get("input_features").value();
  // Qwen2-Audio's encoder takes the window whole: the frames after a sound are compared too.
  const bool whole_windows = golden.size(0) == GetParam().clips * window;
  const AudioOptions options{
      .mel_bands = bands, .window_frames = window, .context_frames = whole_windows ? 2 : 0};
  const LogMel log_mel(bands);
  ASSERT_EQ(sources.size(0), GetParam().clips);
  int64_t first_row = 0;
  for (int64_t clip = 0; clip < GetParam().clips; ++clip) {
    static constexpr const char* kKinds[] = {"silence", "tone", "mix"};
    const int32_t* source = sources.ptr<const int32_t>() + 2 * clip;
    const std::vector<float> wave = GoldenWave(kKinds[source[0]], source[1]);
    const MelShape shape = MelShapeOf(static_cast<int64_t>(wave.size()), options);
    EXPECT_EQ(shape.frames, lengths[clip]);
    std::vector<float> mel(shape.rows * bands);
    MelOfSamples(wave, options, log_mel, absl::MakeSpan(mel));
    const float* expected = golden.ptr<const float>() + first_row * bands;
    float largest = 0;
    for (size_t i = 0; i < mel.size(); ++i) {
      largest = std::max(largest, std::abs(mel[i] - expected[i]));
    }
    EXPECT_LT(largest, 1e-4f) << "clip " << clip;
    // What is not made is silence: all at the floor.
    for (int64_t i = shape.rows * bands; whole_windows && i < int64_t{window} * bands; ++i) {
      ASSERT_EQ(expected[i], expected[int64_t{window} * bands - 1]) << "clip " << clip;
    }
    first_row += whole_windows ? window : shape.rows;
  }
  EXPECT_EQ(first_row, golden.size(0));
}

INSTANTIATE_TEST_SUITE_P(Families, ProcessorSoundsTest,
                         ::testing::Values(SoundCase{"qwen2_5_omni", "audio_099", 1},
                                           SoundCase{"qwen2_5_omni", "audio_201", 1},
                                           SoundCase{"qwen2_5_omni", "audio_31", 1},
                                           SoundCase{"qwen2_5_omni", "audio_odd", 1},
                                           SoundCase{"qwen2_5_omni", "audio_video", 2},
                                           SoundCase{"qwen2_5_omni", "audio_in_video", 1},
                                           SoundCase{"qwen2_audio", "audio_099", 1},
                                           SoundCase{"qwen2_audio", "audio_201", 1},
                                           SoundCase{"qwen2_audio", "audio_cut", 1},
                                           SoundCase{"qwen2_audio", "audio_two", 2}),
                         [](const ::testing::TestParamInfo<SoundCase>& info) {
                           std::string name = absl::StrCat(info.param.family, "_", info.param.name);
                           std::erase(name, '_');
                           return name;
                         });

}  // namespace
}  // namespace omni::dataloader
