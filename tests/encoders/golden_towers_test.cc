// Towers by themselves against their references (tools/golden/towers.py): rows, DeepStack
// features and the gradient of every parameter.
#include <gtest/gtest.h>

#include <algorithm>

#include "runtime/checkpoint/safetensors.h"
#include "tests/encoders/tower_cases.h"

namespace omni {
namespace {

using testing::kTowerCases;
using testing::RandomPack;
using testing::TowerCase;
using testing::TowerHarness;

constexpr double kOutputTolerance = 1e-4;
constexpr double kGradientTolerance = 1e-3;  // of a parameter's gradient norm

std::vector<double> Doubles(const SafetensorsFile& file, const std::string& name) {
  const auto view = file.Get(name);
  OMNI_CHECK_OK(view.status());
  const auto* data = view->ptr<const float>();
  return {data, data + view->num_elements()};
}

double Norm(const std::vector<double>& x) {
  double sum = 0;
  for (const double v : x) sum += v * v;
  return std::sqrt(sum);
}

class GoldenTowersTest : public ::testing::TestWithParam<TowerCase> {};

TEST_P(GoldenTowersTest, OutputsAndGradientsAreTheReferences) {
  const auto file = SafetensorsFile::Open(
      absl::StrCat(OMNI_SOURCE_DIR, "/tests/golden/towers/", GetParam().kind, ".safetensors"));
  ASSERT_TRUE(file.ok()) << file.status();
  TowerHarness harness(GetParam().yaml, DType::kFloat32, GetParam().name, testing::kTowerOutput);
  for (const auto& [path, unused] : harness.values()) {
    const auto view = (*file)->Get(path);
    ASSERT_TRUE(view.ok()) << view.status();
    ASSERT_EQ(view->shape(), absl::MakeConstSpan(harness.shape(path))) << path;
    harness.Set(path, Doubles(**file, path));
  }
  const TensorView items = *(*file)->Get("items"), payload = *(*file)->Get("payload");
  std::vector<std::vector<int32_t>> shapes;
  for (int64_t i = 0; i < items.size(0); ++i) {
    const int32_t* shape = items.ptr<const int32_t>() + 3 * i;
    shapes.push_back({shape[0], shape[1], shape[2]});
  }
  parallel::MediaPack pack = RandomPack(harness.encoder(), GetParam().is_audio, shapes);
  ASSERT_EQ(pack.row_elements, payload.size(1));
  ASSERT_EQ(static_cast<int64_t>(pack.payload.size()), payload.num_bytes());
  std::copy_n(static_cast<const uint8_t*>(payload.data), payload.num_bytes(), pack.payload.begin());

  std::vector<std::string> outputs = {"rows"};
  for (int i = 0; i < harness.encoder().num_deepstack(); ++i) {
    outputs.push_back(absl::StrCat("deepstack.", i));
  }
  std::vector<std::vector<double>> output_grads;
  for (const std::string& name : outputs) {
    output_grads.push_back(Doubles(**file, "output_grad." + name));
  }
  const TowerHarness::Outcome outcome = harness.Run(pack, output_grads);
  ASSERT_EQ(outcome.outputs.size(), outputs.size());
  for (size_t i = 0; i < outputs.size(); ++i) {
    const std::vector<double> expected = Doubles(**file, "expected." + outputs[i]);
    ASSERT_EQ(outcome.outputs[i].size(), expected.size()) << outputs[i];
    for (size_t j = 0; j < expected.size(); ++j) {
      ASSERT_NEAR(outcome.outputs[i][j], expected[j], kOutputTolerance) << outputs[i] << " " << j;
    }
  }
  for (const auto& [path, values] : harness.values()) {
    ASSERT_EQ(outcome.grads.count(path), (*file)->Has("grad." + path)) << path;
    if (outcome.grads.count(path) == 0) continue;
    std::vector<double> expected = Doubles(**file, "grad." + path);
    const double norm = Norm(expected);
    for (size_t i = 0; i < expected.size(); ++i) expected[i] -= outcome.grads.at(path)[i];
    EXPECT_LE(Norm(expected), kGradientTolerance * norm) << path;
    EXPECT_GT(norm, 0.0) << path;
  }
}

INSTANTIATE_TEST_SUITE_P(Towers, GoldenTowersTest, ::testing::ValuesIn(kTowerCases),
                         testing::TowerName);

}  // namespace
}  // namespace omni
