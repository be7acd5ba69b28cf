// Rope and MakeRopeTable against transformers, finite rotations and themselves.
#include "runtime/ops/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <random>

#include "runtime/checkpoint/safetensors.h"
#include "runtime/ops/ops.h"

namespace omni {
namespace {

class RopeTest : public ::testing::Test {
 protected:
  RopeTest() {
    RegisterCpuKernels(registry_);
    DeviceOptions options;
    options.reserved_bytes = int64_t{1} << 28;
    options.num_threads = 2;
    options.kernels = &registry_;
    device_ = *Device::Create(options);
    stream_ = device_->NewStream();
    tape_ = std::make_unique<Tape>(*device_);
  }
  ExecContext ctx() { return {.device = *device_, .stream = *stream_, .tape = tape_.get()}; }

  KernelRegistry registry_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<Tape> tape_;
};

class RopeGoldenTest : public RopeTest {
 protected:
  RopeGoldenTest() {
    file_ = *SafetensorsFile::Open(std::string(OMNI_SOURCE_DIR) + "/tests/golden/rope.safetensors");
  }
  absl::Span<const float> Golden(const char* name) {
    const TensorView view = *file_->Get(name);
    return {view.ptr<float>(), static_cast<size_t>(view.num_elements())};
  }
  // cos or sin of a table is as in the file, to an ulp of 1 (their fp32 angles are ours).
  void ExpectTable(const TensorView& table, const char* name) {
    ExecContext context = ctx();
    const std::vector<float> got = HostRead<float>(context, table);
    const absl::Span<const float> want = Golden(name);
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i)
      EXPECT_NEAR(got[i], want[i], 2e-7)
          << name << " token " << i / table.size(1) << " frequency " << i % table.size(1);
  }
  // Positions [axes, 8] without the first axes.
  absl::Span<const float> Positions(int first_axis) {
    return Golden("positions").subspan(8 * first_axis);
  }

