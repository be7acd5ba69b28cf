// Every op's backward against fp64 differences, on both CPU devices, with 0, 1 and odd sizes.
#include <gtest/gtest.h>

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
  const char* name;
  std::vector<CheckedTensor> inputs, weights;
  std::function<std::vector<Var>(ExecContext&, Inputs, Weights)> op;
  double fp32_tolerance = 1e-6, bf16_tolerance = 2e-2;
};

TensorView Int32(ExecContext& ctx, const std::vector<int32_t>& values) {
  return UploadNew<int32_t>(ctx, values, {static_cast<int64_t>(values.size())});
}

std::vector<OpCase> Cases() {
  std::vector<OpCase> cases;
  for (const int64_t rows : {0, 1, 7}) {
    cases.push_back({"Linear",
                     {{.sizes = {rows, 5}}},
                     {{.sizes = {3, 5}}},
                     [](ExecContext& ctx, Inputs x, Weights w) -> std::vector<Var> {
                       return {Linear(ctx, x[0], w[0])};
                     }});
    cases.push_back({"LinearBias",
                     {{.sizes = {rows, 9}}},
                     {{.sizes = {1, 9}}, {.sizes = {1}}},
                     [](ExecContext& ctx, Inputs x, Weights w) -> std::vector<Var> {
                       return {Linear(ctx, x[0], w[0], &w[1])};
                     }});
    cases.push_back({"LinearOfColumns",
                     {{.sizes = {rows, 11}}},
                     {{.sizes = {4, 6}}},
                     [](ExecContext& ctx, Inputs x, Weights w) -> std::vector<Var> {
                       return {Linear(ctx, Columns(ctx, x[0], 3, 6), w[0])};
                     }});
    cases.push_back({"LinearFrozenWeight",
                     {{.sizes = {rows, 5}}},
                     {{.sizes = {3, 5}, .wants_grad = false}, {.sizes = {3}}},
                     [](ExecContext& ctx, Inputs x, Weights w) -> std::vector<Var> {
                       return {Linear(ctx, x[0], w[0], &w[1])};
                     }});
    // A fused weight whose first and last part have adapters: rows 0-2 and 5-6 of 7, rank 2.
    for (const bool frozen : {false, true}) {
      cases.push_back(
          {frozen ? "LinearLoraFrozenBase" : "LinearLora",
           {{.sizes = {rows, 5}}},
           {{.sizes = {7, 5}, .wants_grad = !frozen},
            {.sizes = {4, 5}},
            {.sizes = {5, 2}},
            {.sizes = {7}, .wants_grad = !frozen}},
           [](ExecContext& ctx, Inputs x, Weights w) -> std::vector<Var> {
             const LoraAdapter lora{.a = w[1], .b = w[2], .parts = {{0, 3}, {5, 2}}, .scale = 0.75};
             Weight adapted = w[0];
             adapted.lora = &lora;
             return {Linear(ctx, x[0], adapted, &w[3])};
           }});
    }
    cases.push_back({"Add",
                     {{.sizes = {rows, 5}}, {.sizes = {rows, 5}}},
                     {},
                     [](ExecContext& ctx, Inputs x, Weights) -> std::vector<Var> {
                       return {Add(ctx, Add(ctx, x[0], x[1]), x[0])};
                     }});
    cases.push_back({"ColumnsReshape",
                     {{.sizes = {rows, 12}}},
                     {},
                     [rows](ExecContext& ctx, Inputs x, Weights) -> std::vector<Var> {
                       return {Columns(ctx, x[0], 0, 5), Columns(ctx, x[0], 7, 5),
                               Reshape(ctx, x[0], {rows, 3, 4})};
                     }});
    cases.push_back({"SplitColumns",
                     {{.sizes = {rows, 12}}},
                     {},
                     [](ExecContext& ctx, Inputs x, Weights) -> std::vector<Var> {
                       return SplitColumns(ctx, x[0], {5, 1, 6});
                     }});
    cases.push_back({"SplitColumnsPartUnused",
                     {{.sizes = {rows, 12}}},
                     {},
                     [](ExecContext& ctx, Inputs x, Weights) -> std::vector<Var> {
                       const std::vector<Var> parts = SplitColumns(ctx, x[0], {5, 1, 6});
                       return {parts[0], parts[2]};
                     }});
    cases.push_back({"RmsNorm",
                     {{.sizes = {rows, 37}}},
                     {{.sizes = {37}}},
                     [](ExecContext& ctx, Inputs x, Weights w) -> std::vector<Var> {
                       return {RmsNorm(ctx, x[0], w[0], 1e-5f)};
                     }});
    cases.push_back({"RmsNormHeads",
                     {{.sizes = {rows, 13}}},
                     {{.sizes = {4}}},
                     [rows](ExecContext& ctx, Inputs x, Weights w) -> std::vector<Var> {
                       const Var heads = Reshape(ctx, Columns(ctx, x[0], 2, 8), {rows, 2, 4});
                       return {RmsNorm(ctx, heads, w[0], 1e-5f)};
                     }});
    cases.push_back({"LayerNorm",
                     {{.sizes = {rows, 19}, .offset = 2.0}},
                     {{.sizes = {19}}, {.sizes = {19}}},
                     [](ExecContext& ctx, Inputs x, Weights w) -> std::vector<Var> {
                       return {LayerNorm(ctx, x[0], w[0], &w[1], 1e-5f)};
                     }});
    cases.push_back({"LayerNormNoBias",
                     {{.sizes = {rows, 8}}},
                     {{.sizes = {8}}},
                     [](ExecContext& ctx, Inputs x, Weights w) -> std::vector<Var> {
                       return {LayerNorm(ctx, x[0], w[0], nullptr, 1e-5f)};
                     }});
    cases.push_back({"AddRmsNorm",
                     {{.sizes = {rows, 17}}, {.sizes = {rows, 17}}},
                     {{.sizes = {17}}},
                     [](ExecContext& ctx, Inputs x, Weights w) -> std::vector<Var> {
                       const AddNormResult r = AddRmsNorm(ctx, x[0], x[1], w[0], 1e-5f);
                       return {r.sum_TH, r.normed_TH};
                     }});
    cases.push_back({"AddRmsNormSumUnused",
                     {{.sizes = {rows, 17}}, {.sizes = {rows, 17}}},
                     {{.sizes = {17}}},
                     [](ExecContext& ctx, Inputs x, Weights w) -> std::vector<Var> {
                       return {AddRmsNorm(ctx, x[0], x[1], w[0], 1e-5f).normed_TH};
                     }});
    cases.push_back({"AddRmsNormNormedUnused",
                     {{.sizes = {rows, 17}}, {.sizes = {rows, 17}}},
                     {{.sizes = {17}, .wants_grad = false}},
                     [](ExecContext& ctx, Inputs x, Weights w) -> std::vector<Var> {
                       return {AddRmsNorm(ctx, x[0], x[1], w[0], 1e-5f).sum_TH};
                     }});
    cases.push_back({"AddLayerNorm",
                     {{.sizes = {rows, 33}}, {.sizes = {rows, 33}}},
                     {{.sizes = {33}}, {.sizes = {33}}},
                     [](ExecContext& ctx, Inputs x, Weights w) -> std::vector<Var> {
                       const AddNormResult r = AddLayerNorm(ctx, x[0], x[1], w[0], &w[1], 1e-5f);
                       return {r.sum_TH, r.normed_TH};
                     }});
    cases.push_back({"SwiGlu",
                     {{.sizes = {rows, 38}, .scale = 2.0}},
                     {},
                     [](ExecContext& ctx, Inputs x, Weights) -> std::vector<Var> {
                       return {SwiGlu(ctx, x[0])};
                     }});
    for (const GeluKind kind : {GeluKind::kErf, GeluKind::kTanh})
      cases.push_back({kind == GeluKind::kErf ? "GeluErf" : "GeluTanh",
                       {{.sizes = {rows, 21}, .scale = 2.0}},
                       {},
                       [kind](ExecContext& ctx, Inputs x, Weights) -> std::vector<Var> {
                         return {Gelu(ctx, x[0], kind)};
                       }});
    cases.push_back({"Embedding",
                     {},
                     {{.sizes = {5, 9}}},
                     [rows](ExecContext& ctx, Inputs, Weights w) -> std::vector<Var> {
                       std::vector<int32_t> ids;
                       for (int64_t t = 0; t < rows; ++t) ids.push_back(t * 3 % 5);
                       return {Embedding(ctx, Int32(ctx, ids), w[0])};
                     }});
    for (const bool frozen : {false, true})
      cases.push_back({frozen ? "InterpolateRowsFrozenTable" : "InterpolateRows",
                       {{.sizes = {rows, 9}}},
                       {{.sizes = {6, 9}, .wants_grad = !frozen}},
                       [rows](ExecContext& ctx, Inputs x, Weights w) -> std::vector<Var> {
                         std::vector<int32_t> taps;
                         std::vector<double> weights;
                         for (int64_t i = 0; i < 4 * rows; ++i) {
                           taps.push_back(static_cast<int32_t>(i * i % 6));
                           weights.push_back(0.125 * static_cast<double>(i % 5));  // exact in fp32
                         }
                         const std::vector<float> rounded(weights.begin(), weights.end());
                         const TensorView taps_PK = UploadNew<int32_t>(ctx, taps, {rows, 4});
                         const TensorView weights_PK =
                             w[0].value.dtype == DType::kFloat64
                                 ? UploadNew<double>(ctx, weights, {rows, 4})
                                 : UploadNew<float>(ctx, rounded, {rows, 4});
                         return {Add(ctx, x[0], InterpolateRows(ctx, w[0], taps_PK, weights_PK))};
                       }});
    cases.push_back({"GatherRows",
                     {{.sizes = {4, 9}}},
                     {},
                     [rows](ExecContext& ctx, Inputs x, Weights) -> std::vector<Var> {
                       std::vector<int32_t> ids;
                       for (int64_t t = 0; t < rows; ++t) ids.push_back(t * t % 4);
                       return {GatherRows(ctx, x[0], Int32(ctx, ids))};
                     }});
    cases.push_back({"ScatterRows",
                     {{.sizes = {8, 9}}, {.sizes = {rows, 9}}},
                     {},
                     [rows](ExecContext& ctx, Inputs x, Weights) -> std::vector<Var> {
                       std::vector<int32_t> ids;
                       for (int64_t t = 0; t < rows; ++t) ids.push_back(7 - t);
                       return {ScatterRows(ctx, x[0], x[1], Int32(ctx, ids))};
                     }});
    cases.push_back({"AddRows",
                     {{.sizes = {8, 9}}, {.sizes = {rows, 9}}},
                     {},
                     [rows](ExecContext& ctx, Inputs x, Weights) -> std::vector<Var> {
                       std::vector<int32_t> ids;
                       for (int64_t t = 0; t < rows; ++t) ids.push_back(t * 5 % 6);
                       return {AddRows(ctx, x[0], x[1], Int32(ctx, ids))};
                     }});
    cases.push_back({"AddRowsToNothingTrained",
                     {{.sizes = {8, 9}, .wants_grad = false}, {.sizes = {rows, 9}}},
                     {},
                     [rows](ExecContext& ctx, Inputs x, Weights) -> std::vector<Var> {
                       std::vector<int32_t> ids;
                       for (int64_t t = 0; t < rows; ++t) ids.push_back(7 - t);
                       return {AddRows(ctx, x[0], x[1], Int32(ctx, ids))};
                     }});
    cases.push_back({"PatchEmbed",
                     {{.sizes = {rows, 12}}},
                     {{.sizes = {5, 12}}, {.sizes = {5}}},
                     [](ExecContext& ctx, Inputs x, Weights w) -> std::vector<Var> {
                       return {PatchEmbed(ctx, x[0], w[0], &w[1])};
                     }});
  }
  struct Packing {
    std::vector<int32_t> cu;
  };
  for (const Packing& p :
       {Packing{{0}}, Packing{{0, 0}}, Packing{{0, 1}}, Packing{{0, 5, 5, 6, 13}}}) {
    const int64_t frames = p.cu.back();
    for (const Conv1dOptions& o : {Conv1dOptions{1, 1}, Conv1dOptions{2, 1}, Conv1dOptions{3, 0}})
      cases.push_back({"Conv1d",
                       {{.sizes = {frames, 3}}},
                       {{.sizes = {4, 3, 3}}, {.sizes = {4}}},
                       [p, o](ExecContext& ctx, Inputs x, Weights w) -> std::vector<Var> {
                         return {Conv1d(ctx, x[0], p.cu, w[0], &w[1], o)};
                       }});
    for (const int32_t kernel : {1, 2, 3})
      cases.push_back({"AvgPool1d",
                       {{.sizes = {frames, 5}}},
                       {},
                       [p, kernel](ExecContext& ctx, Inputs x, Weights) -> std::vector<Var> {
                         return {AvgPool1d(ctx, x[0], p.cu, kernel)};
                       }});
  }
  struct Targets {
    std::vector<int32_t> ids;
  };
  for (const Targets& t :
       {Targets{{}}, Targets{{-1}}, Targets{{4}}, Targets{{3, -1, 0, 36, -1, 3}}})
    for (const bool frozen : {false, true}) {
      const auto rows = static_cast<int64_t>(t.ids.size());
      cases.push_back({"LinearCrossEntropy",
                       {{.sizes = {rows, 6}}},
                       {{.sizes = {37, 6}, .wants_grad = !frozen}},
                       [t](ExecContext& ctx, Inputs x, Weights w) -> std::vector<Var> {
                         return {LinearCrossEntropy(ctx, x[0], w[0], Int32(ctx, t.ids), 0.3).loss};
                       }});
    }
  return cases;
}

class OpGradientsTest : public ::testing::TestWithParam<DeviceKind> {
 protected:
  TestDevice device_{GetParam()};
};

TEST_P(OpGradientsTest, MatchDifferences) {
  for (const OpCase& c : Cases()) {
    SCOPED_TRACE(c.name);
    ExpectGradientsMatch(device_, c.inputs, c.weights, c.op);
  }
}

TEST_P(OpGradientsTest, Fp32AndBf16FollowFp64) {
  for (const OpCase& c : Cases()) {
    SCOPED_TRACE(c.name);
    ExpectPrecisionMatches(device_, c.inputs, c.weights, c.op, DType::kFloat32, c.fp32_tolerance);
    ExpectPrecisionMatches(device_, c.inputs, c.weights, c.op, DType::kBFloat16, c.bf16_tolerance);
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, OpGradientsTest, ::omni::testing::TestDevices(),
                         ::omni::testing::DeviceName);

}  // namespace
}  // namespace omni
