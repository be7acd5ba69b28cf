// The whole model against Hugging Face's Qwen2.5-Omni thinker: tower outputs, losses and the
// gradient of every parameter.
#include "tests/support/golden_thinker.h"

#include <gtest/gtest.h>

namespace omni {
namespace {

using testing::Distance;
using testing::GoldenCase;
using testing::ModelHarness;
using testing::Norm;

constexpr double kOutputTolerance = 1e-4;
constexpr double kGradientTolerance = 1e-3;  // of a parameter's gradient norm

class GoldenThinkerTest : public ::testing::TestWithParam<const char*> {
 protected:
  GoldenThinkerTest() : harness_(testing::kThinkerYaml, DType::kFloat32) {
    harness_.Load(*testing::OpenGolden("weights"));
    golden_ = testing::LoadGoldenCase(GetParam(), harness_.model());
  }
  void ExpectNear(const std::vector<double>& found, const std::vector<double>& expected,
                  const char* what) {
    ASSERT_EQ(found.size(), expected.size()) << what;
    for (size_t i = 0; i < found.size(); ++i) {
      ASSERT_NEAR(found[i], expected[i], kOutputTolerance) << what << " at " << i;
    }
  }

  ModelHarness harness_;
  GoldenCase golden_;
};

TEST_P(GoldenThinkerTest, TowersGiveTheSameRows) {
  ExecContext ctx = harness_.context();
  for (const auto& [name, encoder] : harness_.model().encoders()) {
    const auto pack = golden_.media.find(name);
    if (pack == golden_.media.end()) continue;
    const Var rows = encoder->Encode(ctx, pack->second).rows_RH;
    int64_t num_rows = 0;
    for (const auto& item : pack->second.items) num_rows += item.num_output_rows;
    EXPECT_EQ(rows.value.size(0), num_rows);
    ExpectNear(testing::ReadDoubles(ctx, rows.value), golden_.Doubles("expected." + name),
               name.c_str());
  }
}

TEST_P(GoldenThinkerTest, LossesAndArgmaxAreTheSame) {
  const auto outcome = harness_.Evaluate(golden_.tokens, golden_.media, golden_.scale);
  EXPECT_NEAR(outcome.loss, golden_.Doubles("expected.loss")[0], kOutputTolerance);
  ExpectNear(outcome.losses, golden_.Doubles("expected.losses"), "losses");
  EXPECT_EQ(outcome.argmax, golden_.Values<int32_t>("expected.argmax"));
}

TEST_P(GoldenThinkerTest, EveryGradientIsTheSame) {
  const auto outcome = harness_.Run(golden_.tokens, golden_.media, golden_.scale);
  EXPECT_NEAR(outcome.loss, golden_.Doubles("expected.loss")[0], kOutputTolerance);
  for (const auto& [path, grad] : outcome.grads) {
    if (!golden_.file->Has("grad." + path)) {
      EXPECT_EQ(Norm(grad), 0.0) << path << " is not reached by this case";
      continue;
    }
    const std::vector<double> expected = golden_.Doubles("grad." + path);
    EXPECT_LE(Distance(grad, expected), kGradientTolerance * Norm(expected)) << path;
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, GoldenThinkerTest, ::testing::ValuesIn(testing::kGoldenCases),
                         [](const auto& info) {
                           std::string name;
                           bool upper = true;
                           for (const char c : std::string(info.param)) {
                             if (c != '_') name += upper ? static_cast<char>(std::toupper(c)) : c;
                             upper = c == '_';
                           }
                           return name;
                         });

}  // namespace
}  // namespace omni
