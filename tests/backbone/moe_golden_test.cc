// One MoE layer, with a shared expert behind its gate, against transformers' Qwen2-MoE layer
// (tests/golden/moe.safetensors, written by tools/golden/moe.py): output and every gradient.
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "backbone/decoder.h"
#include "backbone/moe.h"
#include "runtime/checkpoint/safetensors.h"
#include "tests/support/test_device.h"

namespace omni::backbone {
namespace {

class MoeGoldenTest : public ::testing::TestWithParam<std::tuple<DType, bool>> {
 protected:
  MoeGoldenTest() {
    auto file = SafetensorsFile::Open(OMNI_SOURCE_DIR "/tests/golden/moe.safetensors");
    OMNI_CHECK_OK(file.status());
    file_ = *std::move(file);
  }
  DType dtype() const { return std::get<0>(GetParam()); }
  bool normalize() const { return std::get<1>(GetParam()); }

  TensorView Stored(const std::string& key) const {
    const auto view = file_->Get((normalize() ? "normalized." : "raw.") + key);
    OMNI_CHECK_OK(view.status());
    return *view;
  }
  std::vector<double> Doubles(const std::string& key) const {
    const TensorView view = Stored(key);
    std::vector<double> values(view.num_elements());
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = view.dtype == DType::kFloat32 ? view.ptr<float>()[i] : view.ptr<double>()[i];
    }
    return values;
  }
  TensorView OnDevice(const std::string& key) {
    return device_.UploadAs(dtype(), Doubles(key), Stored(key).shape(), device_.arena());
  }
  // ||found - expected|| <= tolerance ||expected||
  void ExpectNear(const TensorView& found, const std::string& key) {
    const std::vector<double> expected = Doubles(key), values = device_.ReadDoubles(found);
    ASSERT_EQ(values.size(), expected.size()) << key;
    double difference = 0, norm = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      difference += std::pow(values[i] - expected[i], 2);
      norm += std::pow(expected[i], 2);
    }
    const double tolerance = dtype() == DType::kFloat64   ? 1e-13
                             : dtype() == DType::kFloat32 ? 1e-6
                                                          : 2e-2;
    EXPECT_LE(std::sqrt(difference), tolerance * std::sqrt(norm)) << key;
  }

  omni::testing::TestDevice device_;
  std::unique_ptr<SafetensorsFile> file_;
};

TEST_P(MoeGoldenTest, OutputAndGradientsAreTransformers) {
  DecoderConfig config;
  config.hidden = 10;
  config.layers = 1;
  config.moe = {.experts = 5,
                .top_k = 2,
                .ffn = 6,
                .normalize_top_k = normalize(),
                .shared_ffn = 7,
                .shared_gate = true};
  parallel::ParameterList list;
  const Moe moe(config, "", &list);
  parallel::ParameterStore store;
  std::map<std::string, Weight> weights;
  for (const parallel::ParameterSpec& spec : list.specs()) {
    const std::string key = spec.path.substr(0, spec.path.rfind('.'));  // without ".weight"
    const std::vector<double> zeros(spec.num_elements(), 0.0);
    const DType sums = dtype() == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
    weights[key] = {.value = OnDevice(key),
                    .grad = device_.UploadAs(sums, zeros, spec.shape, device_.arena())};
    store.Put(spec.path, weights[key]);
  }
  ASSERT_EQ(weights.size(), 6u);
  list.Bind(store);

  Tape tape(device_.device());
  ExecContext ctx = device_.ctx(&tape);
  const Var x_TH = tape.Input(OnDevice("x"), true);
  RoutingRecord record;
  parallel::TokenPack pack;
  pack.token_ids.resize(x_TH.value.size(0));
  pack.cu_seqlens = {0, static_cast<int32_t>(pack.num_tokens())};
  const parallel::SequenceContext sequence(pack);
  const Var y_TH = moe.Forward(ctx, x_TH, sequence, &record);
  ASSERT_EQ(record.routings.size(), 1u);
  ExpectNear(y_TH.value, "y");
  const Tape::RootGrad root{y_TH, OnDevice("grad_y")};
  tape.Backward(ctx, {&root, 1});
  ExpectNear(tape.GradOf(x_TH), "grad_x");
  for (const auto& [key, weight] : weights) ExpectNear(weight.grad, "grad_" + key);
}

INSTANTIATE_TEST_SUITE_P(Dtypes, MoeGoldenTest,
                         ::testing::Combine(::testing::Values(DType::kFloat64, DType::kFloat32,
                                                              DType::kBFloat16),
                                            ::testing::Bool()),
                         [](const auto& info) {
                           return std::string(Name(std::get<0>(info.param))) +
                                  (std::get<1>(info.param) ? "Normalised" : "Raw");
                         });

}  // namespace
}  // namespace omni::backbone
