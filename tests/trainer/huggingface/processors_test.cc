#include "trainer/huggingface/processors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "dataloader/data_config.h"
#include "dataloader/media/encode.h"
#include "tests/support/family_case.h"

namespace omni::trainer {
namespace {

using dataloader::DataConfig;
using dataloader::FrameRule;
using dataloader::ResizeMode;
using ::testing::HasSubstr;

// `yaml`: defaults of a family, under a recipe that says no more than it must.
DataConfig WithDefaults(const std::string& yaml) {
  auto node = ConfigNode::Parse("tokenizer: t\nsources: [{name: a, path: a}]\n", "recipe.yaml");
  OMNI_CHECK_OK(node.status());
  const auto defaults = ConfigNode::Parse(yaml, "defaults");
  OMNI_CHECK_OK(defaults.status());
  node->FillFrom(*defaults);
  DataConfig config;
  OMNI_CHECK_OK(Read(*node, &config));
  return config;
}

FamilyInput Files(const std::string& image, const std::string& video = "") {
  FamilyInput input;
  input.processor = ConfigNode::Parse(image, "preprocessor_config.json").value();
  if (!video.empty()) {
    input.video_processor = ConfigNode::Parse(video, "video_preprocessor_config.json").value();
  }
  return input;
}

TEST(ProcessorsTest, FoldersGiveTheDataTheirProcessorsBounds) {
  for (const char* family : {"qwen2_5_vl", "qwen2_5_omni"}) {
    const DataConfig config = WithDefaults(omni::testing::OpenFamily(family)->family().data_yaml);
    EXPECT_EQ(config.image.resize, ResizeMode::kTorchvision) << family;
    EXPECT_EQ(config.image.alpha, dataloader::AlphaMode::kDrop);
    EXPECT_EQ(config.image.min_pixels, 576);
    EXPECT_EQ(config.image.max_pixels, 2048);
    EXPECT_EQ(config.video.resize, ResizeMode::kTorchvision);
    EXPECT_EQ(config.video.frame_rule, FrameRule::kQwen2_5);
    // transformers' Qwen2_5OmniProcessor has bounds of its own: the file's don't count.
    const bool is_omni = family == std::string("qwen2_5_omni");
    EXPECT_EQ(config.video.min_pixels, is_omni ? 128 * 28 * 28 : 256);
    EXPECT_EQ(config.video.max_pixels, is_omni ? 768 * 28 * 28 : 1024);
    EXPECT_EQ(config.video.max_clip_pixels, 0);
  }
  const DataConfig omni =
      WithDefaults(omni::testing::OpenFamily("qwen2_5_omni")->family().data_yaml);
  EXPECT_EQ(omni.audio.mel_bands, 8);
  EXPECT_EQ(omni.audio.max_seconds, 300);
}

TEST(ProcessorsTest, Qwen3VlBoundsTheWholeClip) {
  for (const char* family : {"qwen3_vl", "qwen3_vl_moe"}) {
    const DataConfig config = WithDefaults(omni::testing::OpenFamily(family)->family().data_yaml);
    EXPECT_EQ(config.image.resize, ResizeMode::kTorchvision) << family;
    EXPECT_EQ(config.image.min_pixels, 576);
    EXPECT_EQ(config.image.max_pixels, 2048);
    EXPECT_EQ(config.video.frame_rule, FrameRule::kQwen3);
    EXPECT_EQ(config.video.min_clip_pixels, 1024);
    EXPECT_EQ(config.video.max_clip_pixels, 8192);
  }
  const std::string yaml =
      VisionDataYaml(Files("{size: {shortest_edge: 576, longest_edge: 2048}}",
                           "{size: {shortest_edge: 1024, longest_edge: 8192}, fps: 1.5, "
                           "min_frames: 2, max_frames: 10}"),
                     Qwen3VisionProcessor())
          .value();
  const DataConfig config = WithDefaults("{" + yaml + "}");
  EXPECT_EQ(config.image.min_pixels, 576);
  EXPECT_EQ(config.image.max_pixels, 2048);
  EXPECT_EQ(config.video.frame_rule, FrameRule::kQwen3);
  EXPECT_EQ(config.video.min_clip_pixels, 1024);
  EXPECT_EQ(config.video.max_clip_pixels, 8192);
  EXPECT_EQ(config.video.fps, 1.5);
  EXPECT_EQ(config.video.min_frames, 2);
  EXPECT_EQ(config.video.max_frames, 10);
}

TEST(ProcessorsTest, OneFileServesPicturesAndClips) {
  const FamilyInput hub = Files("{min_pixels: 3136, max_pixels: 12845056}");
  const DataConfig config =
      WithDefaults("{" + VisionDataYaml(hub, Qwen25VisionProcessor()).value() + "}");
  EXPECT_EQ(config.image.max_pixels, 12845056);
  EXPECT_EQ(config.video.min_pixels, 3136);
  EXPECT_EQ(config.video.max_pixels, 12845056);
}

TEST(ProcessorsTest, WithoutFilesTheClassesDefaultsHold) {
  const DataConfig config =
      WithDefaults("{" + VisionDataYaml({}, Qwen25VisionProcessor()).value() + "}");
  EXPECT_EQ(config.image.min_pixels, 3136);
  EXPECT_EQ(config.image.max_pixels, 1003520);
  EXPECT_EQ(config.video.min_pixels, 100352);
  EXPECT_EQ(config.video.max_pixels, 602112);
}

TEST(ProcessorsTest, BadValuesNameFileAndKey) {
  const absl::Status status =
      VisionDataYaml(Files("{min_pixels: many}"), Qwen25VisionProcessor()).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(status.message(), HasSubstr("preprocessor_config.json"));
  EXPECT_THAT(status.message(), HasSubstr("min_pixels"));
}

struct PackCase {
  const char* family;
  const char* name;
};
class ProcessorPackTest : public ::testing::TestWithParam<PackCase> {};

// By the folder's configurations alone: the case's sources become the pack its encoder was given.
TEST_P(ProcessorPackTest, SourcesBecomeTheEncodersPack) {
  const auto pretrained = omni::testing::OpenFamily(GetParam().family);
  const auto harness = omni::testing::LoadFamily(*pretrained);
  const omni::testing::FamilyCase golden = omni::testing::LoadFamilyCase(
      GetParam().family, GetParam().name, harness->model(), pretrained->folder().config());
  const parallel::MediaPack& expected = golden.media.at("vision");
  DataConfig config = WithDefaults(pretrained->family().data_yaml);
  const encoders::InputGeometry geometry = harness->model().encoder("vision")->geometry();
  config.SetPatchGeometry({.patch = geometry.patch,
                           .temporal_patch = geometry.temporal_patch,
                           .merge = geometry.merge});
  config.video.frame_rule = FrameRule::kQwen3;  // draws every frame at a clip's own rate
  if (GetParam().family == std::string("qwen2_5_omni")) {
    config.video.min_pixels = 256;  // the golden clips' processor was called by itself
    config.video.max_pixels = 1024;
  }
  const auto source = [&](const char* kind, int index) {
    return *golden.file->Get(absl::StrCat(kind, ".", index));
  };
  std::vector<uint8_t> payload;
  int pictures = 0, clips = 0;
  for (const parallel::MediaItem& item : expected.items) {
    const dataloader::PatchGrid grid{item.t, item.h, item.w};
    std::vector<uint8_t> rows(grid.num_rows() * expected.row_elements);
    if (item.t > 1) {  // a clip: all have several
      const TensorView view = source("video", clips++);
      const auto height = static_cast<int32_t>(view.size(1));
      const auto width = static_cast<int32_t>(view.size(2));
      const auto plan = dataloader::PlanVideo({.kind = dataloader::MediaKind::kVideo,
                                               .height = height,
                                               .width = width,
                                               .num_frames = view.size(0),
                                               .fps = config.video.fps},
                                              config.video);
      ASSERT_TRUE(plan.ok()) << plan.status();
      ASSERT_EQ(plan->grid, grid);
      dataloader::FramesToPatches(
          {view.ptr<const uint8_t>(), static_cast<size_t>(view.num_elements())}, {height, width},
          *plan, config.video.geometry, absl::MakeSpan(rows));
    } else {
      const TensorView view = source("picture", pictures++);
      const uint8_t* rgb = view.ptr<const uint8_t>();
      const dataloader::Image image{
          {static_cast<int32_t>(view.size(0)), static_cast<int32_t>(view.size(1))},
          {rgb, rgb + view.num_elements()}};
      ASSERT_TRUE(dataloader::ImageToPatches(*dataloader::EncodePng(image), config.image, grid,
                                             absl::MakeSpan(rows))
                      .ok());
    }
    payload.insert(payload.end(), rows.begin(), rows.end());
  }
  EXPECT_EQ(payload, expected.payload);
}

INSTANTIATE_TEST_SUITE_P(
    Families, ProcessorPackTest,
    ::testing::Values(PackCase{"qwen2_5_vl", "images_two"}, PackCase{"qwen2_5_vl", "video"},
                      PackCase{"qwen2_5_vl", "packed"}, PackCase{"qwen2_5_vl", "mixed"},
                      PackCase{"qwen2_5_omni", "image_ragged"}, PackCase{"qwen2_5_omni", "video"},
                      PackCase{"qwen3_vl", "images_two"}, PackCase{"qwen3_vl", "video"},
                      PackCase{"qwen3_vl", "mixed"}, PackCase{"qwen3_vl_moe", "video"}),
    [](const ::testing::TestParamInfo<PackCase>& info) {
      std::string name = absl::StrCat(info.param.family, "_", info.param.name);
      std::erase(name, '_');
      return name;
    });

}  // namespace
}  // namespace omni::trainer
