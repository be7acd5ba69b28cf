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
      {std::string(kGood) + "rope: {scaling: {factor: 2}}", "key \"kind\" is missing"},
      {std::string(kGood) + "rope: {scaling: {kind: llama3, high_frequency_factor: 1}}",
       "expected more than low_frequency_factor"},
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

TEST(MoeConfigTest, ContradictionsAreNamed) {
  const std::pair<const char*, const char*> cases[] = {
      {"top_k: 2, ffn: 8", "experts"},
      {"experts: 4", "ffn"},
      {"experts: 4, ffn: 8, top_k: 5", "found 5, but there are 4 experts"},
      {"experts: 0, ffn: 8", "experts"},
      {"experts: 4, ffn: 8, shared_gate: true", "no shared expert"},
      {"experts: 4, ffn: 8, dense_layers: [2]", "found layer 2, expected 0 to 1"},
      {"experts: 4, ffn: 8, dense_layers: [0, 1]", "leave none of 2 layers"},
      {"experts: 4, ffn: 8, sparse_step: 3", "sparse_step 3"},
      {"experts: 4, ffn: 8, sparse_step: 0", "sparse_step"},
      {"experts: 4, ffn: 8, balance_loss: {mode: per_sequnce}", "did you mean \"per_sequence\""},
      {"experts: 4, ffn: 8, balance_loss: {coefficient: -1}", "coefficient"},
      {"experts: 4, ffn: 8, z_loss: -1", "z_loss"},
      {"experts: 4, ffn: 8, bias_update_rat: 1", "bias_update_rate"},
  };
  for (const auto& [moe, message] : cases) {
    DecoderConfig config;
    const absl::Status status = ReadText(absl::StrCat(kGood, "moe: {", moe, "}"), &config);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << moe;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("recipe.yaml:"), HasSubstr(message)))
        << moe;
  }
}

TEST(MoeConfigTest, LayersAreChosenByStepAndList) {
  const auto layers = [](const std::string& moe) {
    DecoderConfig config;
    const std::string yaml = absl::StrCat(
        "hidden: 8\nlayers: 6\nheads: 2\nffn: 8\nvocab: 9\nmoe: {experts: 2, ffn: 4, ", moe, "}");
    EXPECT_TRUE(ReadText(yaml, &config).ok()) << moe;
    std::vector<int32_t> chosen;
    for (int32_t i = 0; i < 6; ++i)
      if (config.moe.IsMoe(i)) chosen.push_back(i);
    EXPECT_EQ(config.num_moe_layers(), static_cast<int32_t>(chosen.size()));
    return chosen;
  };
  EXPECT_EQ(layers(""), (std::vector<int32_t>{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(layers("sparse_step: 2"), (std::vector<int32_t>{1, 3, 5}));
  EXPECT_EQ(layers("sparse_step: 2, dense_layers: [3]"), (std::vector<int32_t>{1, 5}));
  EXPECT_EQ(layers("dense_layers: [0, 2]"), (std::vector<int32_t>{1, 3, 4, 5}));
}

TEST(MoeTest, DeclaresEachExpertsMatricesByThemselves) {
  DecoderConfig config;
  ASSERT_TRUE(ReadText(absl::StrCat(kGood,
                                    "moe: {experts: 3, ffn: 10, shared_ffn: 6, "
                                    "shared_gate: true, dense_layers: [0]}"),
                       &config)
                  .ok());
  std::map<std::string, parallel::ParameterSpec> specs;
  for (const auto& spec : Decoder(config).Parameters()) specs[spec.path] = spec;
  const auto expect = [&](const char* path, std::vector<int64_t> shape, std::vector<int64_t> rows) {
    ASSERT_EQ(specs.count(path), 1u) << path;
    EXPECT_EQ(specs[path].shape, shape) << path;
    EXPECT_EQ(specs[path].StackRows(), rows) << path;
  };
  expect("decoder.layers.1.moe.router.weight", {3, 64}, {3});
  expect("decoder.layers.1.moe.gate_up.weight", {3, 20, 64}, std::vector<int64_t>(6, 10));
  expect("decoder.layers.1.moe.down.weight", {3, 64, 10}, std::vector<int64_t>(3, 64));
  expect("decoder.layers.1.moe.shared.gate_up.weight", {12, 64}, {6, 6});
  expect("decoder.layers.1.moe.shared.down.weight", {64, 6}, {64});
  expect("decoder.layers.1.moe.shared_gate.weight", {1, 64}, {1});
  EXPECT_EQ(specs.count("decoder.layers.0.mlp.gate_up.weight"), 1u);
  EXPECT_EQ(specs.count("decoder.layers.1.mlp.gate_up.weight"), 0u);
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

TEST(DecoderTest, EveryParameterSaysHowItIsCut) {
  DecoderConfig config;
  ASSERT_TRUE(ReadText(absl::StrCat(kGood,
                                    "kv_heads: 2\nqk_norm: true\nmoe: {experts: 3, ffn: 10, "
                                    "shared_ffn: 6, shared_gate: true, dense_layers: [0]}"),
                       &config)
                  .ok());
  using Units = std::vector<int64_t>;
  const Units qkv = {4, 2, 2}, vocab = {config.vocab}, whole = {};
  const std::map<std::string, std::pair<int32_t, Units>> expected = {
      {"decoder.embedding.weight", {0, vocab}},
      {"decoder.head.weight", {0, vocab}},
      {"decoder.norm.weight", {-1, whole}},
      {"decoder.layers.0.attention.qkv.weight", {0, qkv}},
      {"decoder.layers.0.attention.qkv.bias", {0, qkv}},
      {"decoder.layers.0.attention.q_norm.weight", {-1, whole}},
      {"decoder.layers.0.attention.output.weight", {1, {4}}},
      {"decoder.layers.0.mlp.gate_up.weight", {0, {config.ffn, config.ffn}}},
      {"decoder.layers.0.mlp.down.weight", {1, {config.ffn}}},
      {"decoder.layers.1.mlp_norm.weight", {-1, whole}},
      {"decoder.layers.1.moe.router.weight", {-1, whole}},
      {"decoder.layers.1.moe.gate_up.weight", {-1, whole}},
      {"decoder.layers.1.moe.shared.gate_up.weight", {0, {6, 6}}},
      {"decoder.layers.1.moe.shared.down.weight", {1, {6}}},
      {"decoder.layers.1.moe.shared_gate.weight", {-1, whole}}};
  size_t found = 0;
  for (const auto& spec : Decoder(config).Parameters()) {
    EXPECT_EQ(spec.is_expert, spec.shape.size() == 3) << spec.path;
    const auto it = expected.find(spec.path);
    if (it == expected.end()) continue;
    ++found;
    EXPECT_EQ(spec.tensor_dim, it->second.first) << spec.path;
    EXPECT_EQ(spec.tensor_units, it->second.second) << spec.path;
    if (spec.tensor_dim == 0) {
      EXPECT_EQ(spec.StackRows().size(), spec.tensor_units.size()) << spec.path;
    }
  }
  EXPECT_EQ(found, expected.size());
}

}  // namespace
}  // namespace omni::backbone
