// What tables of shapes do not reach: accuracy element by element, ties, bad row numbers, losses
// over several chunks of logits, and ops that have nothing to record.
#include <gtest/gtest.h>

#include <cmath>

#include "runtime/ops/ops.h"
#include "tests/support/test_device.h"

namespace omni {
namespace {

using ::omni::testing::TestDevice;

std::vector<float> Sweep(float low, float high, int64_t count) {
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i)
    values.push_back(low + (high - low) * static_cast<float>(i) / static_cast<float>(count - 1));
  return values;
}

// The vector forms of erf, exp and sigmoid are within about 2 ulp of libm's, also in the tails.
TEST(OpEdgesTest, ActivationsAreAccurateElementByElement) {
  TestDevice device;
  ExecContext ctx = device.ctx();
  const std::vector<float> x = Sweep(-30.0f, 30.0f, 60001);
  const TensorView x_view = device.Upload<float>(x, {1, 60001});
  const auto erf = device.Read<float>(Gelu(ctx, {.value = x_view}, GeluKind::kErf).value);
  const auto tanh = device.Read<float>(Gelu(ctx, {.value = x_view}, GeluKind::kTanh).value);
  std::vector<float> gate_up = x;
  gate_up.resize(2 * x.size(), 1.0f);
  const TensorView gate_up_view = device.Upload<float>(gate_up, {1, 120002});
  const auto silu = device.Read<float>(SwiGlu(ctx, {.value = gate_up_view}).value);
  for (size_t i = 0; i < x.size(); ++i) {
    const double v = x[i];
    // 1 + erf cancels for negative x (in PyTorch too), so that tail is held absolutely.
    EXPECT_NEAR(erf[i], 0.5 * v * std::erfc(-v / std::sqrt(2.0)), 2e-7 * std::max(1.0, std::abs(v)))
        << v;
    const double u = std::sqrt(2.0 / M_PI) * (v + 0.044715 * v * v * v);
    EXPECT_NEAR(tanh[i], 0.5 * v * (1.0 + std::tanh(u)), 2e-7 * std::max(1.0, std::abs(v))) << v;
    const double expected = v / (1.0 + std::exp(-v));
    EXPECT_NEAR(silu[i], expected, 4e-7 * std::abs(expected) + 1e-38) << v;
  }
}

TEST(OpEdgesTest, HugeInputsStayFinite) {
  TestDevice device;
  ExecContext ctx = device.ctx();
  const TensorView x = device.Upload<float>({1e4f, -1e4f, 3e38f, -3e38f}, {1, 4});
  const auto gelu = device.Read<float>(Gelu(ctx, {.value = x}, GeluKind::kErf).value);
  EXPECT_EQ(gelu, (std::vector<float>{1e4f, 0.0f, 3e38f, 0.0f}));
  const TensorView head = device.Upload<float>({1e4f, 0.0f, -1e4f}, {3, 1});
  const TensorView hidden = device.Upload<float>({1.0f, 1.0f}, {2, 1});
  const auto result = LinearCrossEntropy(ctx, {.value = hidden}, {.value = head, .grad = {}},
                                         device.Upload<int32_t>({0, 2}, {2}), 1.0);
  EXPECT_EQ(device.Read<float>(result.losses_T), (std::vector<float>{0.0f, 2e4f}));
}

TEST(OpEdgesTest, ArgmaxIsTheLowestAmongEquals) {
  TestDevice device;
  ExecContext ctx = device.ctx();
  std::vector<float> head(67, 0.0f);  // logits = head: several vectors and a tail
  head[5] = head[33] = head[66] = 2.0f;
  const auto result =
      LinearCrossEntropy(ctx, {.value = device.Upload<float>({1.0f, 0.0f, -1.0f, 1.0f}, {4, 1})},
                         {.value = device.Upload<float>(head, {67, 1}), .grad = {}},
                         device.Upload<int32_t>({1, 1, 5, -1}, {4}), 1.0);
  EXPECT_EQ(device.Read<int32_t>(result.argmax_T), (std::vector<int32_t>{5, 0, 0, -1}));
}

// 150 rows over 65537 classes take three chunks of logits; 50 rows take one.
TEST(OpEdgesTest, LossOverSeveralChunksIsTheSumOfTheParts) {
  TestDevice device;
  constexpr int64_t kRows = 150, kPart = 50, kWidth = 3, kClasses = 65537;
  std::vector<double> hidden, head;
  std::vector<int32_t> targets;
  for (int64_t i = 0; i < kRows * kWidth; ++i)
    hidden.push_back(std::sin(0.7 * static_cast<double>(i)));
  for (int64_t i = 0; i < kClasses * kWidth; ++i)
    head.push_back(std::cos(0.3 * static_cast<double>(i)));
  for (int64_t t = 0; t < kRows; ++t)
    targets.push_back(t % 7 == 3 ? -1 : static_cast<int32_t>(t * 401 % kClasses));
  struct Result {
    std::vector<double> losses, grad_hidden, grad_head;
    double loss = 0.0;
  };
  const auto run = [&](int64_t begin, int64_t count) {
    Tape tape(device.device());
    ExecContext ctx = device.ctx(&tape);
    const std::vector<double> rows(hidden.begin() + begin * kWidth,
                                   hidden.begin() + (begin + count) * kWidth);
    const std::vector<int32_t> ids(targets.begin() + begin, targets.begin() + begin + count);
    const Var x = tape.Input(device.Upload<double>(rows, {count, kWidth}), true);
    const Weight weight{
        .value = device.Upload<double>(head, {kClasses, kWidth}),
        .grad = device.Upload<double>(std::vector<double>(head.size(), 0.0), {kClasses, kWidth})};
    const auto result =
        LinearCrossEntropy(ctx, x, weight, device.Upload<int32_t>(ids, {count}), 0.01);
    Result all{.losses = device.Read<double>(result.losses_T),
               .grad_hidden = {},
               .grad_head = {},
               .loss = device.Read<double>(result.loss.value)[0]};
    const Tape::RootGrad root{result.loss, device.Upload<double>({1.0}, {1})};
    tape.Backward(ctx, {&root, 1});
    all.grad_hidden = device.Read<double>(tape.GradOf(x));
    all.grad_head = device.Read<double>(weight.grad);
    return all;
  };
  const Result whole = run(0, kRows);
  Result sum;
  sum.grad_head.resize(head.size());
  for (int64_t begin = 0; begin < kRows; begin += kPart) {
    const Result part = run(begin, kPart);
    sum.loss += part.loss;
    sum.losses.insert(sum.losses.end(), part.losses.begin(), part.losses.end());
    sum.grad_hidden.insert(sum.grad_hidden.end(), part.grad_hidden.begin(), part.grad_hidden.end());
    for (size_t i = 0; i < head.size(); ++i) sum.grad_head[i] += part.grad_head[i];
  }
  EXPECT_NEAR(whole.loss, sum.loss, 1e-12 * std::abs(sum.loss));
  const auto expect_near = [](const std::vector<double>& a, const std::vector<double>& b) {
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i)
      ASSERT_NEAR(a[i], b[i], 1e-13 * std::max(1.0, std::abs(b[i])));
  };
  expect_near(whole.losses, sum.losses);
  expect_near(whole.grad_hidden, sum.grad_hidden);
  expect_near(whole.grad_head, sum.grad_head);
}

