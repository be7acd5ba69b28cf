#include "dataloader/data_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace omni::dataloader {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

absl::Status ReadText(const std::string& text, DataConfig* config) {
  auto node = ConfigNode::Parse(text, "recipe.yaml");
  if (!node.ok()) return node.status();
  return Read(*node, config);
}

constexpr char kWhole[] = R"(seed: 7
lanes: 2
sequence_length: 100
window: 8
micro_batch_sequences: 2
overlong: cut
tokenizer: t.model
template: plain
text_has_specials: true
special_tokens: {image_pad: "<IMG>"}
image: {resize: torchvision, alpha: drop, min_pixels: 784, max_pixels: 1568}
video: {resize: torchvision, frame_rule: qwen3, fps: 4, min_frames: 2, max_frames: 8,
        max_pixels_per_frame: 3136, frame_text: seed}
position_rule: sequential
positions_per_second: 2
audio: {mel_bands: 40, max_seconds: 2.5, mask_frames: 10, mask_bands: 20}
loader: {threads: 3, prefetch_steps: 2, memory_mib: 10}
sources:
- {name: a, path: a.tar, weight: 3, video_fps: 5}
- {name: b, path: b.tar}
phases:
- {until_step: 10, weights: {a: 1.0}}
- {until_tokens: 4_000, weights: {a: 1, b: 3}}
eval:
- {name: a, path: c.tar, max_samples: 5, video_fps: 0.5}
)";

TEST(DataConfigTest, ReadsEveryKey) {
  DataConfig config;
  const absl::Status status = ReadText(kWhole, &config);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(config.seed, 7u);
  EXPECT_EQ(config.micro_batch_sequences, 2);
  EXPECT_EQ(config.overlong, Overlong::kCut);
  EXPECT_EQ(config.chat_template, Template::kPlain);
  EXPECT_TRUE(config.text_has_specials);
  EXPECT_EQ(config.special_tokens.image_pad, "<IMG>");
  EXPECT_EQ(config.image.max_pixels, 1568);
  EXPECT_EQ(config.image.resize, ResizeMode::kTorchvision);
  EXPECT_EQ(config.image.alpha, AlphaMode::kDrop);
  EXPECT_EQ(config.video.resize, ResizeMode::kTorchvision);
  EXPECT_EQ(config.video.frame_rule, FrameRule::kQwen3);
  EXPECT_EQ(config.video.max_pixels, 3136);
  EXPECT_EQ(config.frame_text, FrameText::kSeed);
  EXPECT_EQ(config.positions.rule, PositionRule::kSequential);
  EXPECT_EQ(config.positions.positions_per_second, 2);
  EXPECT_EQ(config.audio.mel_bands, 40);
  EXPECT_EQ(config.audio_mask.bands, 20);
  EXPECT_EQ(config.loader.threads, 3);
  EXPECT_EQ(config.eval[0].max_samples, 5);
  EXPECT_EQ(config.eval[0].video_fps, 0.5);
  EXPECT_EQ(config.sources[0].video_fps, 5);
  EXPECT_EQ(config.sources[1].video_fps, 0);
}

TEST(DataConfigTest, ClipsAreBoundedByFrameOrAsAWhole) {
  const std::string start = "tokenizer: t\nsources: [{name: a, path: a}]\nvideo: ";
  DataConfig config;
  ASSERT_TRUE(ReadText(start + "{max_pixels_per_clip: 6272}", &config).ok());
  EXPECT_EQ(config.video.min_clip_pixels, 1);
  EXPECT_EQ(config.video.max_clip_pixels, 6272);
  EXPECT_THAT(
      ReadText(start + "{max_pixels_per_clip: 6272, min_pixels_per_frame: 5}", &config).message(),
      HasSubstr("video.min_pixels_per_frame: bounds a frame"));
  EXPECT_THAT(
      ReadText(start + "{max_pixels_per_clip: 6272, min_pixels_per_clip: 7000}", &config).message(),
      HasSubstr("is 7000, more than max_pixels_per_clip (6272)"));
}

TEST(DataConfigTest, SeedsClipsHaveABudget) {
  DataConfig config;
  ASSERT_TRUE(
      ReadText("tokenizer: t\nsources: [{name: a, path: a}]\nvideo: {budget: seed}", &config).ok());
  EXPECT_EQ(config.video.budget, VideoBudget::kSeed);
}

