// The benchmark's models train, count FLOPs as their peer does, and take nothing from the system
// after the first step.
#include "tools/bench_model.h"

#include <gtest/gtest.h>

namespace omni::tools {
namespace {

TEST(BenchModelTest, RefusesWhatItDoesNotKnow) {
  const auto unknown = BenchModel({.model = "mlp"});
  EXPECT_EQ(unknown.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(unknown.status().message().find("mlp"), std::string::npos);
  EXPECT_FALSE(BenchModel({.model = "gpt", .threads = 0}).ok());
  EXPECT_FALSE(BenchModel({.model = "gpt", .threads = 1, .steps = 0}).ok());
}

TEST(BenchModelTest, VitLearnsItsBatchWithoutNewMemory) {
  const auto result = BenchModel({.model = "vit", .threads = 2, .steps = 2});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_NEAR(result->loss_first, 6.9, 0.3);  // ln(1000 classes)
  EXPECT_LT(result->loss_last, result->loss_first - 0.5);
  EXPECT_EQ(result->tokens_per_step, 4096);
  EXPECT_NEAR(result->gflop_per_step, 297.2, 0.1);
  EXPECT_EQ(result->step_ms.size(), 2u);
  // No step does more than FMAs alone; a slow or busy machine may do far less.
  EXPECT_GT(result->peak_gflops, 1.0);
  EXPECT_GT(result->cpu_share(), 0.0);
  EXPECT_LT(result->cpu_share(), 1.0);
  EXPECT_NE(result->ToJson().find("\"share_of_peak\""), std::string::npos);
  EXPECT_EQ(result->pool_growth_bytes, 0);
  EXPECT_EQ(result->heap_growth_bytes, 0);
  EXPECT_EQ(result->ToJson().find('\n'), std::string::npos);
}

TEST(BenchModelTest, MedianOfEvenAndOddCounts) {
  BenchModelResult result;
  result.step_ms = {3.0, 1.0, 2.0};
  EXPECT_EQ(result.median_ms(), 2.0);
  result.step_ms = {4.0, 1.0, 2.0, 3.0};
  EXPECT_EQ(result.median_ms(), 2.5);
  EXPECT_EQ(result.best_ms(), 1.0);
}

}  // namespace
}  // namespace omni::tools
