// What must hold of every tower, whatever its numbers: gradients are those of the rows, packing
// changes nothing, frozen parts cost nothing, no items work, FLOPs are those of the shapes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "tests/encoders/tower_cases.h"

namespace omni {
namespace {

using testing::kTowerCases;
using testing::kTowerOutput;
using testing::OnlyItem;
using testing::RandomPack;
using testing::SomeShapes;
using testing::TowerCase;
using testing::TowerHarness;

class TowerTest : public ::testing::TestWithParam<TowerCase> {
 protected:
  TowerHarness Harness(DType dtype = DType::kFloat64) const {
    return TowerHarness(GetParam().yaml, dtype, GetParam().name, kTowerOutput);
  }
  parallel::MediaPack Pack(const TowerHarness& harness) const {
    return RandomPack(harness.encoder(), GetParam().is_audio, SomeShapes(GetParam().is_audio));
  }
  // A random gradient for every output.
  static std::vector<std::vector<double>> OutputGrads(const TowerHarness::Outcome& outcome) {
    std::vector<std::vector<double>> grads;
    for (const auto& output : outcome.outputs) {
      const CounterRng rng(17, grads.size());
      grads.emplace_back();
      for (size_t i = 0; i < output.size(); ++i) grads.back().push_back(rng.Normal(i));
    }
    return grads;
  }
};

TEST_P(TowerTest, GradientsAreThoseOfTheRows) {
  TowerHarness harness = Harness();
  const parallel::MediaPack pack = Pack(harness);
  const auto output_grads = OutputGrads(harness.Run(pack));
  const TowerHarness::Outcome outcome = harness.Run(pack, output_grads);
  const auto loss = [&] {
    double sum = 0;
    const TowerHarness::Outcome now = harness.Run(pack);
    for (size_t o = 0; o < output_grads.size(); ++o) {
      for (size_t i = 0; i < output_grads[o].size(); ++i) {
        sum += now.outputs[o][i] * output_grads[o][i];
      }
    }
    return sum;
  };
  for (const auto& [path, grad] : outcome.grads) {
    const CounterRng rng(13, StreamOf(path));
    const std::vector<double> start = harness.values().at(path);
    double slope = 0;
    for (size_t i = 0; i < grad.size(); ++i) slope += grad[i] * rng.Normal(i);
    const auto moved = [&](double by) {
      std::vector<double> values = start;
      for (size_t i = 0; i < values.size(); ++i) values[i] += by * rng.Normal(i);
      harness.Set(path, values);
      return loss();
    };
    constexpr double kStep = 1e-5;
    const double found = (moved(kStep) - moved(-kStep)) / (2 * kStep);
    harness.Set(path, start);
    EXPECT_NEAR(found, slope, 2e-6 * std::max(1.0, std::abs(slope))) << path;
    EXPECT_GT(std::abs(slope), 1e-6) << path;
  }
}

TEST_P(TowerTest, ItemsInOnePackAreAsEachAlone) {
  TowerHarness harness = Harness();
  const parallel::MediaPack pack = Pack(harness);
  const TowerHarness::Outcome together = harness.Run(pack);
  std::vector<std::vector<double>> apart(together.outputs.size());
  for (size_t i = 0; i < pack.items.size(); ++i) {
    const TowerHarness::Outcome alone = harness.Run(OnlyItem(pack, i));
    for (size_t o = 0; o < alone.outputs.size(); ++o) {
      apart[o].insert(apart[o].end(), alone.outputs[o].begin(), alone.outputs[o].end());
    }
  }
  for (size_t o = 0; o < apart.size(); ++o) {
    ASSERT_EQ(apart[o].size(), together.outputs[o].size());
    ASSERT_EQ(apart[o].size(), pack.token_rows.size() * kTowerOutput);
    for (size_t i = 0; i < apart[o].size(); ++i) {
      ASSERT_NEAR(apart[o][i], together.outputs[o][i], 1e-12) << "output " << o << " at " << i;
    }
  }
}

TEST_P(TowerTest, FrozenPartsGetNoGradientAndChangeNoOther) {
  TowerHarness harness = Harness();
  const parallel::MediaPack pack = Pack(harness);
  const auto output_grads = OutputGrads(harness.Run(pack));
  const TowerHarness::Outcome all = harness.Run(pack, output_grads);
  const auto is_projector = [](const std::string& path) {
    return absl::StrContains(path, ".merger.") || absl::StrContains(path, ".projector.");
  };
  for (const bool projector_only : {true, false}) {
    harness.Train([&](const std::string& path) { return is_projector(path) == projector_only; });
    const TowerHarness::Outcome some = harness.Run(pack, output_grads);
    EXPECT_EQ(some.outputs, all.outputs);
    EXPECT_FALSE(some.grads.empty());
    for (const auto& [path, grad] : some.grads) {
      EXPECT_EQ(is_projector(path), projector_only) << path;
      EXPECT_EQ(grad, all.grads.at(path)) << path;
    }
  }
  harness.Train([](const std::string&) { return false; });
  EXPECT_TRUE(harness.Run(pack, output_grads).grads.empty());
}

TEST_P(TowerTest, CostsOfItemsSumToThePacks) {
  TowerHarness harness = Harness();
  const parallel::MediaPack pack = Pack(harness);
  harness.Run(pack);
  int64_t sum = 0;
  for (const parallel::MediaItem& item : pack.items) sum += harness.encoder().Cost(item);
  EXPECT_EQ(sum, harness.encoder().Flops(pack.items).forward);
  EXPECT_GT(harness.encoder().Cost(pack.items[0]), 0);
}

TEST_P(TowerTest, NoItemsGiveNoRows) {
  TowerHarness harness = Harness(DType::kFloat32);
  parallel::MediaPack pack = RandomPack(harness.encoder(), GetParam().is_audio, {});
  const TowerHarness::Outcome outcome = harness.Run(pack);
  ASSERT_EQ(outcome.outputs.size(), 1u);
  EXPECT_TRUE(outcome.outputs[0].empty());
  EXPECT_EQ(harness.encoder().Flops(pack.items).total(), 0);
}

TEST_P(TowerTest, Bf16StaysNearFp32) {
  TowerHarness exact = Harness(DType::kFloat32), rounded = Harness(DType::kBFloat16);
  const parallel::MediaPack pack = Pack(exact);
  const auto output_grads = OutputGrads(exact.Run(pack));
  const TowerHarness::Outcome a = exact.Run(pack, output_grads),
                              b = rounded.Run(pack, output_grads);
  const auto distance = [](const std::vector<double>& x, const std::vector<double>& y) {
    double difference = 0, size = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      difference += (x[i] - y[i]) * (x[i] - y[i]);
      size += x[i] * x[i];
    }
    return std::sqrt(difference / size);
  };
  for (size_t o = 0; o < a.outputs.size(); ++o) {
    EXPECT_LE(distance(a.outputs[o], b.outputs[o]), 0.03) << "output " << o;
  }
  for (const auto& [path, grad] : a.grads) {
    EXPECT_LE(distance(grad, b.grads.at(path)), 0.1) << path;
  }
}

INSTANTIATE_TEST_SUITE_P(Towers, TowerTest, ::testing::ValuesIn(kTowerCases), testing::TowerName);

// Multiply-adds of the blocks' maps a row, and of attention over segments of these sizes.
int64_t BlockFlops(int64_t rows, int64_t hidden, int64_t ffn, std::vector<int64_t> segments) {
  int64_t pairs = 0;
  for (const int64_t size : segments) pairs += size * size;
  return 2 * rows * (4 * hidden * hidden + 2 * hidden * ffn) + 4 * pairs * hidden;
}

TEST(TowerFlopsTest, CountsAreThoseOfTheShapes) {
  TowerHarness qwen3(kTowerCases[0].yaml, DType::kFloat32, "vision", kTowerOutput);
  auto pack = RandomPack(qwen3.encoder(), false, {{1, 4, 6}, {2, 2, 4}});
  qwen3.Run(pack, {std::vector<double>(10 * 12, 1.0), std::vector<double>(10 * 12, 1.0),
                   std::vector<double>(10 * 12, 1.0)});
  const int64_t stem = 2 * 40 * 96 * 8, blocks = 3 * BlockFlops(40, 8, 12, {24, 8, 8});
  const int64_t mergers = 3 * 2 * 10 * (32 * 32 + 32 * 12);
  EXPECT_EQ(qwen3.encoder().Flops(pack.items).forward, stem + blocks + mergers);
  EXPECT_EQ(qwen3.encoder().Flops(pack.items).backward, stem + 2 * (blocks + mergers));

  TowerHarness seed(kTowerCases[2].yaml, DType::kFloat32, "vision", kTowerOutput);
  pack = RandomPack(seed.encoder(), false, {{1, 4, 6}, {2, 2, 4}});
  seed.Run(pack, {std::vector<double>(10 * 12, 1.0)});
  const int64_t tower = 2 * BlockFlops(40, 16, 24, {24, 8, 8});
  const int64_t adapter = 2 * 10 * (16 * 12 + 12 * 12);
  EXPECT_EQ(seed.encoder().Flops(pack.items).forward, 2 * 40 * 48 * 16 + tower + adapter);

  TowerHarness audio(kTowerCases[1].yaml, DType::kFloat32, "audio", kTowerOutput);
  pack = RandomPack(audio.encoder(), true, {{9, 11, 0}});
  audio.Run(pack);
  // 11 frames through the first convolution, 6 steps from the second, of which 5 go on; 2 rows.
  EXPECT_EQ(
      audio.encoder().Flops(pack.items).forward,
      2 * 11 * 3 * 8 * 8 + 2 * 6 * 3 * 8 * 8 + 2 * BlockFlops(5, 8, 12, {5}) + 2 * 2 * 8 * 12);
  EXPECT_EQ(audio.encoder().Flops(pack.items).backward, 0);
}

TEST(TowerParametersTest, SeedVitHasThePublishedSize) {
  encoders::EncoderRegistry registry;
  encoders::RegisterEncoders(registry);
  const auto node = ConfigNode::Parse("kind: seed_vision", "recipe.yaml");
  const auto encoder = registry.Create(*node, {.name = "v", .output_hidden = 8, .init = {}});
  ASSERT_TRUE(encoder.ok()) << encoder.status();
  int64_t count = 0;
  for (const auto& spec : (*encoder)->Parameters()) {
    if (!absl::StrContains(spec.path, ".projector.")) count += spec.num_elements();
  }
  EXPECT_NEAR(static_cast<double>(count), 532e6, 0.5e6);
}

TEST(TowerParametersTest, PositionsOfWhisperAreFixedSinusoids) {
  TowerHarness audio(kTowerCases[1].yaml, DType::kFloat32, "audio", kTowerOutput);
  for (const auto& spec : audio.encoder().Parameters()) {
    const bool is_table = spec.path == "audio.position_embed.weight";
    EXPECT_EQ(spec.optimizer == parallel::OptimizerClass::kFixed, is_table) << spec.path;
    EXPECT_EQ(spec.init == parallel::InitKind::kSinusoid, is_table) << spec.path;
  }
  EXPECT_DOUBLE_EQ(parallel::Sinusoid(0, 1, 8), 0.0);
  EXPECT_DOUBLE_EQ(parallel::Sinusoid(3, 0, 8), std::sin(3.0));
  EXPECT_DOUBLE_EQ(parallel::Sinusoid(3, 4, 8), std::cos(3.0));
  EXPECT_NEAR(parallel::Sinusoid(3, 3, 8), std::sin(3e-4), 1e-15);
}

TEST(TowerDeathTest, SoundsMustBringTheFramesPastTheirEnd) {
  TowerHarness audio(kTowerCases[1].yaml, DType::kFloat32, "audio", kTowerOutput);
  const auto short_pack = RandomPack(audio.encoder(), true, {{9, 10, 0}});
  EXPECT_DEATH(audio.encoder().Flops(short_pack.items), "num_input_rows");
  const auto long_pack = RandomPack(audio.encoder(), true, {{25, 25, 0}});
  EXPECT_DEATH(audio.encoder().Flops(long_pack.items), "window_frames");
}

}  // namespace
}  // namespace omni
