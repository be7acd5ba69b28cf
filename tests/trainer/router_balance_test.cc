// Loads and the bias that evens them: by themselves, and through a job that is saved and resumed.
#include "trainer/router_balance.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "absl/strings/str_format.h"
#include "runtime/base/rng.h"
#include "runtime/base/status.h"
#include "runtime/device/args/elementwise.h"
#include "tests/support/checkpoints.h"
#include "tests/support/test_device.h"
#include "tests/support/tiny_job.h"
#include "trainer/huggingface/describe.h"
#include "trainer/huggingface/export.h"
#include "trainer/trainer.h"

namespace omni::trainer {
namespace {

backbone::DecoderConfig Config(double rate) {
  backbone::DecoderConfig config;
  config.layers = 3;
  config.moe = {.experts = 8, .top_k = 2, .dense_layers = {1}, .bias_update_rate = rate};
  return config;
}

// Tokens that like the first experts best, layer 0's more than layer 2's.
class RouterBalanceTest : public ::testing::TestWithParam<DType> {
 protected:
  std::vector<double> Loads(const RouterBalance& balance) {
    TensorArena arena(device_.device());
    ExecContext ctx = device_.ctx(arena);
    MicrobatchResult result;
    for (int32_t layer = 0; layer < 2; ++layer) {
      const CounterRng rng(7, layer);
      std::vector<double> logits(kTokens * 8);
      for (size_t i = 0; i < logits.size(); ++i)
        logits[i] = rng.Normal(i) - (layer == 0 ? 0.5 : 0.2) * static_cast<double>(i % 8);
      RouteOptions options{.top_k = 2};
      if (!balance.bias_LE().empty())
        options.selection_bias_E = balance.bias_LE().Rows(layer, 1).Reshape({8});
      const Var logits_TE{
          .value = device_.UploadAs(GetParam(), logits, std::vector<int64_t>{kTokens, 8}, arena)};
      const Routing routing = MoeRoute(ctx, logits_TE, options);
      result.expert_offsets.push_back(MoeSort(ctx, routing.experts_TK, 8).offsets_E1);
    }
    std::vector<double> sums = balance.NoSums();
    balance.Add(ctx, result.auxiliary, result.expert_offsets, /*first_layer=*/0, &sums);
    return sums;
  }
  double MaxOverMean(const RouterBalance& balance, const std::vector<double>& sums) {
    std::map<std::string, double> values;
    balance.Measure(sums, &values);
    return values.at("moe/load_max_over_mean");
  }