TEST(DataConfigTest, PhasesMayHaveABatchOfTheirOwn) {
  DataConfig config;
  ASSERT_TRUE(ReadText("tokenizer: t\nlanes: 8\nsequence_length: 100\n"
                       "sources: [{name: a, path: a}, {name: b, path: b, weight: 3}]\nphases:\n"
                       "- {until_tokens: 450, lanes: 2, weights: {a: 1}}\n"
                       "- {until_step: 5, lanes: 4}\n"
                       "- {until_tokens: 3_000, sequence_length: 50}\n",
                       &config)
                  .ok());
  // 3 steps of 200 tokens, then 2 of 400, then 4 of 400 (1400 before, 1600 to go), then 800 each.
  EXPECT_THAT(config.PhaseEnds(), ElementsAre(3, 5, 9));
  EXPECT_EQ(config.LanesAt(2), 2);
  EXPECT_EQ(config.LanesAt(3), 4);
  EXPECT_EQ(config.LanesAt(5), 8);
  EXPECT_EQ(config.LanesAt(9), 8);
  EXPECT_EQ(config.SequenceLengthAt(4), 100);
  EXPECT_EQ(config.SequenceLengthAt(8), 50);
  EXPECT_EQ(config.SequenceLengthAt(9), 100);
  EXPECT_THAT(config.WeightsAt(0), ElementsAre(1, 0));
  EXPECT_THAT(config.WeightsAt(4), ElementsAre(0.25, 0.75)) << "no weights: the sources' own";
  for (const auto& [tokens, step] : {std::pair<int64_t, int64_t>{0, 0},
                                     {1, 1},
                                     {600, 3},
                                     {601, 4},
                                     {1400, 5},
                                     {1401, 6},
                                     {3000, 9},
                                     {3001, 10},
                                     {4600, 11}}) {
    EXPECT_EQ(config.StepAtTokens(tokens), step) << tokens;
  }
}

TEST(DataConfigTest, Qwen3VlTellsTheTimeOfFrames) {
  DataConfig config;
  ASSERT_TRUE(
      ReadText("tokenizer: t\nsources: [{name: a, path: a}]\nposition_rule: qwen3_vl", &config)
          .ok());
  EXPECT_EQ(config.frame_text, FrameText::kQwen3Vl);
}

TEST(DataConfigTest, PhasesSwitchTheWeightsByStepAndByTokens) {
  DataConfig config;
  ASSERT_TRUE(ReadText(kWhole, &config).ok());
  EXPECT_THAT(config.WeightsAt(0), ElementsAre(1, 0));
  EXPECT_THAT(config.WeightsAt(9), ElementsAre(1, 0));
  EXPECT_THAT(config.WeightsAt(10), ElementsAre(0.25, 0.75));
  // 4000 tokens of 2 lanes of 100 are 20 steps.
  EXPECT_THAT(config.WeightsAt(19), ElementsAre(0.25, 0.75));
  EXPECT_THAT(config.WeightsAt(20), ElementsAre(0.75, 0.25));
}

TEST(DataConfigTest, TemplatesBringTheNamesOfTheirSymbols) {
  const auto read = [](const std::string& more) -> absl::StatusOr<DataConfig> {
    DataConfig config;
    const absl::Status status =
        ReadText("tokenizer: t\nsources: [{name: a, path: a}]\n" + more, &config);
    if (!status.ok()) return status;
    return config;
  };
  const auto chatml = read(""), omni = read("template: qwen2_5_omni");
  ASSERT_TRUE(chatml.ok() && omni.ok()) << omni.status();
  EXPECT_EQ(chatml->special_tokens.audio_pad, "<|audio_pad|>");
  EXPECT_EQ(omni->special_tokens.audio_pad, "<|AUDIO|>");
  EXPECT_EQ(omni->special_tokens.eos, "<|endoftext|>");
  const auto llama3 =
      read("special_tokens: {image_pad: \"<|image|>\", eos: \"\"}\ntemplate: llama3");
  ASSERT_TRUE(llama3.ok()) << llama3.status();
  EXPECT_EQ(llama3->chat_template, Template::kLlama3);
  EXPECT_EQ(llama3->special_tokens.im_start, "<|start_header_id|>");
  EXPECT_EQ(llama3->special_tokens.image_pad, "<|image|>");
  EXPECT_EQ(llama3->special_tokens.vision_start, "");
  EXPECT_EQ(llama3->special_tokens.eos, "");
}

struct BadCase {
  const char* name;
  const char* text;
  const char* message;
};
class BadDataConfigTest : public ::testing::TestWithParam<BadCase> {};

TEST_P(BadDataConfigTest, IsAnErrorWithLineAndKey) {
  DataConfig config;
  const absl::Status status = ReadText(GetParam().text, &config);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().message));
}

constexpr char kSources[] = "sources: [{name: a, path: a}]\n";

