// The tape's contract, on ops made of element-wise kernels only.
#include "runtime/ops/tape.h"

#include <gtest/gtest.h>

#include <vector>

#include "runtime/device/args/elementwise.h"
#include "tests/support/test_device.h"

namespace omni {
namespace {

using testing::TestDevice;

constexpr int64_t kRows = 64, kColumns = 32;  // one tensor of doubles: 4 pages
constexpr int64_t kTensorBytes = kRows * kColumns * 8;

TensorView NewLike(ExecContext& ctx, const TensorView& like) {
  return ctx.New(like.dtype, like.shape());
}

// a + b.
Var Sum(ExecContext& ctx, const Var& a, const Var& b) {
  const TensorView out = NewLike(ctx, a.value);
  Launch(ctx, OpId::kAdd, out.dtype, AddArgs{a.value, b.value, out});
  const Var inputs[] = {a, b};
  return ctx.tape->Record("sum", inputs, {&out, 1}, false, [](Tape::BackwardContext& back) {
    for (int i = 0; i < 2; ++i)
      if (back.needs_grad_input(i)) back.set_grad_input(i, back.grad_output(0));
  })[0];
}

// x + w, which keeps a copy of x for WeightGrad and one of the output for BackwardInput, though
// it needs neither, and makes a temporary nobody saves.
Var Shift(ExecContext& ctx, const Var& x, const Weight& w) {
  const Var inputs[] = {x};
  const TensorView out = NewLike(ctx, x.value);
  Launch(ctx, OpId::kAdd, out.dtype, AddArgs{x.value, w.value, out});
  NewLike(ctx, x.value);
  TensorView for_b, for_w;
  if (Tape::Records(inputs, w.trainable())) {
    for_b = NewLike(ctx, x.value);
    for_w = NewLike(ctx, x.value);
    Launch(ctx, OpId::kCopyCast, out.dtype, CopyCastArgs{out, for_b});
    Launch(ctx, OpId::kCopyCast, out.dtype, CopyCastArgs{out, for_w});
    ctx.tape->Save("shift_b", NeededBy::kBackwardInput, for_b);
    ctx.tape->Save("shift_w", NeededBy::kWeightGrad, for_w);
  }
  // grad + saved - saved, so that a poisoned copy would show.
  const auto through = [](Tape::BackwardContext& back, const TensorView& saved) {
    const TensorView copy = NewLike(back.ctx, saved);
    Launch(back.ctx, OpId::kCopyCast, copy.dtype, CopyCastArgs{back.grad_output(0), copy});
    Launch(back.ctx, OpId::kAxpy, copy.dtype, AxpyArgs{saved, copy, 1.0});
    Launch(back.ctx, OpId::kAxpy, copy.dtype, AxpyArgs{saved, copy, -1.0});
    return copy;
  };
  return ctx.tape->Record(
      "shift", inputs, {&out, 1}, w.trainable(),
      [through, for_b](Tape::BackwardContext& back) {
        if (back.needs_grad_input(0)) back.set_grad_input(0, through(back, for_b));
      },
      [through, for_w, w](Tape::BackwardContext& back) {
        Launch(back.ctx, OpId::kAxpy, w.grad.dtype, AxpyArgs{through(back, for_w), w.grad, 1.0});
      })[0];
}

class TapeTest : public ::testing::TestWithParam<DeviceKind> {
 protected:
  TensorView Filled(double value) {
    return device_.Upload(std::vector<double>(kRows * kColumns, value), {kRows, kColumns});
  }
  Weight MakeWeight(double value, bool trainable = true) {
    return {Filled(value), trainable ? Filled(0.0) : TensorView{}};
  }
  void ExpectAll(const TensorView& view, double value) {
    EXPECT_EQ(device_.Read<double>(view), std::vector<double>(view.num_elements(), value));
  }
  int64_t Used() { return device_.used_bytes() - base_; }
  void StartCounting() { base_ = device_.used_bytes(); }

