#include "runtime/base/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace omni {
namespace {

using ::testing::HasSubstr;

enum class Kind { kAdamW, kMuon };
struct Inner {
  double lr = 1e-3;
  Kind kind = Kind::kAdamW;
};
struct Outer {
  int32_t steps = 10;
  std::vector<int32_t> layers;
  Inner optimizer;
};

absl::Status Read(const ConfigNode& node, Inner* out) {
  ConfigReader reader(node);
  reader.Read("learning_rate", &out->lr, Positive());
  reader.ReadEnum("kind", &out->kind, {{"adamw", Kind::kAdamW}, {"muon", Kind::kMuon}});
  return reader.Finish();
}
absl::Status Read(const ConfigNode& node, Outer* out) {
  ConfigReader reader(node);
  reader.Read("steps", &out->steps, AtLeast(1));
  reader.Read("layers", &out->layers, NonNegative());
  reader.ReadStruct("optimizer", &out->optimizer);
  return reader.Finish();
}

absl::StatusOr<Outer> ReadText(const std::string& text, std::vector<std::string> overrides = {}) {
  auto node = ConfigNode::Parse(text, "r.yaml");
  if (!node.ok()) return node.status();
  if (auto s = node->ApplyOverrides(overrides); !s.ok()) return s;
  Outer outer;
  if (auto s = Read(*node, &outer); !s.ok()) return s;
  return outer;
}

TEST(ConfigTest, ReadsNestedValuesAndKeepsDefaults) {
  const auto outer =
      ReadText("layers: [1, 3]\noptimizer:\n  kind: muon\n  learning_rate: 2.5e-3\n");
  ASSERT_TRUE(outer.ok()) << outer.status();
  EXPECT_EQ(outer->steps, 10);
  EXPECT_THAT(outer->layers, ::testing::ElementsAre(1, 3));
  EXPECT_EQ(outer->optimizer.kind, Kind::kMuon);
  EXPECT_DOUBLE_EQ(outer->optimizer.lr, 2.5e-3);
}

TEST(ConfigTest, IntegersAcceptUnderscoresAndExactExponents) {
  EXPECT_EQ(ReadText("steps: 1_000")->steps, 1000);
  EXPECT_EQ(ReadText("steps: 4e6")->steps, 4000000);
  EXPECT_FALSE(ReadText("steps: 1.5").ok());
}

struct BadInput {
  const char* name;
  std::string text;
  const char* message;
};
class BadConfigTest : public ::testing::TestWithParam<BadInput> {};

TEST_P(BadConfigTest, SaysWhereAndWhat) {
  const auto outer = ReadText(GetParam().text);
  ASSERT_FALSE(outer.ok());
  EXPECT_EQ(outer.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(outer.status().message()), HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    All, BadConfigTest,
    ::testing::Values(
        BadInput{"UnknownKey", "steps: 1\nstep: 2",
                 "r.yaml:2: step: unknown key \"step\"; did you mean \"steps\"?"},
        BadInput{"UnknownNested", "optimizer:\n  learning_rat: 1",
                 "r.yaml:2: optimizer.learning_rat: unknown key"},
        BadInput{"WrongType", "steps: many",
                 "r.yaml:1: steps: found \"many\", expected an integer"},
        BadInput{"MapForNumber", "steps: {a: 1}", "found a mapping, expected an integer"},
        BadInput{"Negative", "optimizer:\n  learning_rate: -1",
                 "r.yaml:2: optimizer.learning_rate: found -1, expected > 0"},
        BadInput{"TooSmall", "steps: 0", "found 0, expected >= 1"},
        BadInput{"TooLarge", "steps: 3000000000", "too large"},
        BadInput{"BadChoice", "optimizer: {kind: muom}", "did you mean \"muon\"?"},
        BadInput{"NotAList", "layers: 3", "r.yaml:1: layers: found \"3\", expected a list"},
        BadInput{"BadItem", "layers: [1, x]", "r.yaml:1: layers.1: found \"x\""},
        BadInput{"NotAMap", "optimizer: 3", "r.yaml:1: optimizer: found \"3\", expected a mapping"},
        BadInput{"Empty", "", "r.yaml: is empty"},
        BadInput{"List", "- 1\n- 2", "expected a mapping"},
        BadInput{"Broken", "a: [1, 2", "not valid YAML"}, BadInput{"Tab", "a:\n\t- 1", "r.yaml:2"},
        BadInput{"Twice", "steps: 1\nsteps: 2", "r.yaml:2: key \"steps\" is given twice"},
        BadInput{"Binary", std::string("steps: 1\n\x01\x02", 11), "r.yaml:2: binary data"}),
    [](const auto& info) { return info.param.name; });

TEST(ConfigTest, DirectoryAndMissingFileAreNamed) {
  EXPECT_THAT(std::string(ConfigNode::LoadFile("/").status().message()),
              HasSubstr("is not a file"));
  EXPECT_EQ(ConfigNode::LoadFile("/no/such.yaml").status().code(), absl::StatusCode::kNotFound);
}

TEST(ConfigTest, OverridesReachNestedKeysAndListItems) {
  const auto outer = ReadText("layers: [1, 2]\noptimizer: {kind: muon}",
                              {"optimizer.learning_rate=0.5", "layers.1=7", "steps=3"});
  ASSERT_TRUE(outer.ok()) << outer.status();
  EXPECT_DOUBLE_EQ(outer->optimizer.lr, 0.5);
  EXPECT_THAT(outer->layers, ::testing::ElementsAre(1, 7));
  EXPECT_EQ(outer->steps, 3);
}

TEST(ConfigTest, DefaultsFillWhatIsAbsentAtEveryDepth) {
  auto node = *ConfigNode::Parse("steps: 3\noptimizer: {kind: muon}\nlayers: ~", "r.yaml");
  node.FillFrom(*ConfigNode::Parse(
      "steps: 9\noptimizer: {kind: adamw, learning_rate: 0.5}\nlayers: [4]", "defaults.yaml"));
  Outer outer;
  ASSERT_TRUE(Read(node, &outer).ok());
  EXPECT_EQ(outer.steps, 3);
  EXPECT_DOUBLE_EQ(outer.optimizer.lr, 0.5);
  EXPECT_THAT(outer.layers, ::testing::ElementsAre(4));
  EXPECT_THAT(node.DumpYaml(), HasSubstr("muon"));
}

TEST(ConfigTest, OverrideMistakesAreErrors) {
  EXPECT_THAT(std::string(ReadText("steps: 1", {"steps"}).status().message()),
              HasSubstr("key.path=value"));
  EXPECT_THAT(std::string(ReadText("steps: 1", {"stepz=2"}).status().message()),
              HasSubstr("did you mean \"steps\""));
  EXPECT_FALSE(ReadText("layers: [1]", {"layers.5=2"}).ok());
  EXPECT_FALSE(ReadText("steps: 1", {"steps.x=2"}).ok());
}

}  // namespace
}  // namespace omni
