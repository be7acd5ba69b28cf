// Encoders shared out within sequence groups, and parameters cut over tensor and expert ranks,
// spread over stages, held in copies, tied, adapted and frozen: optimizer steps are those of one
// rank, and checkpoints of any layout are those of any other.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>

#include "tests/trainer/placed_job.h"

namespace omni::trainer {
namespace {

using Kind = OptimizerConfig::Kind;

OptimizerConfig Config(Kind kind) {
  return {.kind = kind,
          .beta1 = 0.9,
          .beta2 = 0.98,
          .eps = 1e-8,
          .weight_decay = 0.05,
          .newton_schulz_steps = 4,
          .clip = 1.0};
}

// Largest difference over the norm of each tensor.
void ExpectClose(const PlacedOutcome& found, const PlacedOutcome& expected, double tolerance) {
  ASSERT_EQ(found.state.size(), expected.state.size());
  for (const auto& [name, values] : expected.state) {
    const auto it = found.state.find(name);
    ASSERT_NE(it, found.state.end()) << name;
    ASSERT_EQ(it->second.size(), values.size()) << name;
    double norm = 0, worst = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      norm += values[i] * values[i];
      worst = std::max(worst, std::abs(values[i] - it->second[i]));
    }
    EXPECT_LE(worst, tolerance * std::max(std::sqrt(norm), 1e-3)) << name;
  }
  ASSERT_EQ(found.norms.size(), expected.norms.size());
  for (size_t i = 0; i < expected.norms.size(); ++i) {
    EXPECT_NEAR(found.norms[i], expected.norms[i], tolerance * expected.norms[i]) << i;
  }
  EXPECT_EQ(found.update_counts, expected.update_counts);
}

struct Case {
  Kind kind;
  PlacedModel model;
};
const Case kCases[] = {{Kind::kAdamW, {.tied = false}},
                       {Kind::kAdamW, {.tied = true}},
                       {Kind::kMuon, {.tied = true}},
                       {Kind::kMuon, {.heads = 3, .kv_heads = 1}},
                       {Kind::kAdamW, {.tied = true, .lora = true}}};

TEST(PlacedOptimizerTest, ThreeStepsAreThoseOfOneRank) {
  uint64_t seed = 0;
  for (const Case& c : kCases) {
    const PlacedOutcome one = RunPlaced({.model = c.model, .layout = {}, .config = Config(c.kind)});
    EXPECT_GT(one.norms[0], 1.0);  // clipped
    // Vision had no data in one step.
    EXPECT_EQ(one.update_counts.at("vision/adamw-no-decay"), 2);
    EXPECT_EQ(one.update_counts.at("audio/adamw"), 0);
    for (int trial = 0; trial < 6; ++trial, ++seed) {
      const PlacedLayout layout = RandomLayout(c.model, seed, 8);
      SCOPED_TRACE(::testing::Message() << "seed " << seed << ": " << layout.ToString());
      ExpectClose(RunPlaced({.model = c.model,
                             .layout = layout,
                             .config = Config(c.kind),
                             .reduce_early = trial % 2 == 1}),
                  one, 1e-12);
    }
  }
}

// The layouts that matter most, whatever the draws above were.
TEST(PlacedOptimizerTest, CopiesTiesAndExpertsAllAtOnce) {
  for (const Kind kind : {Kind::kAdamW, Kind::kMuon}) {
    const PlacedModel model = {.tied = true};
    const PlacedOutcome one = RunPlaced({.model = model, .layout = {}, .config = Config(kind)});
    for (const PlacedLayout& layout :
         {PlacedLayout{.tensor = 4, .expert = 4},
          PlacedLayout{.pipeline = 2, .tensor = 4, .expert = 2, .chunks_per_rank = 2},
          PlacedLayout{.pipeline = 3, .data = 2, .tensor = 2, .expert = 4},
          PlacedLayout{.data = 3, .tensor = 4, .expert = 4},
          PlacedLayout{.data = 5, .sequence = 5, .weights = parallel::WeightStorage::kZero3},
          PlacedLayout{
              .pipeline = 2, .data = 4, .sequence = 2, .weights = parallel::WeightStorage::kZero3},
          PlacedLayout{
              .pipeline = 2, .data = 3, .sequence = 3, .weights = parallel::WeightStorage::kZero2},
          PlacedLayout{.data = 2,
          .tensor = 4,
          .expert = 2,
          .decoder_weights = parallel::WeightStorage::kZero2},
          PlacedLayout{.pipeline = 2,
          .data = 2,
          .tensor = 2,
          .chunks_per_rank = 2,
          .decoder_weights = parallel::WeightStorage::kZero3}}) {
      SCOPED_TRACE(layout.ToString());
      ExpectClose(
          RunPlaced(
              {.model = model, .layout = layout, .config = Config(kind), .reduce_early = true}),
          one, 1e-12);
    }
  }
}

TEST(PlacedOptimizerTest, AsynchronousStreamsChangeNothing) {
  const PlacedModel model = {.tied = true};
  const PlacedLayout layout = {.pipeline = 2,
                               .tensor = 4,
                               .expert = 2,
                               .sequence = 2,
                               .weights = parallel::WeightStorage::kZero3,
                               .decoder_weights = parallel::WeightStorage::kZero3};
  for (const Kind kind : {Kind::kAdamW, Kind::kMuon}) {
    PlacedRun run = {.model = model, .layout = layout, .config = Config(kind)};
    run.reduce_early = true;
    const PlacedOutcome on_cpu = RunPlaced(run);
    run.device = DeviceKind::kCpuAsync;
    const PlacedOutcome on_streams = RunPlaced(run);
    EXPECT_EQ(on_streams.state, on_cpu.state);
    EXPECT_EQ(on_streams.norms, on_cpu.norms);
  }
}

TEST(PlacedOptimizerTest, CheckpointsOfAnyLayoutAreThoseOfAnyOther) {
  const std::string folder = ::testing::TempDir() + "/placed_" + std::to_string(getpid());
  uint64_t seed = 100;
  for (const Case& c : kCases) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
      // Master weights beside the values are no matter of the rule: once is enough.
      if (dtype == DType::kBFloat16 && c.kind != Kind::kMuon) continue;
      std::filesystem::remove_all(folder);
      PlacedRun saving = {.model = c.model, .layout = RandomLayout(c.model, seed++, 8)};
      saving.config = Config(c.kind);
      saving.dtype = dtype;
      saving.end_step = 2;
      saving.save_to = folder;
      SCOPED_TRACE(::testing::Message() << "saved by " << saving.layout.ToString());
      const PlacedOutcome saved = RunPlaced(saving);
      for (int trial = 0; trial < 10; ++trial) {
        PlacedRun loading = saving;
        loading.save_to.clear();
        loading.load_from = folder;
        loading.layout = trial == 0 ? PlacedLayout{} : RandomLayout(c.model, seed++, 8);
        loading.first_step = loading.end_step = 2;
        loading.update_counts = saved.update_counts;
        SCOPED_TRACE(::testing::Message() << "loaded by " << loading.layout.ToString());
        const PlacedOutcome loaded = RunPlaced(loading);
        EXPECT_EQ(loaded.state, saved.state);
        EXPECT_EQ(loaded.update_counts, saved.update_counts);
      }
    }
  }
  std::filesystem::remove_all(folder);
}

