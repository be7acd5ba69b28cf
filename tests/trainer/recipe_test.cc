// What a recipe says across its sections: phases in tokens, geometry that must agree; and that the
// shipped ones load.
#include "trainer/recipe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

namespace omni::trainer {
namespace {

using ::testing::HasSubstr;

// A recipe of 4 lanes of 100 tokens: 400 a step.
std::string Yaml(const std::string& training, const std::string& encoders = "{}",
                 const std::string& data = "") {
  return absl::StrCat(
      "model:\n  decoder: {hidden: 16, layers: 1, heads: 2, ffn: 8, vocab: 9}\n  encoders: ",
      encoders,
      "\ndata:\n  lanes: 4\n  sequence_length: 100\n  tokenizer: t\n"
      "  sources: [{name: a, path: a}]\n",
      data, "training:\n  steps: 50\n", training);
}

TEST(RecipeTest, PhasesInTokensBecomeSteps) {
  const auto recipe = ParseRecipe(Yaml("  optimizer: {lr: 1e-3}\n"
                                       "  phases:\n"
                                       "  - {until_tokens: 4001, lr: 4.0, final_lr: 2.0,\n"
                                       "     schedule: {kind: linear}}\n"
                                       "  - {until_step: 20, modules: {decoder: {frozen: true}}}\n"
                                       "  - {lr: 3.0, schedule: {kind: constant}}\n"),
                                  "r.yaml");
  ASSERT_TRUE(recipe.ok()) << recipe.status();
  const std::vector<TrainingPhase>& phases = recipe->training.phases;
  ASSERT_EQ(phases.size(), 3u);
  EXPECT_EQ(phases[0].until_step, 11);
  EXPECT_EQ(phases[1].until_step, 20);
  EXPECT_EQ(phases[2].until_step, 50);
  EXPECT_DOUBLE_EQ(recipe->training.LearningRate(0), 4.0);
  EXPECT_DOUBLE_EQ(recipe->training.LearningRate(5), 3.0);
  EXPECT_DOUBLE_EQ(recipe->training.LearningRate(10), 2.0);
  EXPECT_DOUBLE_EQ(recipe->training.LearningRate(20), 3.0);
  EXPECT_DOUBLE_EQ(recipe->training.LearningRate(49), 3.0);
  EXPECT_FALSE(recipe->modules().At("decoder", 10).frozen);
  EXPECT_TRUE(recipe->modules().At("decoder", 11).frozen);
  EXPECT_FALSE(recipe->modules().At("decoder", 20).frozen);
}

TEST(RecipeTest, ContradictionsAreNamed) {
  const std::string audio = "{audio: {kind: qwen2_audio, layers: 1, max_positions: 100}}";
  const std::pair<std::string, const char*> cases[] = {
      {Yaml("  phases: [{until_step: 3}, {until_step: 3}]\n"), "the phase before it at step 3"},
      {Yaml("  phases: [{until_step: 3}, {until_tokens: 1200}]\n"),
       "ends at step 3, the phase before it at step 3"},
      {Yaml("  phases: [{lr: 1.0}, {until_step: 3}]\n"), "another phase follows"},
      {absl::StrCat(absl::StrReplaceAll(
                        Yaml(""), {{"layers: 1", "layers: 2, moe: {experts: 2, ffn: 4, "
                                                 "balance_loss: {mode: reference}}"}}),
                    "parallel: {workers: 2, pipeline: 2}\n"),
       "the decoder is in 2 chunks, but model.decoder.moe.balance_loss.mode reference"},
      {Yaml("", audio, "  audio: {mel_bands: 128, max_seconds: 2.5}\n"),
       "max_seconds is 2.5, model.encoders.audio hears 2 s"},
      {Yaml("", audio, "  audio: {mel_bands: 80, max_seconds: 2}\n"),
       "mel_bands is 80, model.encoders.audio has 128"},
  };
  for (const auto& [yaml, message] : cases) {
    const absl::Status status = ParseRecipe(yaml, "r.yaml").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << yaml;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
    EXPECT_THAT(std::string(status.message()), HasSubstr("r.yaml:"));
  }
}

TEST(RecipeTest, TheLoaderGetsTheGeometryOfTheEncoders) {
  const auto recipe = ParseRecipe(
      Yaml("", "{audio: {kind: qwen2_audio, layers: 1}, vision: {kind: seed_vision, layers: 1}}",
           "  audio: {mel_bands: 128}\n"),
      "r.yaml");
  ASSERT_TRUE(recipe.ok()) << recipe.status();
  EXPECT_EQ(recipe->data.audio.window_frames, 3000);
  EXPECT_EQ(recipe->data.audio.context_frames, 2);
  EXPECT_EQ(recipe->data.image.geometry.temporal_patch, 1);
  EXPECT_EQ(recipe->data.video.geometry.patch, 14);
}

TEST(ShippedRecipesTest, Load) {
  int num_recipes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(OMNI_SOURCE_DIR "/deploy/recipes")) {
    if (entry.path().extension() != ".yaml") continue;
    const auto recipe = LoadRecipe(entry.path(), {});
    EXPECT_TRUE(recipe.ok()) << recipe.status();
    ++num_recipes;
  }
  EXPECT_GE(num_recipes, 2);
}

TEST(ShippedRecipesTest, SeedsStagesHaveTheirRatesAndParts) {
  const auto recipe = LoadRecipe(OMNI_SOURCE_DIR "/deploy/recipes/seed15_vl.yaml", {});
  ASSERT_TRUE(recipe.ok()) << recipe.status();
  const TrainingConfig& training = recipe->training;
  ASSERT_EQ(training.phases.size(), 3u);
  const int64_t first = training.phases[0].until_step, second = training.phases[1].until_step;
  EXPECT_EQ(recipe->data.PhaseEnds(), (std::vector<int64_t>{first, second, training.steps}));
  const auto batch = [&](int64_t step) {
    return static_cast<double>(recipe->data.LanesAt(step) * recipe->data.SequenceLengthAt(step));
  };
  EXPECT_NEAR(batch(0), 8.4e6, 0.05e6);
  EXPECT_NEAR(batch(first), 71e6, 0.05e6);
  EXPECT_NEAR(batch(second), 71e6, 0.05e6);
  EXPECT_EQ(recipe->data.SequenceLengthAt(second), 131072);
  EXPECT_NEAR(static_cast<double>(first) * batch(0), 16e9, 71e6);
  EXPECT_NEAR(static_cast<double>(second - first) * batch(first), 3e12, 71e6);
  EXPECT_NEAR(static_cast<double>(training.steps - second) * batch(second), 240e9, 71e6);
  EXPECT_DOUBLE_EQ(training.LearningRate(99), 2.52e-4);
  EXPECT_NEAR(training.LearningRate(first - 1), 4.5e-5, 1e-12);
  EXPECT_NEAR(training.LearningRate(first), 5.22e-5 / 500, 1e-12);
  EXPECT_DOUBLE_EQ(training.LearningRate(first + 499), 5.22e-5);
  EXPECT_NEAR(training.LearningRate(second - 1), 5.22e-6, 1e-12);
  EXPECT_DOUBLE_EQ(training.LearningRate(second), 5.22e-6);
  EXPECT_DOUBLE_EQ(training.LearningRate(training.steps - 1), 5.22e-6);
  const ModuleSchedule modules = recipe->modules();
  EXPECT_FALSE(modules.At("vision.projector", 0).frozen);
  for (const char* module : {"vision", "decoder", "decoder.embedding", "decoder.head"}) {
    EXPECT_TRUE(modules.At(module, 0).frozen) << module;
    EXPECT_FALSE(modules.At(module, first).frozen) << module;
  }
}

}  // namespace
}  // namespace omni::trainer