INSTANTIATE_TEST_SUITE_P(
    All, BadDataConfigTest,
    ::testing::Values(
        BadCase{"UnknownKey", "tokenizer: t\nsources: [{name: a, path: a}]\nlane: 3", "lanes"},
        BadCase{"NoTokenizer", kSources, "tokenizer"},
        BadCase{"NoSources", "tokenizer: t", "sources"},
        BadCase{"EmptySources", "tokenizer: t\nsources: []", "sources"},
        BadCase{"SourceWithoutPath", "tokenizer: t\nsources:\n- {name: a}", "path"},
        BadCase{"NoFrames", "tokenizer: t\nsources:\n- {name: a, path: a, video_fps: 0}",
                "recipe.yaml:3"},
        BadCase{"NegativeWeight", "tokenizer: t\nsources:\n- {name: a, path: a, weight: -1}",
                "recipe.yaml:3"},
        BadCase{"AllWeightsZero", "tokenizer: t\nsources: [{name: a, path: a, weight: 0}]",
                "add up to 0"},
        BadCase{"SameName", "tokenizer: t\nsources:\n- {name: a, path: a}\n- {name: a, path: b}",
                "recipe.yaml:4"},
        BadCase{"ZeroLanes", "tokenizer: t\nlanes: 0\nsources: [{name: a, path: a}]",
                "recipe.yaml:2: lanes"},
        BadCase{"PixelsContradict",
                "tokenizer: t\nsources: [{name: a, path: a}]\nimage: {min_pixels: 99, "
                "max_pixels: 10}",
                "image.min_pixels: is 99, more than max_pixels (10)"},
        BadCase{"FramesContradict",
                "tokenizer: t\nsources: [{name: a, path: a}]\nvideo:\n  min_frames: 9\n"
                "  max_frames: 3",
                "recipe.yaml:4"},
        BadCase{"UnknownRule", "tokenizer: t\nsources: [{name: a, path: a}]\nposition_rule: qwen3",
                "qwen3_vl"},
        BadCase{"BudgetAndBoundsOfTheClip",
                "tokenizer: t\nsources: [{name: a, path: a}]\n"
                "video: {budget: seed, max_pixels_per_clip: 6272}",
                "budget: bounds the clip by itself"},
        BadCase{"FramesWithoutTheirPlaces",
                "tokenizer: t\nsources: [{name: a, path: a}]\nposition_rule: qwen3_vl\n"
                "video: {frame_text: none}",
                "position_rule: qwen3_vl places every frame by itself"},
        BadCase{"MeanBelongsElsewhere",
                "tokenizer: t\nsources: [{name: a, path: a}]\nimage: {mean: [0, 0, 0]}",
                "model.encoders"},
        BadCase{"UnknownTemplate", "tokenizer: t\nsources: [{name: a, path: a}]\ntemplate: chatm",
                "chatml"},
        BadCase{"PhaseOfUnknownSource",
                "tokenizer: t\nsources: [{name: image, path: a}]\nphases:\n"
                "- {until_step: 3, weights: {imgae: 1}}",
                "did you mean \"image\""},
        BadCase{"PhaseOfTooManyLanes",
                "tokenizer: t\nlanes: 3\nsources: [{name: a, path: a}]\nphases:\n"
                "- {until_step: 3, lanes: 4}",
                "lanes: is 4, more than data.lanes (3)"},
        BadCase{"PhaseWithNothing",
                "tokenizer: t\nsources: [{name: a, path: a}]\nphases: [{until_step: 3}]",
                "weights is missing"},
        BadCase{"PhaseWithoutEnd",
                "tokenizer: t\nsources: [{name: a, path: a}]\nphases: [{weights: {a: 1}}]",
                "either until_step or until_tokens"},
        BadCase{"PhaseWithTwoEnds",
                "tokenizer: t\nsources: [{name: a, path: a}]\nphases: [{until_step: 1, "
                "until_tokens: 9, weights: {a: 1}}]",
                "either until_step or until_tokens"},
        BadCase{"PhasesOutOfOrder",
                "tokenizer: t\nsources: [{name: a, path: a}]\nphases:\n"
                "- {until_step: 5, weights: {a: 1}}\n- {until_step: 5, weights: {a: 1}}",
                "recipe.yaml:5"},
        BadCase{"PhaseOfNoWeight",
                "tokenizer: t\nsources: [{name: a, path: a}]\nphases: [{until_step: 1, "
                "weights: {a: 0}}]",
                "add up to 0"},
        BadCase{"SymbolTwice",
                "tokenizer: t\nsources: [{name: a, path: a}]\nspecial_tokens: {image_pad: "
                "\"<|video_pad|>\"}",
                "used twice"},
        BadCase{"HeaderOfNoTemplate",
                "tokenizer: t\nsources: [{name: a, path: a}]\nspecial_tokens: {header_end: x}",
                "belongs to data.template: llama3"},
        BadCase{"EmptySymbol",
                "tokenizer: t\nsources: [{name: a, path: a}]\nspecial_tokens: {im_end: \"\"}",
                "special_tokens.im_end"}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace omni::dataloader
