// Forward and backward of every op against PyTorch's (tests/golden/ops.safetensors, written by
// tools/golden/ops.py), in fp64, fp32 and bf16.
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "runtime/checkpoint/safetensors.h"
#include "runtime/ops/ops.h"
#include "tests/support/test_device.h"

namespace omni {
namespace {

using ::omni::testing::TestDevice;

class OpGoldenTest : public ::testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    auto file = SafetensorsFile::Open(OMNI_SOURCE_DIR "/tests/golden/ops.safetensors");
    ASSERT_TRUE(file.ok()) << file.status().ToString();
    file_ = *std::move(file);
  }

  DType dtype() const { return GetParam(); }
  // Of the largest element of each tensor: what the dtype's rounding allows.
  double tolerance() const {
    return dtype() == DType::kFloat64 ? 1e-13 : dtype() == DType::kFloat32 ? 1e-6 : 2e-2;
  }

  TensorView Stored(const std::string& name) const {
    auto view = file_->Get(name);
    OMNI_CHECK_OK(view.status());
    return *view;
  }
  std::vector<double> Doubles(const std::string& name) const {
    const TensorView view = Stored(name);
    std::vector<double> values(view.num_elements());
    for (size_t i = 0; i < values.size(); ++i) {
      if (view.dtype == DType::kFloat32)
        values[i] = view.ptr<float>()[i];
      else
        values[i] = view.ptr<double>()[i];
    }
    return values;
  }
  std::vector<int32_t> Ints(const std::string& name) const {
    const TensorView view = Stored(name);
    return {view.ptr<int32_t>(), view.ptr<int32_t>() + view.num_elements()};
  }
  TensorView OnDevice(const std::string& name) {
    return device_.UploadAs(dtype(), Doubles(name), Stored(name).shape(), device_.arena());
  }
  TensorView IntsOnDevice(const std::string& name) {
    return device_.Upload<int32_t>(Ints(name), {Stored(name).size(0)});
  }

  Var Input(const std::string& name) {
    inputs_.emplace_back(name, tape_.Input(OnDevice(name), true));
    return inputs_.back().second;
  }
  // `flat`: as [out, everything else].
  const Weight& Parameter(const std::string& name, bool flat = false) {
    const TensorView stored = Stored(name);
    const std::vector<double> zeros(stored.num_elements(), 0.0);
    Weight weight;
    weight.value = OnDevice(name);
    weight.grad = device_.UploadAs(dtype() == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32,
                                   zeros, stored.shape(), device_.arena());
    if (flat) {
      const int64_t outs = stored.size(0), rest = stored.num_elements() / outs;
      weight.value = weight.value.Reshape({outs, rest});
      weight.grad = weight.grad.Reshape({outs, rest});
    }
    weights_.push_back(std::make_unique<std::pair<std::string, Weight>>(name, weight));
    return weights_.back()->second;
  }

  void ExpectNear(const std::string& name, const TensorView& found) {
    const std::vector<double> expected = Doubles(name), values = device_.ReadDoubles(found);
    ASSERT_EQ(expected.size(), values.size()) << name;
    double largest = 0.0;
    for (const double value : expected) largest = std::max(largest, std::abs(value));
    for (size_t i = 0; i < expected.size(); ++i)
      EXPECT_NEAR(expected[i], values[i], tolerance() * std::max(largest, 1e-6))
          << name << "[" << i << "]";
  }

  // The outputs, then, from PyTorch's output gradients, all the others.
  void Check(const std::vector<std::pair<std::string, Var>>& outputs) {
    std::vector<Var> vars;
    std::vector<Tape::RootGrad> roots;
    for (const auto& [name, var] : outputs) {
      ExpectNear(name, var.value);
      vars.push_back(var);
      TensorView grad = OnDevice(GradName(name)).Reshape(var.value.shape());
      if (grad.dtype != var.value.dtype)  // the loss is fp32 in bf16
        grad = device_.UploadAs(var.value.dtype, Doubles(GradName(name)), var.value.shape(),
                                device_.arena());
      roots.push_back({var, grad});
    }
    tape_.EndForward(vars);
    ExecContext ctx = device_.ctx();
    tape_.Backward(ctx, roots);
    for (const auto& [name, var] : inputs_) ExpectNear(GradName(name), tape_.GradOf(var));
    for (const auto& weight : weights_) ExpectNear(GradName(weight->first), weight->second.grad);
  }

  static std::string GradName(std::string name) { return name.insert(name.find('.') + 1, "grad_"); }

  TestDevice device_;
  Tape tape_{device_.device()};
  ExecContext ctx_ = device_.ctx(&tape_);
  std::unique_ptr<SafetensorsFile> file_;
  std::vector<std::pair<std::string, Var>> inputs_;
  std::vector<std::unique_ptr<std::pair<std::string, Weight>>> weights_;
};

TEST_P(OpGoldenTest, Linear) {
  const Var x = Input("linear.input");
  const Weight& w = Parameter("linear.weight");
  Check({{"linear.y", Linear(ctx_, x, w, &Parameter("linear.bias"))}});
}

