// An encoder the program does not have (tests/support/tiny_encoder.h, made as
// docs/how_to_add_an_encoder.md says), trained beside vision and audio.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/base/status.h"
#include "tests/support/golden_thinker.h"
#include "tests/support/run_ranks.h"
#include "tests/support/tiny_encoder.h"
#include "tests/support/tower_harness.h"

namespace omni {
namespace {

using ::testing::AllOf;
using testing::GoldenCase;
using testing::LoadGoldenCase;
using ::testing::HasSubstr;
using testing::ModelHarness;
using testing::Norm;
using testing::TowerHarness;

constexpr char kYaml[] = "{kind: tiny_patches, patch: 3, hidden: 5}";
constexpr int32_t kPixels = 9, kHidden = 5, kOutput = 4;

parallel::MediaPack Patches(const std::vector<std::pair<int32_t, int32_t>>& grids) {
  parallel::MediaPack pack{.dtype = DType::kUInt8, .row_elements = kPixels};
  for (const auto& [h, w] : grids) {
    const int64_t rows = int64_t{h} * w;
    pack.items.push_back({.t = 1,
                          .h = h,
                          .w = w,
                          .input_row = pack.num_rows(),
                          .num_input_rows = rows,
                          .num_output_rows = rows});
    for (int64_t i = 0; i < rows * kPixels; ++i) {
      pack.payload.push_back(static_cast<uint8_t>(37 * pack.payload.size() % 251));
    }
    for (int64_t i = 0; i < rows; ++i) {
      pack.token_rows.push_back(static_cast<int32_t>(pack.token_rows.size()));
    }
  }
  return pack;
}

TowerHarness Harness() {
  return TowerHarness(kYaml, DType::kFloat64, "patches", kOutput, testing::RegisterTinyPatches);
}

TEST(NewEncoderTest, RowsAreThoseOfTheFormula) {
  TowerHarness harness = Harness();
  const parallel::MediaPack pack = Patches({{2, 3}, {1, 1}});
  const auto rows = harness.Run(pack).outputs[0];
  ASSERT_EQ(rows.size(), 7u * kOutput);
  const auto& values = harness.values();
  for (int64_t row = 0; row < 7; ++row) {
    std::vector<double> hidden;
    for (int64_t h = 0; h < kHidden; ++h) {
      double sum = values.at("patches.patch_embed.bias")[h];
      for (int64_t i = 0; i < kPixels; ++i) {
        const double pixel = (pack.payload[row * kPixels + i] / 255.0 - 0.5) / 0.5;
        sum += values.at("patches.patch_embed.weight")[h * kPixels + i] * pixel;
      }
      hidden.push_back(0.5 * sum * (1 + std::erf(sum / std::sqrt(2.0))));
    }
    for (int64_t o = 0; o < kOutput; ++o) {
      double sum = values.at("patches.projector.bias")[o];
      for (int64_t h = 0; h < kHidden; ++h) {
        sum += values.at("patches.projector.weight")[o * kHidden + h] * hidden[h];
      }
      EXPECT_NEAR(rows[row * kOutput + o], sum, 1e-6) << row << " " << o;
    }
  }
  EXPECT_EQ(harness.encoder().Flops(pack.items).forward, 2 * 7 * (9 * 5 + 5 * 4));
  EXPECT_EQ(harness.encoder().Cost(pack.items[0]), 2 * 6 * (9 * 5 + 5 * 4));
}

TEST(NewEncoderTest, ItsSectionIsCheckedLikeAnyOther) {
  encoders::EncoderRegistry registry;
  encoders::RegisterEncoders(registry);
  testing::RegisterTinyPatches(registry);
  for (const auto& [yaml, found, hint] :
       {std::tuple{"kind: tiny_patch", "tiny_patch", "did you mean tiny_patches"},
        {"kind: tiny_patches\nhiden: 3", "recipe.yaml:2", "hidden"},
        {"kind: tiny_patches\npatch: 0", "recipe.yaml:2", "patch"}}) {
    const auto node = ConfigNode::Parse(yaml, "recipe.yaml");
    ASSERT_TRUE(node.ok());
    const auto status =
        registry.Create(*node, {.name = "patches", .output_hidden = 4, .init = {}}).status();
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(found), HasSubstr(hint)));
  }
}