  std::unique_ptr<SafetensorsFile> file_;
};

TEST_F(RopeGoldenTest, ChunkedIsQwen2VL) {
  ExecContext context = ctx();
  const RopeOptions options{.theta = 1e4, .layout = RopeLayout::kChunked, .sections = {4, 6, 6}};
  const RopeTable table = MakeRopeTable(context, Positions(0), 8, options, DType::kFloat32);
  ExpectTable(table.cos_TR, "chunked_cos");
  const Var x{.value = UploadNew<float>(context, Golden("x"), {8, 2, 32})};
  const std::vector<float> y =
      HostRead<float>(context, Rope(context, x, table.cos_TR, table.sin_TR).value);
  const absl::Span<const float> want = Golden("chunked_y");
  ASSERT_EQ(y.size(), want.size());
  for (size_t i = 0; i < y.size(); ++i) EXPECT_NEAR(y[i], want[i], 1e-6) << i;
}

TEST_F(RopeGoldenTest, InterleavedIsQwen3VL) {
  ExecContext context = ctx();
  const RopeOptions options{
      .theta = 5e6, .layout = RopeLayout::kInterleaved, .sections = {6, 5, 5}};
  const RopeTable table = MakeRopeTable(context, Positions(0), 8, options, DType::kFloat32);
  ExpectTable(table.cos_TR, "interleaved_cos");
  ExpectTable(table.sin_TR, "interleaved_sin");
}

TEST_F(RopeGoldenTest, PerAxisIsTheVisionTowers) {
  ExecContext context = ctx();
  const RopeOptions options{.theta = 1e4, .layout = RopeLayout::kPerAxis, .sections = {8, 8}};
  const RopeTable table = MakeRopeTable(context, Positions(1), 8, options, DType::kFloat32);
  ExpectTable(table.cos_TR, "per_axis_cos");
  ExpectTable(table.sin_TR, "per_axis_sin");
}

TEST_F(RopeTest, Fp64TableHasFp64Angles) {
  ExecContext context = ctx();
  const RopeOptions options{.theta = 1e4, .sections = {3}};
  const std::vector<float> positions = {0.0f, 12345.0f, 0.5f, 12345.0f};
  const RopeTable table = MakeRopeTable(context, positions, 4, options, DType::kFloat64);
  const std::vector<double> cos = HostRead<double>(context, table.cos_TR);
  for (int t = 0; t < 4; ++t)
    for (int i = 0; i < 3; ++i)
      EXPECT_NEAR(cos[t * 3 + i], std::cos(positions[t] * std::pow(1e4, -i / 3.0)), 1e-10);
}

// The last section decides how long an axis goes on; what is left turns with axis 0.
TEST_F(RopeTest, InterleavedFallsBackToTheFirstAxis) {
  ExecContext context = ctx();
  const RopeOptions options{
      .theta = 100.0, .layout = RopeLayout::kInterleaved, .sections = {4, 2, 1}};
  const std::vector<float> positions = {1.0f, 2.0f, 3.0f};  // one token, three axes
  const RopeTable table = MakeRopeTable(context, positions, 1, options, DType::kFloat64);
  const std::vector<double> sin = HostRead<double>(context, table.sin_TR);
  const double axis_position[] = {1, 2, 3, 1, 2, 1, 1};
  for (int i = 0; i < 7; ++i)
    EXPECT_NEAR(sin[i], std::sin(axis_position[i] * std::pow(100.0, -i / 7.0)), 1e-14) << i;
}

// Strided input; the rotation keeps lengths; backward of forward is the identity (the map is
// orthogonal, so its transpose is its inverse), and gradients are exactly the transpose.
TEST_F(RopeTest, BackwardIsTheTranspose) {
  ExecContext context = ctx();
  constexpr int64_t kTokens = 37, kHeads = 3, kDim = 10;
  const RopeOptions options{.theta = 1e4, .sections = {5}};
  std::vector<float> positions(kTokens);
  for (int64_t t = 0; t < kTokens; ++t) positions[t] = static_cast<float>(t % 11);
  const RopeTable table = MakeRopeTable(context, positions, kTokens, options, DType::kFloat64);
  std::mt19937 bits(1);
  std::normal_distribution<double> normal;
  std::vector<double> wide(kTokens * (kHeads * kDim + 7)), grad(kTokens * kHeads * kDim);
  for (double& x : wide) x = normal(bits);
  for (double& x : grad) x = normal(bits);

  const TensorView wide_TC = UploadNew<double>(context, wide, {kTokens, kHeads * kDim + 7});
  const TensorView x_TND = wide_TC.Columns(3, kHeads * kDim).Reshape({kTokens, kHeads, kDim});
  const Var x = tape_->Input(x_TND, true);
  const Var y = Rope(context, x, table.cos_TR, table.sin_TR);
  const std::vector<double> y_host = HostRead<double>(context, y.value);
  const std::vector<double> x_host = HostRead<double>(context, x_TND);
  tape_->EndForward({&y, 1});
  const Tape::RootGrad root{y, UploadNew<double>(context, grad, {kTokens, kHeads, kDim})};
  tape_->Backward(context, {&root, 1});
  const std::vector<double> dx = HostRead<double>(context, tape_->GradOf(x));
  double left = 0.0, right = 0.0, x_norm = 0.0, y_norm = 0.0;
  for (size_t i = 0; i < grad.size(); ++i) {
    left += grad[i] * y_host[i];
    right += dx[i] * x_host[i];
    x_norm += x_host[i] * x_host[i];
    y_norm += y_host[i] * y_host[i];
  }
  EXPECT_NEAR(left, right, 1e-11);
  EXPECT_NEAR(x_norm, y_norm, 1e-11);
  EXPECT_EQ(std::vector<double>(y_host.begin(), y_host.begin() + kHeads * kDim),
            std::vector<double>(x_host.begin(), x_host.begin() + kHeads * kDim));  // position 0
}

TEST_F(RopeTest, Bf16IsFp32Rounded) {
  ExecContext context = ctx();
  const RopeOptions options{.theta = 1e4, .sections = {2}};
  const RopeTable table = MakeRopeTable(context, {0.0f, 3.0f}, 2, options, DType::kBFloat16);
  EXPECT_EQ(table.cos_TR.dtype, DType::kFloat32);
  std::vector<BFloat16> x;
  std::vector<float> wide;
  for (int i = 0; i < 8; ++i) {
    x.push_back(BFloat16(0.37f * static_cast<float>(i) - 1.0f));
    wide.push_back(static_cast<float>(x.back()));
  }
  const Var narrow{.value = UploadNew<BFloat16>(context, x, {2, 1, 4})};
  const Var full{.value = UploadNew<float>(context, wide, {2, 1, 4})};
  const auto y16 =
      HostRead<BFloat16>(context, Rope(context, narrow, table.cos_TR, table.sin_TR).value);
  const auto y32 = HostRead<float>(context, Rope(context, full, table.cos_TR, table.sin_TR).value);
  for (int i = 0; i < 8; ++i) EXPECT_EQ(y16[i].bits, BFloat16(y32[i]).bits) << i;
}

// The frequencies are the angles at position 1; expected ones by the branches of transformers'
// _compute_llama3_parameters, in Python.
TEST_F(RopeTest, Llama3ScalingLowersLongWavelengthsOnly) {
  ExecContext context = ctx();
  const RopeOptions options{.theta = 500,
                            .sections = {8},
                            .scaling = {.kind = RopeScaling::Kind::kLlama3,
                                        .factor = 8,
                                        .low_frequency_factor = 1,
                                        .high_frequency_factor = 4,
                                        .original_positions = 64}};
  const RopeTable table = MakeRopeTable(context, {1.0f}, 1, options, DType::kFloat64);
  const std::vector<double> cos = HostRead<double>(context, table.cos_TR);
  const double expected[] = {1.0,
                             0.45986329782677027,
                             0.09761663265652092,
                             0.012156155905825913,
                             0.005590169943749474,
                             0.002570713985744724,
                             0.0011821770112539697,
                             0.0005436398190102454};
  for (int i = 0; i < 8; ++i) EXPECT_NEAR(std::acos(cos[i]), expected[i], 1e-9) << i;
}

TEST_F(RopeTest, NoTokens) {
  ExecContext context = ctx();
  const RopeOptions options{.theta = 1e4, .sections = {2}};
  const RopeTable table = MakeRopeTable(context, {}, 0, options, DType::kFloat32);
  const Var x = tape_->Input(context.New(DType::kFloat32, {0, 1, 4}), true);
  EXPECT_EQ(Rope(context, x, table.cos_TR, table.sin_TR).value.num_elements(), 0);
}

}  // namespace
}  // namespace omni