// Bias correction and moments go on where another layout left them.
TEST(PlacedOptimizerTest, AnotherLayoutGoesOnAsIfNothingHadHappened) {
  const std::string folder = ::testing::TempDir() + "/placed_on_" + std::to_string(getpid());
  uint64_t seed = 200;
  for (const Case& c : kCases) {
    PlacedRun unbroken = {.model = c.model, .layout = {}, .config = Config(c.kind)};
    unbroken.end_step = 4;
    const PlacedOutcome expected = RunPlaced(unbroken);
    std::filesystem::remove_all(folder);
    PlacedRun before = unbroken, after = unbroken;
    before.layout = RandomLayout(c.model, seed++, 8);
    before.end_step = 2;
    before.save_to = folder;
    const PlacedOutcome half = RunPlaced(before);
    after.layout = RandomLayout(c.model, seed++, 8);
    after.first_step = 2;
    after.load_from = folder;
    after.update_counts = half.update_counts;
    SCOPED_TRACE(::testing::Message()
                 << before.layout.ToString() << ", then " << after.layout.ToString());
    PlacedOutcome resumed = RunPlaced(after);
    resumed.norms.insert(resumed.norms.begin(), half.norms.begin(), half.norms.end());
    ExpectClose(resumed, expected, 1e-12);
  }
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace omni::trainer