// Its samples can be cut anywhere, and its shards need no exchange.
TEST(NewEncoderTest, ShardsAreTheWhole) {
  TowerHarness harness = Harness();
  const parallel::MediaPack pack = Patches({{5, 1}, {1, 1}});
  const auto whole = harness.Run(pack).outputs[0];
  std::vector<std::vector<double>> parts(2);
  const auto status = test::RunRanks(2, "shm", [&](Communicator& comm, int32_t rank) {
    TowerHarness own = Harness();
    const auto part = ShardPack(pack, own.encoder().geometry().unit, rank, 2);
    parts[rank] =
        own.Run(part, {}, {.encode = {.shard = {.ulysses = {&comm}, .ring = {}}}}).outputs[0];
    return comm.status();
  });
  ASSERT_TRUE(status.ok()) << status;
  // Five rows are cut 2 + 3, one row 0 + 1.
  const auto rows = [](const std::vector<double>& values, int64_t begin, int64_t end) {
    return std::vector<double>(values.begin() + begin * kOutput, values.begin() + end * kOutput);
  };
  EXPECT_EQ(parts[0], rows(whole, 0, 2));
  EXPECT_EQ(parts[1], rows(whole, 2, 6));
}

// The tiny thinker with the new encoder as a third one.
class TrainedTest : public ::testing::Test {
 protected:
  TrainedTest()
      : harness_(absl::StrCat(testing::kThinkerYaml, "  patches: ", kYaml, "\n"), DType::kFloat64,
                 7, DeviceKind::kCpu, testing::RegisterTinyPatches),
        golden_(LoadGoldenCase("mixed", harness_.model())) {
    // Its rows go where no other encoder's do.
    parallel::MediaPack patches = Patches({{2, 2}, {1, 1}});
    std::vector<bool> taken(golden_.tokens.num_tokens(), false);
    for (const auto& [name, pack] : golden_.media) {
      for (const int32_t row : pack.token_rows) taken[row] = true;
    }
    int32_t token = 0;
    for (int32_t& row : patches.token_rows) {
      while (taken[token]) ++token;
      row = token++;
    }
    golden_.media["patches"] = patches;
  }

  ModelHarness harness_;
  GoldenCase golden_;
};

TEST_F(TrainedTest, TwoStepsBesideVisionAndAudio) {
  ASSERT_EQ(golden_.media.size(), 3u);
  EXPECT_THAT(harness_.model().Modules(),
              ::testing::IsSupersetOf({"vision", "audio", "patches", "patches.projector"}));
  std::vector<double> losses;
  for (int step = 0; step < 2; ++step) {
    const auto outcome = harness_.Run(golden_.tokens, golden_.media, golden_.scale);
    losses.push_back(outcome.loss);
    for (const char* path :
         {"patches.patch_embed.weight", "patches.patch_embed.bias", "patches.projector.weight",
          "patches.projector.bias", "vision.patch_embed.weight", "audio.conv1.weight"}) {
      EXPECT_GT(Norm(outcome.grads.at(path)), 0.0) << path;
    }
    for (const auto& [path, grad] : outcome.grads) {
      std::vector<double> values = harness_.Get(path);
      for (size_t i = 0; i < values.size(); ++i) values[i] -= 0.01 * grad[i];
      harness_.Set(path, values);
    }
  }
  losses.push_back(harness_.Evaluate(golden_.tokens, golden_.media, golden_.scale).loss);
  EXPECT_LT(losses[1], losses[0]);
  EXPECT_LT(losses[2], losses[1]);
}

TEST_F(TrainedTest, ItsGradientIsThatOfTheLoss) {
  const auto outcome = harness_.Run(golden_.tokens, golden_.media, golden_.scale);
  const std::string path = "patches.patch_embed.weight";
  const std::vector<double> start = harness_.Get(path), grad = outcome.grads.at(path);
  const CounterRng rng(13, 1);
  double slope = 0;
  for (size_t i = 0; i < grad.size(); ++i) slope += grad[i] * rng.Normal(i);
  const auto loss_at = [&](double by) {
    std::vector<double> moved = start;
    for (size_t i = 0; i < moved.size(); ++i) moved[i] += by * rng.Normal(i);
    harness_.Set(path, moved);
    return harness_.Evaluate(golden_.tokens, golden_.media, golden_.scale).loss;
  };
  const double found = (loss_at(1e-5) - loss_at(-1e-5)) / 2e-5;
  EXPECT_NEAR(found, slope, 1e-6 * std::abs(slope));
  EXPECT_GT(std::abs(slope), 1e-6);
}

TEST_F(TrainedTest, ItCanBeFrozenAlone) {
  const auto all = harness_.Run(golden_.tokens, golden_.media, golden_.scale);
  harness_.Freeze({"patches", "patches.projector"});
  const auto rest = harness_.Run(golden_.tokens, golden_.media, golden_.scale);
  EXPECT_EQ(rest.loss, all.loss);
  EXPECT_EQ(rest.grads.size() + 4, all.grads.size());
  for (const auto& [path, grad] : rest.grads) EXPECT_EQ(grad, all.grads.at(path)) << path;
}

}  // namespace
}  // namespace omni
