// The ops of a mixture of experts: gradients against fp64 differences, and the edges of routing.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "runtime/ops/ops.h"
#include "tests/support/gradient_check.h"

namespace omni {
namespace {

using ::omni::testing::CheckedTensor;
using ::omni::testing::ExpectGradientsMatch;
using ::omni::testing::ExpectPrecisionMatches;
using ::omni::testing::TestDevice;
using Inputs = absl::Span<const Var>;
using Weights = absl::Span<const Weight>;

struct OpCase {
  std::string name;
  std::vector<CheckedTensor> inputs, weights;
  std::function<std::vector<Var>(ExecContext&, Inputs, Weights)> op;
  double fp32_tolerance = 1e-6;
  bool gradient_vanishes = false;  // exactly: only rounding is left, which has no relative error
};

// Choices that leave expert 2 idle.
std::vector<int32_t> Choices(int64_t tokens, int64_t top_k, int32_t num_experts) {
  std::vector<int32_t> experts;
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t k = 0; k < top_k; ++k) {
      auto e = static_cast<int32_t>((t * t + k * 3) % num_experts);
      if (e == 2 && num_experts > 3) e = 3;
      experts.push_back(e);
    }
  return experts;
}

ExpertOrder Order(ExecContext& ctx, int64_t tokens, int64_t top_k, int32_t num_experts) {
  const auto experts = Choices(tokens, top_k, num_experts);
  return MoeSort(ctx, UploadNew<int32_t>(ctx, experts, {tokens, top_k}), num_experts);
}

TensorView Bias(ExecContext& ctx, DType dtype, const std::vector<double>& values) {
  const auto count = static_cast<int64_t>(values.size());
  if (dtype == DType::kFloat64) return UploadNew<double>(ctx, values, {count});
  return UploadNew<float>(ctx, std::vector<float>(values.begin(), values.end()), {count});
}

void AddRoutingCases(int64_t rows, std::vector<OpCase>* cases) {
  struct Choice {
    int64_t num_experts;
    int32_t top_k;
    bool normalize, biased;
  };
  for (const Choice& c :
       {Choice{5, 2, true, false}, Choice{5, 2, false, false}, Choice{5, 3, true, true},
        Choice{4, 4, true, false}, Choice{1, 1, true, false}, Choice{1, 1, false, false}}) {
    const auto route = [c](ExecContext& ctx, const Var& x, const Weight& w) {
      const Var logits = WideLinear(ctx, x, w);
      RouteOptions options{.top_k = c.top_k, .normalize = c.normalize};
      if (c.biased)
        options.selection_bias_E = Bias(ctx, logits.value.dtype, {0.4, -0.3, 0.0, 0.2, -0.1});
      return MoeRoute(ctx, logits, options);
    };
    const std::string name = "E" + std::to_string(c.num_experts) + "K" + std::to_string(c.top_k) +
                             (c.normalize ? "Normalised" : "") + (c.biased ? "Biased" : "");
    const std::vector<CheckedTensor> inputs = {{.sizes = {rows, 6}}},
                                     weights = {{.sizes = {c.num_experts, 6}}};
    cases->push_back({"Route" + name, inputs, weights,
                      [route](ExecContext& ctx, Inputs x, Weights w) -> std::vector<Var> {
                        const Routing r = route(ctx, x[0], w[0]);
                        return {r.weights_TK, r.probs_TE, r.lse_T};
                      }});
    cases->push_back({"RouteWeights" + name, inputs, weights,
                      [route](ExecContext& ctx, Inputs x, Weights w) -> std::vector<Var> {
                        return {route(ctx, x[0], w[0]).weights_TK};
                      }});
    if (!c.normalize || c.biased) continue;  // nothing to the losses
    // Two layers over sequences, one of them empty.
    const auto half = static_cast<int32_t>(rows / 2);
    const std::vector<int32_t> cu = {0, half, half, static_cast<int32_t>(rows)};
    for (const BalanceSets sets : {BalanceSets::kSequences, BalanceSets::kPooled})
      cases->push_back(
          {(sets == BalanceSets::kPooled ? "BalancePooled" : "BalanceSequences") + name,
           {{.sizes = {rows, 6}}, {.sizes = {rows, 6}}},
           weights,
           [route, cu, sets](ExecContext& ctx, Inputs x, Weights w) -> std::vector<Var> {
             const Routing layers[] = {route(ctx, x[0], w[0]), route(ctx, x[1], w[0])};
             return {BalanceLoss(ctx, layers, cu, sets, 0.7)};
           },
           1e-5,  // near balance the gradient is a small difference
           c.num_experts == c.top_k});
    cases->push_back({"ZLoss" + name,
                      {{.sizes = {rows, 6}}, {.sizes = {rows, 6}}},
                      weights,
                      [route](ExecContext& ctx, Inputs x, Weights w) -> std::vector<Var> {
                        const Routing layers[] = {route(ctx, x[0], w[0]), route(ctx, x[1], w[0])};
                        return {RouterZLoss(ctx, layers, 0.3)};
                      }});
  }
}

std::vector<OpCase> Cases() {
  std::vector<OpCase> cases;
  for (const int64_t rows : {0, 1, 7}) {
    AddRoutingCases(rows, &cases);
    cases.push_back({"WideLinear",
                     {{.sizes = {rows, 5}}},
                     {{.sizes = {3, 5}}},
                     [](ExecContext& ctx, Inputs x, Weights w) -> std::vector<Var> {
                       return {WideLinear(ctx, x[0], w[0])};
                     }});
    cases.push_back({"SigmoidGate",
                     {{.sizes = {rows, 19}}, {.sizes = {rows, 1}, .scale = 2.0}},
                     {},
                     [](ExecContext& ctx, Inputs x, Weights) -> std::vector<Var> {
                       return {SigmoidGate(ctx, x[0], x[1])};
                     }});
    for (const int64_t top_k : {1, 3}) {
      const std::string name = "K" + std::to_string(top_k);
      cases.push_back({"Permute" + name,
                       {{.sizes = {rows, 9}}},
                       {},
                       [=](ExecContext& ctx, Inputs x, Weights) -> std::vector<Var> {
                         return {MoePermute(ctx, x[0], Order(ctx, rows, top_k, 5))};
                       }});
      cases.push_back({"Unpermute" + name,
                       {{.sizes = {rows * top_k, 21}}, {.sizes = {rows, 6}}},
                       {{.sizes = {top_k, 6}}},
                       [=](ExecContext& ctx, Inputs x, Weights w) -> std::vector<Var> {
                         const Var weights = WideLinear(ctx, x[1], w[0]);
                         return {MoeUnpermute(ctx, x[0], weights, Order(ctx, rows, top_k, 5))};
                       }});
      for (const bool frozen : {false, true})  // two parts of each expert, with a gap between
        cases.push_back(
            {"GroupedLora" + name + (frozen ? "FrozenBase" : ""),
             {{.sizes = {rows * top_k, 6}}},
             {{.sizes = {5, 7, 6}, .wants_grad = !frozen},
              {.sizes = {5, 4, 6}},
              {.sizes = {5, 5, 2}}},
             [=](ExecContext& ctx, Inputs x, Weights w) -> std::vector<Var> {
               const LoraAdapter lora{
                   .a = w[1], .b = w[2], .parts = {{0, 3}, {5, 2}}, .scale = 0.75};
               Weight adapted = w[0];
               adapted.lora = &lora;
               return {GroupedLinear(ctx, x[0], adapted, Order(ctx, rows, top_k, 5).offsets_E1)};
             }});
      for (const bool frozen : {false, true})
        cases.push_back({"GroupedLinear" + name + (frozen ? "Frozen" : ""),
                         {{.sizes = {rows * top_k, 11}}},
                         {{.sizes = {5, 3, 6}, .wants_grad = !frozen}},
                         [=](ExecContext& ctx, Inputs x, Weights w) -> std::vector<Var> {
                           return {GroupedLinear(ctx, Columns(ctx, x[0], 3, 6), w[0],
                                                 Order(ctx, rows, top_k, 5).offsets_E1)};
                         }});
    }
  }
  return cases;
}

class MoeGradientsTest : public ::testing::TestWithParam<DeviceKind> {
 protected:
  TestDevice device_{GetParam()};
};

TEST_P(MoeGradientsTest, MatchDifferences) {
  for (const OpCase& c : Cases()) {
    SCOPED_TRACE(c.name);
    ExpectGradientsMatch(device_, c.inputs, c.weights, c.op);
  }
}

TEST_P(MoeGradientsTest, Fp32AndBf16FollowFp64) {
  for (const OpCase& c : Cases()) {
    if (c.gradient_vanishes) continue;
    SCOPED_TRACE(c.name);
    ExpectPrecisionMatches(device_, c.inputs, c.weights, c.op, DType::kFloat32, c.fp32_tolerance);
    ExpectPrecisionMatches(device_, c.inputs, c.weights, c.op, DType::kBFloat16, 2e-2);
  }
}

// A whole layer: router, experts, weights back to the router.
TEST_P(MoeGradientsTest, ALayerMatchesDifferences) {
  ExpectGradientsMatch(
      device_, {{.sizes = {9, 6}}},
      {{.sizes = {4, 6}}, {.sizes = {4, 10, 6}}, {.sizes = {4, 6, 5}}},
      [](ExecContext& ctx, Inputs x, Weights w) {
        const Routing routing = MoeRoute(ctx, WideLinear(ctx, x[0], w[0]), {.top_k = 2});
        const ExpertOrder order = MoeSort(ctx, routing.experts_TK, 4);
        const Var rows = GroupedLinear(ctx, MoePermute(ctx, x[0], order), w[1], order.offsets_E1);
        const Var outs = GroupedLinear(ctx, SwiGlu(ctx, rows), w[2], order.offsets_E1);
        return MoeUnpermute(ctx, outs, routing.weights_TK, order);
      });
}

INSTANTIATE_TEST_SUITE_P(Devices, MoeGradientsTest, ::omni::testing::TestDevices(),
                         ::omni::testing::DeviceName);

// Row by row: W x + s B (A x) of the expert whose row it is, for the columns that have an adapter.
TEST(GroupedLoraTest, AddsEachExpertsOwnTerm) {
  TestDevice device;
  ExecContext ctx = device.ctx();
  constexpr int64_t kExperts = 3, kIn = 4, kOut = 5, kRank = 2;
  const auto values = [](int64_t count, double seed) {
    std::vector<double> list(count);
    for (int64_t i = 0; i < count; ++i) list[i] = std::sin(seed + 1.7 * static_cast<double>(i));
    return list;
  };
  const std::vector<int32_t> offsets = {0, 2, 2, 5};
  const auto x = values(5 * kIn, 1), w = values(kExperts * kOut * kIn, 2);
  const auto a = values(kExperts * 2 * kRank * kIn, 3), b = values(kExperts * 3 * kRank, 4);
  const LoraAdapter lora{.a = {.value = device.Upload<double>(a, {kExperts, 2 * kRank, kIn})},
                         .b = {.value = device.Upload<double>(b, {kExperts, 3, kRank})},
                         .parts = {{0, 2}, {4, 1}},
                         .scale = 1.5};
  const Weight weight{.value = device.Upload<double>(w, {kExperts, kOut, kIn}), .lora = &lora};
  const auto y = device.Read<double>(GroupedLinear(ctx, {.value = device.Upload<double>(x, {5, 4})},
                                                   weight, device.Upload<int32_t>(offsets, {4}))
                                         .value);
  // By column of y: the row of B, and the first row of its A; -1: no adapter.
  const int64_t b_rows[kOut] = {0, 1, -1, -1, 2}, a_rows[kOut] = {0, 0, -1, -1, kRank};
  for (int64_t r = 0; r < 5; ++r) {
    const int64_t e = r < offsets[1] ? 0 : 2;
    for (int64_t o = 0; o < kOut; ++o) {
      double sum = 0;
      for (int64_t i = 0; i < kIn; ++i) sum += w[(e * kOut + o) * kIn + i] * x[r * kIn + i];
      for (int64_t k = 0; k < kRank && b_rows[o] >= 0; ++k)
        for (int64_t i = 0; i < kIn; ++i)
          sum += lora.scale * b[(e * 3 + b_rows[o]) * kRank + k] *
                 a[(e * 2 * kRank + a_rows[o] + k) * kIn + i] * x[r * kIn + i];
      EXPECT_NEAR(y[r * kOut + o], sum, 1e-14) << r << ", " << o;
    }
  }
}

class MoeRouteTest : public ::testing::Test {
 protected:
  Routing Route(const std::vector<float>& logits, int64_t num_experts, RouteOptions options) {
    ExecContext ctx = device_.ctx();
    const auto tokens = static_cast<int64_t>(logits.size()) / num_experts;
    return MoeRoute(ctx, {.value = device_.Upload<float>(logits, {tokens, num_experts})}, options);
  }
  std::vector<int32_t> Experts(const Routing& r) { return device_.Read<int32_t>(r.experts_TK); }
  std::vector<float> ReadWeights(const Routing& r) {
    return device_.Read<float>(r.weights_TK.value);
  }