TEST_P(OpGoldenTest, Embedding) {
  const TensorView ids = IntsOnDevice("embedding.ids");
  Check({{"embedding.y", Embedding(ctx_, ids, Parameter("embedding.weight"))}});
}

TEST_P(OpGoldenTest, RmsNorm) {
  const Var x = Input("rms_norm.x");
  Check({{"rms_norm.y", RmsNorm(ctx_, x, Parameter("rms_norm.w"), 1e-6f)}});
}

TEST_P(OpGoldenTest, AddRmsNorm) {
  const Var x = Input("add_rms_norm.x"), branch = Input("add_rms_norm.branch");
  const auto result = AddRmsNorm(ctx_, x, branch, Parameter("add_rms_norm.w"), 1e-6f);
  Check({{"add_rms_norm.sum", result.sum_TH}, {"add_rms_norm.y", result.normed_TH}});
}

TEST_P(OpGoldenTest, LayerNorm) {
  const Var x = Input("layer_norm.x");
  const Weight& w = Parameter("layer_norm.w");
  Check({{"layer_norm.y", LayerNorm(ctx_, x, w, &Parameter("layer_norm.b"), 1e-5f)}});
}

TEST_P(OpGoldenTest, SwiGlu) {
  const Var x = Input("swiglu.x");
  Check({{"swiglu.y", SwiGlu(ctx_, x)}});
}

TEST_P(OpGoldenTest, GeluErf) {
  const Var x = Input("gelu_erf.x");
  Check({{"gelu_erf.y", Gelu(ctx_, x, GeluKind::kErf)}});
}

TEST_P(OpGoldenTest, GeluTanh) {
  const Var x = Input("gelu_tanh.x");
  Check({{"gelu_tanh.y", Gelu(ctx_, x, GeluKind::kTanh)}});
}

TEST_P(OpGoldenTest, Conv1d) {
  for (const int32_t stride : {1, 2}) {
    const std::string name = "conv1d_stride" + std::to_string(stride);
    SCOPED_TRACE(name);
    tape_.Reset();
    inputs_.clear();
    weights_.clear();
    const Var x = Input(name + ".x");
    const Weight& w = Parameter(name + ".w");
    const Weight& b = Parameter(name + ".b");
    Check({{name + ".y",
            Conv1d(ctx_, x, Ints(name + ".cu_seqlens"), w, &b, {.stride = stride, .padding = 1})}});
  }
}

TEST_P(OpGoldenTest, AvgPool1d) {
  const Var x = Input("avg_pool1d.x");
  Check({{"avg_pool1d.y", AvgPool1d(ctx_, x, Ints("avg_pool1d.cu_seqlens"), 2)}});
}

TEST_P(OpGoldenTest, PatchEmbed) {
  const TensorView patches = OnDevice("patch_embed.x");
  const int64_t count = patches.size(0), width = patches.num_elements() / count;
  const Var x = tape_.Input(patches.Reshape({count, width}), true);
  inputs_.emplace_back("patch_embed.x", x);
  const Weight& w = Parameter("patch_embed.w", /*flat=*/true);
  Check({{"patch_embed.y", PatchEmbed(ctx_, x, w, &Parameter("patch_embed.b"))}});
}

TEST_P(OpGoldenTest, CrossEntropy) {
  const Var x = Input("cross_entropy.x");
  const Weight& w = Parameter("cross_entropy.w");
  const auto result =
      LinearCrossEntropy(ctx_, x, w, IntsOnDevice("cross_entropy.targets"), 1.0 / 5);
  if (dtype() != DType::kBFloat16) {
    EXPECT_EQ(device_.Read<int32_t>(result.argmax_T), Ints("cross_entropy.argmax"));
  }
  ExpectNear("cross_entropy.losses", result.losses_T);
  Check({{"cross_entropy.y", result.loss}});
}

TEST_P(OpGoldenTest, NormalizePatches) {
  const TensorView stored = Stored("normalize.x");
  const std::vector<uint8_t> bytes(stored.ptr<uint8_t>(),
                                   stored.ptr<uint8_t>() + stored.num_elements());
  const TensorView patches = device_.Upload<uint8_t>(bytes, {stored.size(0), stored.size(1)});
  std::vector<float> mean, std;
  for (const double value : Doubles("normalize.mean")) mean.push_back(static_cast<float>(value));
  for (const double value : Doubles("normalize.std")) std.push_back(static_cast<float>(value));
  ExpectNear("normalize.y", NormalizePatches(ctx_, patches, 3, mean, std, dtype()));
}

INSTANTIATE_TEST_SUITE_P(DTypes, OpGoldenTest,
                         ::testing::Values(DType::kFloat64, DType::kFloat32, DType::kBFloat16),
                         [](const ::testing::TestParamInfo<DType>& info) {
                           return std::string(Name(info.param));
                         });

}  // namespace
}  // namespace omni