  static constexpr int64_t kTokens = 200;
  omni::testing::TestDevice device_;
};

TEST_P(RouterBalanceTest, TheBiasMovesLoadsTogether) {
  ExecContext ctx = device_.ctx();
  RouterBalance balance(ctx, Config(0.002), GetParam());
  std::vector<double> sums = Loads(balance);
  EXPECT_GT(MaxOverMean(balance, sums), 2.0);
  for (int step = 0; step < 200; ++step) {
    balance.Update(ctx, sums);
    sums = Loads(balance);
  }
  EXPECT_LT(MaxOverMean(balance, sums), 1.25);
}

TEST_P(RouterBalanceTest, AnUpdateIsTheRateTowardsTheMean) {
  ExecContext ctx = device_.ctx();
  RouterBalance balance(ctx, Config(0.25), GetParam());
  std::vector<double> sums = balance.NoSums();
  ASSERT_EQ(sums.size(), 2u + 2 * 8);
  const double loads[2][8] = {{4, 4, 4, 4, 4, 4, 4, 4}, {9, 0, 4, 4, 4, 4, 4, 3}};
  for (int layer = 0; layer < 2; ++layer)
    for (int e = 0; e < 8; ++e) sums[2 + layer * 8 + e] = loads[layer][e];
  EXPECT_DOUBLE_EQ(MaxOverMean(balance, sums), 9.0 / 4);
  balance.Update(ctx, sums);
  EXPECT_EQ(device_.ReadDoubles(balance.bias_LE()),
            (std::vector<double>{0, 0, 0, 0, 0, 0, 0, 0, -0.25, 0.25, 0, 0, 0, 0, 0, 0.25}));
  const auto ranges = balance.StateRanges();
  ASSERT_EQ(ranges.size(), 2u);
  EXPECT_EQ(ranges[0].name, "decoder.layers.0.moe.router.selection_bias");
  EXPECT_EQ(ranges[1].name, "decoder.layers.2.moe.router.selection_bias");
}

INSTANTIATE_TEST_SUITE_P(Dtypes, RouterBalanceTest,
                         ::testing::Values(DType::kFloat32, DType::kFloat64),
                         [](const auto& info) { return std::string(Name(info.param)); });

TEST(RouterBalanceEdgeTest, WithoutExpertsOrRateThereIsNothing) {
  omni::testing::TestDevice device;
  ExecContext ctx = device.ctx();
  RouterBalance dense(ctx, backbone::DecoderConfig{}, DType::kFloat32);
  std::vector<double> sums = dense.NoSums();
  EXPECT_TRUE(sums.empty());
  dense.Add(ctx, {}, {}, /*first_layer=*/0, &sums);
  dense.Update(ctx, sums);
  std::map<std::string, double> values;
  dense.Measure(sums, &values);
  EXPECT_TRUE(values.empty());
  const RouterBalance no_rate(ctx, Config(0), DType::kFloat32);
  EXPECT_TRUE(no_rate.bias_LE().empty());
  EXPECT_TRUE(no_rate.StateRanges().empty());
}

TEST(RouterBalanceExportTest, ExpertsOfNoFamilyAreRefusedByName) {
  test::TinyRecipe tiny;
  tiny.moe = "{experts: 8, top_k: 2, ffn: 16}";
  const auto recipe = ParseRecipe(test::TinyRecipeYaml(tiny), "tiny.yaml");
  ASSERT_TRUE(recipe.ok()) << recipe.status();
  const absl::Status status = DescribeModel(*recipe, ::testing::TempDir());
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("decoder.moe: experts can be"));
}

TEST(RouterBalanceJobTest, ResumingKeepsEveryBitAndTheBiasEvensLoads) {
  KernelRegistry kernels;
  RegisterCpuKernels(kernels);
  test::TinyRecipe tiny{.steps = 8, .lanes = 2, .dtype = "bf16"};
  tiny.moe =
      "{experts: 8, top_k: 2, ffn: 16, balance_loss: {coefficient: 0}, "
      "bias_update_rate: 0.02}";
  const auto recipe = ParseRecipe(test::TinyRecipeYaml(tiny), "tiny.yaml");
  ASSERT_TRUE(recipe.ok()) << recipe.status();
  const auto run = [&](const std::string& dir, int64_t until, auto* values) -> absl::Status {
    OMNI_ASSIGN_OR_RETURN(
        const auto trainer,
        Trainer::Create({.recipe = *recipe, .run_dir = dir, .kernels = &kernels}));
    while (trainer->step() < until) {
      OMNI_ASSIGN_OR_RETURN(auto of_step, trainer->RunStep());
      for (const char* name : {"loss", "grad_norm", "moe/balance_loss", "moe/load_max_over_mean"})
        (*values)[trainer->step()].push_back(of_step.at(name));
    }
    OMNI_RETURN_IF_ERROR(trainer->BeginSave());
    return trainer->FinishSave();
  };
  const std::string dir = absl::StrFormat("%s/router-balance", ::testing::TempDir());
  std::filesystem::remove_all(dir);
  std::map<int64_t, std::vector<double>> once, twice;
  for (const char* name : {"/once", "/twice"}) std::filesystem::create_directories(dir + name);
  ASSERT_TRUE(run(dir + "/once", 8, &once).ok());
  ASSERT_TRUE(run(dir + "/twice", 3, &twice).ok());
  ASSERT_TRUE(run(dir + "/twice", 8, &twice).ok());
  EXPECT_EQ(once, twice);
  EXPECT_LT(once[8][3], once[1][3]);  // the busiest expert's load over the mean
  const absl::Status exported = ExportCheckpoint(
      *recipe, dir + "/once", CheckpointsIn(dir + "/once/checkpoints").back().second,
      dir + "/exported", std::nullopt, /*adapter_only=*/false);
  EXPECT_EQ(exported.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(exported.message()), ::testing::HasSubstr("moe.bias_update_rate"));
  EXPECT_FALSE(std::filesystem::exists(dir + "/exported"));
  std::filesystem::remove_all(dir);
}

}  // namespace
}  // namespace omni::trainer