  TestDevice device_;
};

TEST_F(MoeRouteTest, TiesGoToTheLowestExpertAndBestComesFirst) {
  EXPECT_EQ(Experts(Route({1, 1, 1, 1, 0, 3, 2, 3}, 4, {.top_k = 3})),
            (std::vector<int32_t>{0, 1, 2, 1, 3, 2}));
}

// Logits whose probabilities round to the same number are still told apart.
TEST_F(MoeRouteTest, SmallDifferencesCount) {
  const float almost = std::nextafter(-20.0f, 0.0f);
  EXPECT_EQ(Experts(Route({9, -20, almost}, 3, {.top_k = 2})), (std::vector<int32_t>{0, 2}));
}

TEST_F(MoeRouteTest, TheBiasMovesTheChoiceButNotTheWeights) {
  // Probabilities 0.5, 0.3, 0.2.
  const std::vector<float> logits = {std::log(0.5f), std::log(0.3f), std::log(0.2f)};
  RouteOptions options{.top_k = 2, .normalize = false};
  options.selection_bias_E = device_.Upload<float>({-0.4f, 0.0f, 0.05f}, {3});
  const Routing routing = Route(logits, 3, options);
  EXPECT_EQ(Experts(routing), (std::vector<int32_t>{1, 2}));
  EXPECT_NEAR(ReadWeights(routing)[0], 0.3f, 1e-6);
  EXPECT_NEAR(ReadWeights(routing)[1], 0.2f, 1e-6);
  options.normalize = true;
  EXPECT_NEAR(ReadWeights(Route(logits, 3, options))[0], 0.6f, 1e-6);
}

// A bias may choose experts whose probabilities underflow: no division by zero.
TEST_F(MoeRouteTest, ChosenProbabilitiesMayAllBeZero) {
  RouteOptions options{.top_k = 1};
  options.selection_bias_E = device_.Upload<float>({0.0f, 2.0f}, {2});
  const Routing routing = Route({200, -200}, 2, options);
  EXPECT_EQ(Experts(routing), (std::vector<int32_t>{1}));
  EXPECT_EQ(ReadWeights(routing), (std::vector<float>{0.0f}));
}

TEST_F(MoeRouteTest, SortingIsStableAndLeavesIdleExpertsEmpty) {
  ExecContext ctx = device_.ctx();
  const ExpertOrder order = MoeSort(ctx, device_.Upload<int32_t>({3, 1, 1, 3, 3, 0}, {3, 2}), 5);
  EXPECT_EQ(device_.Read<int32_t>(order.offsets_E1), (std::vector<int32_t>{0, 1, 3, 3, 6, 6}));
  EXPECT_EQ(device_.Read<int32_t>(order.tokens_R), (std::vector<int32_t>{2, 0, 1, 0, 1, 2}));
  EXPECT_EQ(device_.Read<int32_t>(order.rows_TK), (std::vector<int32_t>{3, 1, 2, 4, 5, 0}));
}

TEST_F(MoeRouteTest, BalancedLoadsCostTopK) {
  ExecContext ctx = device_.ctx();
  // Four tokens, each surest of another pair; probabilities are uniform on average.
  const Routing layer = Route({1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 1}, 4, {.top_k = 2});
  const auto loss = [&](std::vector<int32_t> cu, BalanceSets sets) {
    return device_.Read<float>(BalanceLoss(ctx, {&layer, 1}, cu, sets, 1.0).value)[0];
  };
  EXPECT_NEAR(loss({0, 4}, BalanceSets::kSequences), 2.0f, 1e-6);
  EXPECT_NEAR(loss({0, 4}, BalanceSets::kPooled), 2.0f, 1e-6);
  // One token has chosen two of four experts and is surer of them than of the others.
  EXPECT_GT(loss({0, 1, 2, 3, 4}, BalanceSets::kSequences), 4 * 2.5f);
  EXPECT_NEAR(loss({0, 1, 2, 3, 4}, BalanceSets::kPooled), 2.0f, 1e-6);
}

TEST(MoeDeathTest, BadListsStopTheProgram) {
  TestDevice device(DeviceKind::kCpu, {.num_threads = 1});  // gtest forks
  ExecContext ctx = device.ctx();
  for (const int32_t expert : {-1, 3})
    EXPECT_DEATH(MoeSort(ctx, device.Upload<int32_t>({0, expert}, {1, 2}), 3),
                 "moe_sort_cpu failed with code 1");
  const Var x{.value = device.Upload<float>(std::vector<float>(8, 1.0f), {4, 2})};
  const Weight weight{.value = device.Upload<float>(std::vector<float>(12, 1.0f), {2, 3, 2}),
                      .grad = {}};
  for (const std::vector<int32_t>& offsets :
       {std::vector<int32_t>{0, 2, 3}, {1, 2, 4}, {0, 5, 4}, {0, -1, 4}})
    EXPECT_DEATH(GroupedLinear(ctx, x, weight, device.Upload<int32_t>(offsets, {3})),
                 "grouped_linear_fwd.* code 1");
  EXPECT_DEATH(MoeRoute(ctx, x, {.top_k = 3}), "3");
}

}  // namespace
}  // namespace omni
