// Bad encoder sections: each names its line, its key, what was found and what was expected.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "encoders/encoder.h"

namespace omni::encoders {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

absl::Status Create(const std::string& yaml) {
  EncoderRegistry registry;
  RegisterEncoders(registry);
  const auto node = ConfigNode::Parse(yaml, "recipe.yaml");
  if (!node.ok()) return node.status();
  return registry.Create(*node, {.name = "tower", .output_hidden = 16, .init = {}}).status();
}

struct BadSection {
  const char* yaml;
  const char* line;
  const char* message;
};

TEST(EncoderConfigTest, ContradictionsAreNamed) {
  const BadSection cases[] = {
      {"hidden: 3", "recipe.yaml:1", "missing key \"kind\""},
      {"kind: qwen_vison", "recipe.yaml:1", "did you mean qwen_vision"},
      {"kind: qwen_vision\nhiden: 64", "recipe.yaml:2", "hidden"},
      {"kind: qwen_vision\nhidden: 64\nheads: 5", "recipe.yaml:3", "not a multiple of 5 heads"},
      {"kind: qwen_vision\nhidden: 36\nheads: 6", "recipe.yaml:3", "multiple of 4"},
      {"kind: qwen_vision\nwindow: 100", "recipe.yaml:2", "merge x patch = 28"},
      {"kind: qwen_vision\nlayers: 2\nfull_attention_layers: [2]", "recipe.yaml:3", "2 layers"},
      {"kind: qwen_vision\nmean: [0.5]", "recipe.yaml:2", "3 channels"},
      {"kind: qwen_vision\nlayers: -1", "recipe.yaml:2", "layers"},
      {"kind: qwen_vision\nhidden: wide", "recipe.yaml:2", "wide"},
      {"kind: qwen_vision\ninit: {kind: xavier}", "recipe.yaml:2", "xavier"},
      {"kind: qwen_vision\ninit: {std: 0.1}", "recipe.yaml:2", "only kind: normal"},
      {"kind: qwen3_vision\nhidden: 64\nheads: 5", "recipe.yaml:3", "not a multiple of 5 heads"},
      {"kind: qwen3_vision\nhidden: 36\nheads: 6", "recipe.yaml:3", "multiple of 4"},
      {"kind: qwen3_vision\nstd: [0.5]", "recipe.yaml:2", "3 channels"},
      {"kind: qwen3_vision\nlayers: 2\ndeepstack_layers: [2]", "recipe.yaml:3", "2 layers"},
      {"kind: qwen3_vision\ndeepstack_layers: [5, 5]", "recipe.yaml:2", "ascending"},
      {"kind: qwen3_vision\nposition_side: 0", "recipe.yaml:2", "position_side"},
      {"kind: qwen3_vision\nwindow: 64", "recipe.yaml:2", "window"},
      {"kind: seed_vision\nhidden: 64\nheads: 5", "recipe.yaml:3", "not a multiple of 5 heads"},
      {"kind: seed_vision\nmean: [0.5]", "recipe.yaml:2", "3 channels"},
      {"kind: seed_vision\nadapter: 0", "recipe.yaml:2", "adapter"},
      {"kind: seed_vision\nposition_side: 4", "recipe.yaml:2", "position_side"},
      {"kind: qwen2_audio\nhidden: 64\nheads: 5", "recipe.yaml:3", "not a multiple of 5 heads"},
      {"kind: qwen2_audio\nhidden: 15\nheads: 3", "recipe.yaml:2", "odd"},
      {"kind: qwen2_audio\nmax_positions: 0", "recipe.yaml:2", "max_positions"},
      {"kind: qwen2_audio\nchunk_frames: 200", "recipe.yaml:2", "chunk_frames"},
      {"kind: qwen_audio\nhidden: 64\nheads: 5", "recipe.yaml:3", "not a multiple of 5 heads"},
      {"kind: qwen_audio\nchunk_frames: 101", "recipe.yaml:2", "odd"},
      {"kind: qwen_audio\nhidden: 15\nheads: 3", "recipe.yaml:2", "odd"},
      {"kind: qwen_audio\nwindow_frames: -1", "recipe.yaml:2", "window_frames"},
      {"kind: qwen_audio\nmel_bands: 0", "recipe.yaml:2", "mel_bands"},
      {"kind: qwen_audio\nwindow: 4", "recipe.yaml:2", "window"},
  };
  for (const BadSection& bad : cases) {
    const absl::Status status = Create(bad.yaml);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad.yaml;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(bad.line), HasSubstr(bad.message)))
        << bad.yaml;
  }
}

TEST(EncoderConfigTest, DefaultsAreThePublishedSizes) {
  EXPECT_TRUE(Create("kind: qwen_audio").ok());
  EXPECT_TRUE(Create("kind: qwen2_audio").ok());
  EXPECT_TRUE(Create("kind: seed_vision").ok());
  EXPECT_TRUE(Create("kind: qwen3_vision\ndeepstack_layers: [8, 16, 24]").ok());
  EXPECT_TRUE(Create("kind: qwen_vision\nfull_attention_layers: [7, 15, 23, 31]").ok());
}

TEST(EncoderConfigTest, InitFollowsTheSection) {
  EncoderRegistry registry;
  RegisterEncoders(registry);
  const auto node = ConfigNode::Parse(
      "kind: qwen_vision\nhidden: 64\nheads: 4\nlayers: 2\nffn: 64\ninit: {kind: normal, std: "
      "0.05}",
      "recipe.yaml");
  ASSERT_TRUE(node.ok());
  const auto encoder = registry.Create(*node, {.name = "v", .output_hidden = 16, .init = {}});
  ASSERT_TRUE(encoder.ok()) << encoder.status();
  std::map<std::string, double> stds;
  for (const auto& spec : (*encoder)->Parameters()) {
    stds[spec.path] = spec.init_std;
  }
  EXPECT_DOUBLE_EQ(stds["v.merger.fc2.weight"], 0.05);
  EXPECT_DOUBLE_EQ(stds["v.blocks.0.mlp.down.weight"], 0.025);
}

}  // namespace
}  // namespace omni::encoders