  TestDevice device_{GetParam()};
  int64_t base_ = 0;
};

TEST_P(TapeTest, AVarUsedTwiceGathersBothGradients) {
  const TensorView x = Filled(1.0), seed = Filled(3.0);
  Tape tape(device_.device());
  ExecContext ctx = device_.ctx(&tape);
  const Var input = tape.Input(x, true);
  const Var twice = Sum(ctx, input, input);
  const Var y = Sum(ctx, twice, input);
  tape.EndForward({&y, 1});
  ExpectAll(y.value, 3.0);
  ExecContext back = device_.ctx();
  tape.Backward(back, {{y, seed}});
  ExpectAll(tape.GradOf(input), 9.0);
  ExpectAll(seed, 3.0);  // the caller's gradient is left alone
}

TEST_P(TapeTest, ARootThatIsAlsoUsedGathersBoth) {
  const TensorView x = Filled(1.0), seed = Filled(1.0);
  Tape tape(device_.device());
  ExecContext ctx = device_.ctx(&tape);
  const Var input = tape.Input(x, true);
  const Var middle = Sum(ctx, input, input);
  const Var y = Sum(ctx, middle, middle);
  ExecContext back = device_.ctx();
  tape.Backward(back, {{y, seed}, {middle, seed}});
  ExpectAll(tape.GradOf(input), 2.0 * (2.0 + 1.0));
}

TEST_P(TapeTest, AFrozenModuleKeepsItsOutputsOnly) {
  const TensorView x = Filled(1.0);
  const Weight w = MakeWeight(2.0, /*trainable=*/false);
  const TensorView seed = Filled(1.0);
  StartCounting();
  Tape tape(device_.device());
  ExecContext ctx = device_.ctx(&tape);
  Var y = tape.Input(x, false);
  for (int i = 0; i < 3; ++i) y = Shift(ctx, y, w);
  EXPECT_FALSE(y.needs_grad());
  tape.EndForward({&y, 1});
  EXPECT_EQ(Used(), kTensorBytes);
  ExecContext back = device_.ctx();
  tape.Backward(back, {{y, seed}});
  ExpectAll(y.value, 7.0);
}

TEST_P(TapeTest, WhatWasSavedGoesWithItsPhase) {
  const TensorView x = Filled(1.0), seed = Filled(1.0);
  const Weight w = MakeWeight(2.0);
  StartCounting();
  Tape tape(device_.device());
  ExecContext ctx = device_.ctx(&tape);
  const Var input = tape.Input(x, true);
  const Var y = Shift(ctx, Shift(ctx, input, w), w);
  // Per op: output, temporary, for B, for W.
  EXPECT_EQ(Used(), 8 * kTensorBytes);
  tape.EndForward({&y, 1});
  EXPECT_EQ(Used(), 5 * kTensorBytes);  // y, 2 for B, 2 for W
  ExecContext back = device_.ctx();
  tape.BackwardInput(back, {{y, seed}});
  // y, 2 for W, the gradient between the two ops, the gradient of x.
  EXPECT_EQ(Used(), 5 * kTensorBytes);
  ExpectAll(tape.GradOf(input), 1.0);
  ExpectAll(w.grad, 0.0);
  tape.WeightGrad(back);
  EXPECT_EQ(Used(), 2 * kTensorBytes);  // y, the gradient of x
  ExpectAll(w.grad, 2.0);
  ExpectAll(tape.GradOf(input), 1.0);
  tape.Reset();
  EXPECT_EQ(Used(), 0);
}

TEST_P(TapeTest, BackwardAtOnceReleasesBothListsAtItsEnd) {
  const TensorView x = Filled(1.0), seed = Filled(1.0);
  const Weight w = MakeWeight(2.0);
  StartCounting();
  Tape tape(device_.device());
  ExecContext ctx = device_.ctx(&tape);
  const Var input = tape.Input(x, true);
  const Var y = Shift(ctx, Shift(ctx, input, w), w);
  ExecContext back = device_.ctx();
  tape.Backward(back, {{y, seed}});
  ExpectAll(w.grad, 2.0);
  ExpectAll(tape.GradOf(input), 1.0);
  EXPECT_LE(Used(), 2 * kTensorBytes);
}

TEST_P(TapeTest, ATapeCanBeUsedAgain) {
  const TensorView x = Filled(1.0), seed = Filled(1.0);
  const Weight w = MakeWeight(2.0);
  StartCounting();
  Tape tape(device_.device());
  for (int step = 1; step <= 3; ++step) {
    ExecContext ctx = device_.ctx(&tape);
    const Var y = Shift(ctx, tape.Input(x, false), w);
    tape.EndForward({&y, 1});
    ExecContext back = device_.ctx();
    tape.Backward(back, {{y, seed}});
    ExpectAll(w.grad, step);
    tape.Reset();
    EXPECT_EQ(Used(), 0);
  }
}

TEST_P(TapeTest, GradientsOnTheWayAreReturnedWhenConsumed) {
  const TensorView x = Filled(1.0), seed = Filled(1.0);
  const Weight w = MakeWeight(0.0, /*trainable=*/false);
  const auto most_on_the_way_back = [&](int depth) {
    Tape tape(device_.device());
    ExecContext ctx = device_.ctx(&tape);
    Var y = tape.Input(x, true);
    for (int i = 0; i < depth; ++i) y = Shift(ctx, y, w);
    tape.EndForward({&y, 1});
    PagePool& pool = device_.device().pool();
    pool.ResetHighWater();
    const int64_t before = pool.stats().used_bytes;
    ExecContext back = device_.ctx();
    tape.Backward(back, {{y, seed}});
    return pool.stats().high_water_bytes - before;
  };
  EXPECT_EQ(most_on_the_way_back(40), most_on_the_way_back(4));
}

TEST_P(TapeTest, StridedGradientsAndUnreachedOutputs) {
  const TensorView x = Filled(1.0);
  const TensorView seed =
      device_.Upload(std::vector<double>(kRows * kColumns / 2, 5.0), {kRows, kColumns / 2});
  Tape tape(device_.device());
  const Var input = tape.Input(x, true);
  // Two outputs, the halves of x, of which one is used; its op is told the other has none.
  const TensorView halves[] = {x.Columns(0, kColumns / 2), x.Columns(kColumns / 2, kColumns / 2)};
  bool first_empty = false, second_empty = false;
  const std::vector<Var> parts =
      tape.Record("split", {&input, 1}, halves, false, [&](Tape::BackwardContext& back) {
        first_empty = back.grad_output(0).empty();
        second_empty = back.grad_output(1).empty();
        const TensorView grad = back.new_grad_input(0);
        Launch(back.ctx, OpId::kFill, grad.dtype, FillArgs{grad, 0.0});
        Launch(back.ctx, OpId::kCopyCast, grad.dtype,
               CopyCastArgs{back.grad_output(1), grad.Columns(kColumns / 2, kColumns / 2)});
      });
  ExecContext back = device_.ctx();
  tape.Backward(back, {{parts[1], seed}});
  EXPECT_TRUE(first_empty);
  EXPECT_FALSE(second_empty);
  const std::vector<double> grad = device_.Read<double>(tape.GradOf(input));
  for (int64_t i = 0; i < kRows * kColumns; ++i)
    EXPECT_EQ(grad[i], i % kColumns < kColumns / 2 ? 0.0 : 5.0) << i;
}

TEST_P(TapeTest, TwoGradientsInOneBlockLiveUntilBothAreUsed) {
  const TensorView a = Filled(1.0).Columns(0, kColumns / 2);
  const TensorView b = Filled(1.0).Columns(0, kColumns / 2);
  const TensorView joined = Filled(1.0), seed = Filled(2.0);
  StartCounting();
  Tape tape(device_.device());
  const Var inputs[] = {tape.Input(a, true), tape.Input(b, true)};
  const Var y = tape.Record("join", inputs, {&joined, 1}, false, [](Tape::BackwardContext& back) {
    const TensorView both = NewLike(back.ctx, back.grad_output(0));
    Launch(back.ctx, OpId::kCopyCast, both.dtype, CopyCastArgs{back.grad_output(0), both});
    back.set_grad_input(0, both.Columns(0, kColumns / 2));
    back.set_grad_input(1, both.Columns(kColumns / 2, kColumns / 2));
  })[0];
  ExecContext back = device_.ctx();
  tape.Backward(back, {{y, seed}});
  EXPECT_EQ(Used(), kTensorBytes);
  ExpectAll(tape.GradOf(inputs[0]), 2.0);
  ExpectAll(tape.GradOf(inputs[1]), 2.0);
}

TEST_P(TapeTest, AnInputNothingDependsOnHasNoGradient) {
  const TensorView x = Filled(1.0), seed = Filled(1.0);
  Tape tape(device_.device());
  ExecContext ctx = device_.ctx(&tape);
  const Var used = tape.Input(x, true), unused = tape.Input(x, true), plain = tape.Input(x, false);
  const Var y = Sum(ctx, used, plain);
  ExecContext back = device_.ctx();
  tape.Backward(back, {{y, seed}});
  EXPECT_FALSE(tape.GradOf(used).empty());
  EXPECT_TRUE(tape.GradOf(unused).empty());
  EXPECT_TRUE(tape.GradOf(plain).empty());
}

TEST_P(TapeTest, WhatAStretchMadeGoesAtItsEnd) {
  const TensorView x = Filled(1.0), seed = Filled(1.0);
  const Weight w = MakeWeight(2.0);
  StartCounting();
  Tape tape(device_.device());
  ExecContext ctx = device_.ctx(&tape);
  const Var input = tape.Input(x, true);
  const size_t outer = tape.Mark();
  const Var first = Shift(ctx, input, w);
  const size_t mark = tape.Mark();
  const Var second = Shift(ctx, Shift(ctx, first, w), w);
  EXPECT_EQ(Used(), 12 * kTensorBytes);
  // Of the inner two ops the output and what they saved stay, of the outer one everything.
  tape.EndStretch(mark, {&second, 1});
  EXPECT_EQ(Used(), (4 + 5) * kTensorBytes);
  tape.EndStretch(tape.Mark(), {&input, 1});  // an empty one; nor is memory of outside its business
  EXPECT_EQ(Used(), (4 + 5) * kTensorBytes);
  const Var third = Shift(ctx, second, w);
  tape.EndStretch(outer, {&third, 1});  // the inner one's output is none of this one's
  EXPECT_EQ(Used(), (4 * 2 + 1) * kTensorBytes);
  tape.EndForward({&third, 1});
  EXPECT_EQ(Used(), (4 * 2 + 1) * kTensorBytes);
  ExpectAll(third.value, 9.0);
  ExecContext back = device_.ctx();
  tape.Backward(back, {{third, seed}});
  ExpectAll(w.grad, 4.0);
  ExpectAll(tape.GradOf(input), 1.0);
}

TEST_P(TapeTest, WrongUseIsCaught) {
  const TensorView x = Filled(1.0);
  Tape tape(device_.device());
  const Var input = tape.Input(x, true);
  tape.EndForward({});
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(tape.Record("late", {&input, 1}, {&x, 1}, false, nullptr), "CHECK failed");
}

INSTANTIATE_TEST_SUITE_P(Devices, TapeTest, testing::TestDevices(), testing::DeviceName);

}  // namespace
}  // namespace omni