// Frozen parts keep nothing: their outputs have no gradient slot.
TEST(OpEdgesTest, FrozenOpsAreNotRecorded) {
  TestDevice device;
  Tape tape(device.device());
  ExecContext ctx = device.ctx(&tape);
  const Var x = tape.Input(device.Upload<float>(std::vector<float>(12, 1.0f), {3, 4}), false);
  const Weight weight{.value = device.Upload<float>(std::vector<float>(8, 1.0f), {2, 4}),
                      .grad = {}};
  const Weight scale{.value = device.Upload<float>(std::vector<float>(4, 1.0f), {4}), .grad = {}};
  EXPECT_FALSE(Linear(ctx, x, weight).needs_grad());
  EXPECT_FALSE(RmsNorm(ctx, x, scale, 1e-6f).needs_grad());
  EXPECT_FALSE(AddLayerNorm(ctx, x, x, scale, &scale, 1e-6f).sum_TH.needs_grad());
  EXPECT_FALSE(SwiGlu(ctx, x).needs_grad());
  EXPECT_FALSE(Embedding(ctx, device.Upload<int32_t>({1}, {1}), weight).needs_grad());
  EXPECT_FALSE(LinearCrossEntropy(ctx, x, weight, device.Upload<int32_t>({1, 0, 1}, {3}), 1.0)
                   .loss.needs_grad());
}

TEST(OpEdgesDeathTest, RowsOutOfRangeStopTheProgram) {
  TestDevice device(DeviceKind::kCpu, {.num_threads = 1});  // gtest forks
  ExecContext ctx = device.ctx();
  const Var x{.value = device.Upload<float>(std::vector<float>(12, 1.0f), {3, 4})};
  const Weight table{.value = x.value, .grad = {}};
  for (const int32_t row : {3, -1}) {
    const TensorView rows = device.Upload<int32_t>({0, row}, {2});
    const Var source{.value = device.Upload<float>(std::vector<float>(8, 1.0f), {2, 4})};
    EXPECT_DEATH(Embedding(ctx, rows, table), "embedding_fwd_cpu failed with code 1");
    EXPECT_DEATH(
        InterpolateRows(ctx, table, rows.Reshape({2, 1}), device.Upload<float>({1, 1}, {2, 1})),
        "interpolate_rows_fwd_cpu failed with code 1");
    EXPECT_DEATH(GatherRows(ctx, x, rows), "gather_rows_cpu failed with code 1");
    EXPECT_DEATH(ScatterRows(ctx, x, source, rows), "scatter_rows_cpu failed with code 1");
  }
  const TensorView targets = device.Upload<int32_t>({0, 3, -1}, {3});
  EXPECT_DEATH(LinearCrossEntropy(ctx, x, table, targets, 1.0), "crossentropy_fwd.* code 1");
}

TEST(OpEdgesTest, Conv1dSeqlensCountWholeWindows) {
  const std::vector<int32_t> cu = {0, 0, 1, 3, 8};
  EXPECT_EQ(Conv1dSeqlens(cu, 3, {.stride = 1, .padding = 1}),
            (std::vector<int32_t>{0, 0, 1, 3, 8}));
  EXPECT_EQ(Conv1dSeqlens(cu, 3, {.stride = 2, .padding = 1}),
            (std::vector<int32_t>{0, 0, 1, 2, 5}));
  EXPECT_EQ(Conv1dSeqlens(cu, 3, {.stride = 1, .padding = 0}),
            (std::vector<int32_t>{0, 0, 0, 0, 3}));
}

}  // namespace
}  // namespace omni
