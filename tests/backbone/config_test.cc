// Bad decoder sections, and what parameters a good one declares.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "backbone/decoder.h"

namespace omni::backbone {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

absl::Status ReadText(const std::string& yaml, DecoderConfig* config) {
  const auto node = ConfigNode::Parse(yaml, "recipe.yaml");
  if (!node.ok()) return node.status();
  return Read(*node, config);
}

constexpr char kGood[] = "hidden: 64\nlayers: 2\nheads: 4\nffn: 96\nvocab: 100\n";

TEST(DecoderConfigTest, ContradictionsAreNamed) {
  const std::pair<std::string, const char*> cases[] = {
      {"hidden: 64", "layers"},
      {std::string(kGood) + "kv_heads: 3", "4 heads are not a multiple of 3 kv_heads"},
      {std::string(kGood) + "head_dim: 15", "15 is odd"},
      {std::string(kGood) + "rope: {sections: [4, 5]}", "sum to 9, expected head_dim / 2 = 8"},
      {std::string(kGood) + "rope: {sections: [2, 2, 2, 2]}", "4 sections"},
      {std::string(kGood) + "rope: {layout: chunky}", "chunky"},
      {std::string(kGood) + "rope: {theta: 0}", "theta"},
      {std::string(kGood) + "kvheads: 2", "kv_heads"},
      {std::string(kGood) + "norm_eps: 0", "norm_eps"},
      {"hidden: 60\nlayers: 1\nheads: 8\nffn: 4\nvocab: 9", "60 is not a multiple of 8 heads"},
  };
  for (const auto& [yaml, message] : cases) {
    DecoderConfig config;
    const absl::Status status = ReadText(yaml, &config);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << yaml;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("recipe.yaml:"), HasSubstr(message)))
        << yaml;
  }
}

TEST(DecoderConfigTest, AbsentKeysFollowFromOthers) {
  DecoderConfig config;
  ASSERT_TRUE(ReadText(kGood, &config).ok());
  EXPECT_EQ(config.kv_heads, 4);
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_EQ(config.rope.sections, std::vector<int32_t>{8});
}

TEST(DecoderTest, QkvDeclaresItsParts) {
  DecoderConfig config;
  ASSERT_TRUE(ReadText(std::string(kGood) + "kv_heads: 2\ntied_embeddings: true", &config).ok());
  const Decoder decoder(config);
  bool has_qkv = false;
  for (const auto& spec : decoder.Parameters()) {
    EXPECT_NE(spec.path, "decoder.head.weight");
    if (spec.path != "decoder.layers.1.attention.qkv.weight") continue;
    has_qkv = true;
    EXPECT_EQ(spec.StackRows(), (std::vector<int64_t>{64, 32, 32}));
    EXPECT_EQ(spec.shape, (std::vector<int64_t>{128, 64}));
  }
  EXPECT_TRUE(has_qkv);
}

}  // namespace
}  // namespace omni::backbone
