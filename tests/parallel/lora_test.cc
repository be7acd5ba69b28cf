#include "parallel/lora.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "parallel/parameter_list.h"

namespace omni::parallel {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<ParameterSpec> Specs() {
  ParameterSpec qkv = Matrix("decoder.layers.0.attention.qkv.weight", 8, 6, 0.1);
  qkv.stack_rows = {4, 2, 2};
  ParameterSpec gate_up = Matrix("decoder.layers.0.mlp.gate_up.weight", 10, 6, 0.1);
  gate_up.num_stacked = 2;
  ParameterSpec experts = Matrix("decoder.layers.1.moe.gate_up.weight", 10, 6, 0.1);
  experts.shape = {3, 10, 6};
  experts.num_stacked = 6;
  experts.row_dims = 2;
  experts.is_expert = true;
  return {Stem("decoder.embedding.weight", {9, 6}, 0.1),
          qkv,
          Matrix("decoder.layers.0.attention.output.weight", 6, 4, 0.1),
          gate_up,
          experts,
          Stem("decoder.layers.1.moe.router.weight", {3, 6}, 0.1),
          Stem("vision.patch_embed.weight", {12, 6}, 0.1),
          Stem("vision.position_embed.weight", {9, 12}, 0.1),
          Matrix("vision.merger.fc2.weight", 6, 12, 0.1),
          Scale("decoder.norm.weight", 6)};
}

std::vector<std::string> Names(const std::vector<LoraTarget>& targets) {
  std::vector<std::string> names;
  for (const LoraTarget& target : targets) {
    names.insert(names.end(), target.names.begin(), target.names.end());
  }
  return names;
}

TEST(LoraTest, PartsOfFusedWeightsAreTargetsByThemselves) {
  const auto targets =
      FindLoraTargets({.rank = 3, .targets = {"attention.q", "attention.v"}}, Specs());
  ASSERT_TRUE(targets.ok()) << targets.status();
  ASSERT_EQ(targets->size(), 1u);
  const LoraTarget& qkv = (*targets)[0];
  EXPECT_THAT(qkv.names,
              ElementsAre("decoder.layers.0.attention.q", "decoder.layers.0.attention.v"));
  EXPECT_EQ(qkv.parts[1].row_begin, 6);
  EXPECT_EQ(qkv.parts[1].num_rows, 2);
  EXPECT_EQ(qkv.a.shape, (std::vector<int64_t>{6, 6}));
  EXPECT_EQ(qkv.b.shape, (std::vector<int64_t>{6, 3}));
  EXPECT_EQ(qkv.b.init, InitKind::kZeros);
  EXPECT_EQ(qkv.a.path, "lora.decoder.layers.0.attention.qkv.weight.a");
}

TEST(LoraTest, AdaptersAreCutAsTheirMapsAre) {
  std::vector<ParameterSpec> specs = Specs();
  specs[1] = Cut(specs[1], 0, {4, 2, 2});
  specs[2] = Cut(specs[2], 1, {4});
  const auto targets = FindLoraTargets(
      {.rank = 3, .targets = {"attention.q", "attention.v", "output", "fc2"}}, specs);
  ASSERT_TRUE(targets.ok()) << targets.status();
  ASSERT_EQ(targets->size(), 3u);
  const LoraTarget &qkv = (*targets)[0], &output = (*targets)[1], &fc2 = (*targets)[2];
  EXPECT_EQ(qkv.a.tensor_dim, -1);
  EXPECT_EQ(qkv.b.tensor_dim, 0);
  EXPECT_THAT(qkv.b.StackRows(), ElementsAre(4, 2));  // q and v
  EXPECT_THAT(qkv.b.tensor_units, ElementsAre(4, 2));
  EXPECT_EQ(output.a.tensor_dim, 1);
  EXPECT_THAT(output.a.tensor_units, ElementsAre(4));
  EXPECT_EQ(output.b.tensor_dim, -1);
  EXPECT_EQ(fc2.a.tensor_dim, -1);
  EXPECT_EQ(fc2.b.tensor_dim, -1);
}

TEST(LoraTest, EachExpertHasItsOwn) {
  const auto targets = FindLoraTargets({.rank = 2, .targets = {"moe.up"}}, Specs());
  ASSERT_TRUE(targets.ok()) << targets.status();
  ASSERT_EQ(targets->size(), 1u);
  const LoraTarget& up = (*targets)[0];
  EXPECT_THAT(up.names, ElementsAre("decoder.layers.1.moe.up"));
  EXPECT_EQ(up.parts[0].row_begin, 5);
  EXPECT_EQ(up.parts[0].num_rows, 5);
  EXPECT_EQ(up.a.shape, (std::vector<int64_t>{3, 2, 6}));
  EXPECT_EQ(up.b.shape, (std::vector<int64_t>{3, 5, 2}));
  for (const ParameterSpec* matrix : {&up.a, &up.b}) {
    EXPECT_TRUE(matrix->is_expert);
    EXPECT_EQ(matrix->num_rows(), matrix->shape[0] * matrix->shape[1]);
  }
}

TEST(LoraTest, WhatIsNoLinearMapHasNone) {
  for (const char* target : {"router", "embedding", "patch_embed", "position_embed"}) {
    EXPECT_FALSE(FindLoraTargets({.rank = 2, .targets = {target}}, Specs()).ok()) << target;
  }
}

TEST(LoraTest, ABeginningTakesEverythingThatAdapts) {
  const auto targets = FindLoraTargets({.rank = 1, .targets = {"decoder", "fc2"}}, Specs());
  ASSERT_TRUE(targets.ok()) << targets.status();
  EXPECT_THAT(
      Names(*targets),
      ElementsAre("decoder.layers.0.attention.q", "decoder.layers.0.attention.k",
                  "decoder.layers.0.attention.v", "decoder.layers.0.attention.output",
                  "decoder.layers.0.mlp.gate", "decoder.layers.0.mlp.up",
                  "decoder.layers.1.moe.gate", "decoder.layers.1.moe.up", "vision.merger.fc2"));
}

TEST(LoraTest, ATargetThatMatchesNothingIsAnError) {
  const auto targets = FindLoraTargets({.rank = 1, .targets = {"attention.qq"}}, Specs());
  EXPECT_THAT(std::string(targets.status().message()),
              ::testing::AllOf(HasSubstr("target \"attention.qq\" matches no linear map"),
                               HasSubstr("the nearest is \"attention.q\"")));
}

TEST(LoraTest, ConfigNeedsRankAndTargets) {
  const auto read = [](const char* yaml) {
    LoraConfig config;
    return std::string(Read(*ConfigNode::Parse(yaml, "r.yaml"), &config).message());
  };
  EXPECT_EQ(read("{rank: 8, targets: [decoder]}"), "");
  EXPECT_THAT(read("{targets: [decoder]}"), HasSubstr("\"rank\" is missing"));
  EXPECT_THAT(read("{rank: 8}"), HasSubstr("\"targets\" is missing"));
  EXPECT_THAT(read("{rank: 0, targets: [decoder]}"), HasSubstr("rank: found 0"));
}

}  // namespace
}  // namespace omni::parallel
