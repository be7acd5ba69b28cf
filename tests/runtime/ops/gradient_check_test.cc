// The checker checked: right gradients pass, and each way of being wrong is reported.
#include "tests/support/gradient_check.h"

#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

#include "runtime/device/args/elementwise.h"
#include "runtime/ops/rope.h"

namespace omni {
namespace {

using testing::CheckedTensor;
using testing::ExpectGradientsMatch;
using testing::ExpectPrecisionMatches;
using testing::TestDevice;

// y = 2 x + w, with a backward pass that can be wrong in several ways.
enum class Fault : uint8_t { kNone, kScale, kSign, kOverwrites, kOnlyTogether };

Var TwiceAndShift(ExecContext& ctx, const Var& x, const Weight& w, Fault fault) {
  const TensorView y = ctx.New(x.value.dtype, x.value.shape());
  Launch(ctx, OpId::kAdd, y.dtype, AddArgs{x.value, x.value, y});
  Launch(ctx, OpId::kAdd, y.dtype, AddArgs{y, w.value, y});
  if (ctx.tape == nullptr) return {y};
  const auto input_grad = [fault, w](Tape::BackwardContext& back) {
    const TensorView grad = back.grad_output(0);
    if (fault == Fault::kOnlyTogether && w.trainable() && !back.needs_grad_input(0)) {
      Launch(back.ctx, OpId::kAxpy, w.grad.dtype, AxpyArgs{grad, w.grad, 1.0});
    }
    if (!back.needs_grad_input(0)) return;
    const TensorView to = back.new_grad_input(0);
    Launch(back.ctx, OpId::kAdd, grad.dtype, AddArgs{grad, grad, to});
    if (fault == Fault::kScale) Launch(back.ctx, OpId::kScale, to.dtype, ScaleArgs{to, 1.0 + 1e-6});
  };
  const auto weight_grad = [fault, w](Tape::BackwardContext& back) {
    const TensorView grad = back.grad_output(0);
    if (fault == Fault::kOverwrites)
      Launch(back.ctx, OpId::kFill, w.grad.dtype, FillArgs{w.grad, 0.0});
    Launch(back.ctx, OpId::kAxpy, w.grad.dtype,
           AxpyArgs{grad, w.grad, fault == Fault::kSign ? -1.0 : 1.0});
  };
  return ctx.tape->Record("twice_and_shift", {&x, 1}, {&y, 1}, w.trainable(), input_grad,
                          weight_grad)[0];
}

auto WithFault(Fault fault) {
  return [fault](ExecContext& ctx, absl::Span<const Var> x, absl::Span<const Weight> w) {
    return TwiceAndShift(ctx, x[0], w[0], fault);
  };
}

int NumFailures(Fault fault) {
  TestDevice device;
  ::testing::TestPartResultArray failures;
  {
    const ::testing::ScopedFakeTestPartResultReporter reporter(
        ::testing::ScopedFakeTestPartResultReporter::INTERCEPT_ONLY_CURRENT_THREAD, &failures);
    ExpectGradientsMatch(device, {{.sizes = {3, 5}}}, {{.sizes = {3, 5}}}, WithFault(fault));
  }
  return failures.size();
}

TEST(GradientCheckTest, ARightBackwardPasses) { EXPECT_EQ(NumFailures(Fault::kNone), 0); }
TEST(GradientCheckTest, AScaleOfOneMillionthIsSeen) { EXPECT_GT(NumFailures(Fault::kScale), 0); }
TEST(GradientCheckTest, ASignIsSeen) { EXPECT_GT(NumFailures(Fault::kSign), 0); }
TEST(GradientCheckTest, OverwritingAWeightGradientIsSeen) {
  EXPECT_GT(NumFailures(Fault::kOverwrites), 0);
}
TEST(GradientCheckTest, AGradientThatDependsOnWhoElseWantsOneIsSeen) {
  EXPECT_GT(NumFailures(Fault::kOnlyTogether), 0);
}

class CheckedOpsTest : public ::testing::TestWithParam<DeviceKind> {};

TEST_P(CheckedOpsTest, RopeAndPrecision) {
  TestDevice device(GetParam());
  const auto rope = [](ExecContext& ctx, absl::Span<const Var> x, absl::Span<const Weight>) {
    const std::vector<float> positions = {0, 1, 2, 5, 11};
    const DType compute = x[0].value.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
    const RopeTable table =
        MakeRopeTable(ctx, positions, 5, {.theta = 100.0, .sections = {3}}, compute);
    return Rope(ctx, x[0], table.cos_TR, table.sin_TR);
  };
  const std::vector<CheckedTensor> inputs = {{.sizes = {5, 2, 6}}};
  ExpectGradientsMatch(device, inputs, {}, rope);
  ExpectPrecisionMatches(device, inputs, {}, rope, DType::kFloat32, 1e-6);
  ExpectPrecisionMatches(device, inputs, {}, rope, DType::kBFloat16, 4e-3);
}

TEST_P(CheckedOpsTest, EmptyTensors) {
  TestDevice device(GetParam());
  ExpectGradientsMatch(device, {{.sizes = {0, 5}}}, {{.sizes = {0, 5}}}, WithFault(Fault::kNone));
}

INSTANTIATE_TEST_SUITE_P(Devices, CheckedOpsTest, testing::TestDevices(), testing::DeviceName);

}  // namespace
}  // namespace omni
