// Recomputing changes no bit and keeps less.
#include "runtime/ops/recompute.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "runtime/base/rng.h"
#include "runtime/ops/ops.h"
#include "tests/support/test_device.h"

namespace omni {
namespace {

using testing::TestDevice;

constexpr int64_t kRows = 37, kHidden = 24, kFfn = 80, kHeads = 3;

enum class Mode { kKeep, kWhole, kParts, kNested };

// A pre-norm block on (x, normed), with the segments as a constant of the tape.
struct Block {
  Weight qkv, output, norm, gate_up, down, next_norm;

  std::vector<Weight*> weights() { return {&qkv, &output, &norm, &gate_up, &down, &next_norm}; }
  bool trains() const { return qkv.trainable(); }

  Var Attention(ExecContext& ctx, const Var& normed) const {
    const std::vector<Var> parts =
        SplitColumns(ctx, Linear(ctx, normed, qkv), {kHidden, kHidden, kHidden});
    const auto heads = [&](const Var& x) {
      return Reshape(ctx, x, {kRows, kHeads, kHidden / kHeads});
    };
    const std::vector<int32_t> cu_seqlens = {0, 5, 5, kRows};
    const Var mixed = VarlenAttention(ctx, heads(parts[0]), heads(parts[1]), heads(parts[2]),
                                      cu_seqlens, {.causal = true});
    return Linear(ctx, Reshape(ctx, mixed, {kRows, kHidden}), output);
  }
  Var Mlp(ExecContext& ctx, const Var& normed) const {
    return Linear(ctx, SwiGlu(ctx, Linear(ctx, normed, gate_up)), down);
  }

  // inputs: x, normed, and rows to gather by (a permutation made on the tape).
  std::vector<Var> Run(ExecContext& ctx, absl::Span<const Var> in, bool parts) const {
    const auto stretch = [&](const Var& input, Var (Block::*part)(ExecContext&, const Var&) const) {
      if (!parts) return (this->*part)(ctx, input);
      return Recompute(ctx, {&input, 1}, trains(),
                       [this, part](ExecContext& inner, absl::Span<const Var> inputs) {
                         return std::vector<Var>{(this->*part)(inner, inputs[0])};
                       })[0];
    };
    const Var attended = GatherRows(ctx, stretch(in[1], &Block::Attention), in[2].value);
    const AddNormResult middle = AddRmsNorm(ctx, in[0], attended, norm, 1e-6f);
    const Var mlp = stretch(middle.normed_TH, &Block::Mlp);
    const AddNormResult end = AddRmsNorm(ctx, middle.sum_TH, mlp, next_norm, 1e-6f);
    return {end.sum_TH, end.normed_TH};
  }
};

struct Outcome {
  std::vector<std::vector<double>> values;  // output, gradient of x, of each weight
  int64_t kept_bytes = 0;                   // between forward and backward
  int64_t high_water_bytes = 0;

  bool operator==(const Outcome& other) const { return values == other.values; }
};

class RecomputeTest : public ::testing::TestWithParam<DeviceKind> {
 protected:
  Outcome Run(Mode mode, DType dtype, bool split, bool trains = true, bool wants_input = true,
              int32_t num_blocks = 5) {
    TestDevice device(GetParam(), {.reserved_bytes = int64_t{1} << 28});
    const auto random = [&](absl::Span<const int64_t> shape, uint64_t stream, double scale) {
      int64_t count = 1;
      for (const int64_t size : shape) count *= size;
      const CounterRng rng(3, stream);
      std::vector<double> values;
      for (int64_t i = 0; i < count; ++i) values.push_back(scale * rng.Normal(i));
      return device.UploadAs(dtype, values, shape, device.arena());
    };
    const DType sums = dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
    std::vector<Block> blocks(num_blocks);
    uint64_t stream = 10;
    for (Block& block : blocks) {
      const std::vector<std::vector<int64_t>> shapes = {
          {3 * kHidden, kHidden}, {kHidden, kHidden}, {kHidden},
          {2 * kFfn, kHidden},    {kHidden, kFfn},    {kHidden}};
      for (size_t i = 0; i < shapes.size(); ++i) {
        Weight& weight = *block.weights()[i];
        weight.value = random(shapes[i], ++stream, 0.3);
        if (!trains) continue;
        weight.grad = device.UploadAs(sums, std::vector<double>(weight.value.num_elements(), 0.0),
                                      shapes[i], device.arena());
      }
    }
    const TensorView input = random({{kRows, kHidden}}, 1, 1.0);
    const TensorView seed = random({{kRows, kHidden}}, 2, 1.0);

    Outcome outcome;
    PagePool& pool = device.device().pool();
    const int64_t before = pool.stats().used_bytes;
    {
      Tape tape(device.device());
      ExecContext ctx = device.ctx(&tape);
      std::vector<int32_t> backwards(kRows);
      for (int64_t i = 0; i < kRows; ++i) backwards[i] = static_cast<int32_t>(kRows - 1 - i);
      const Var rows{.value = UploadNew<int32_t>(ctx, backwards, {kRows})};
      const Var x = tape.Input(input, wants_input);
      std::vector<Var> state = {x, x};
      pool.ResetHighWater();
      for (const Block& block : blocks) {
        const std::vector<Var> inputs = {state[0], state[1], rows};
        if (mode == Mode::kKeep || mode == Mode::kParts) {
          state = block.Run(ctx, inputs, mode == Mode::kParts);
        } else {
          state = Recompute(ctx, inputs, trains,
                            [&block, mode](ExecContext& inner, absl::Span<const Var> in) {
                              return block.Run(inner, in, mode == Mode::kNested);
                            });
        }
      }
      tape.EndForward(state);
      outcome.kept_bytes = pool.stats().used_bytes - before;
      ExecContext back = device.ctx();
      // Of the second output nobody wants a gradient.
      if (split) {
        tape.BackwardInput(back, {{state[0], seed}});
        tape.WeightGrad(back);
      } else {
        tape.Backward(back, {{state[0], seed}});
      }
      outcome.high_water_bytes = pool.stats().high_water_bytes - before;
      outcome.values.push_back(device.ReadDoubles(state[0].value));
      outcome.values.push_back(device.ReadDoubles(state[1].value));
      if (wants_input) outcome.values.push_back(device.ReadDoubles(tape.GradOf(x)));
    }
    EXPECT_EQ(pool.stats().used_bytes, before);
    for (Block& block : blocks) {
      for (const Weight* weight : block.weights()) {
        if (trains) outcome.values.push_back(device.ReadDoubles(weight->grad));
      }
    }
    return outcome;
  }
};

TEST_P(RecomputeTest, NoBitChanges) {
  for (const DType dtype : {DType::kFloat64, DType::kFloat32, DType::kBFloat16}) {
    for (const bool split : {false, true}) {
      const Outcome kept = Run(Mode::kKeep, dtype, split);
      ASSERT_EQ(kept.values.size(), 3u + 5 * 6);
      EXPECT_TRUE(std::any_of(kept.values[2].begin(), kept.values[2].end(),
                              [](double x) { return x != 0.0; }));
      for (const Mode mode : {Mode::kWhole, Mode::kParts, Mode::kNested}) {
        EXPECT_EQ(Run(mode, dtype, split), kept)
            << Name(dtype) << " split " << split << " mode " << static_cast<int>(mode);
      }
    }
  }
}

TEST_P(RecomputeTest, FrozenWeightsAndInputsWithoutGradient) {
  for (const bool split : {false, true}) {
    for (const Mode mode : {Mode::kWhole, Mode::kParts}) {
      EXPECT_EQ(Run(mode, DType::kFloat64, split, /*trains=*/false),
                Run(Mode::kKeep, DType::kFloat64, split, /*trains=*/false));
      EXPECT_EQ(Run(mode, DType::kFloat64, split, /*trains=*/true, /*wants_input=*/false),
                Run(Mode::kKeep, DType::kFloat64, split, /*trains=*/true, /*wants_input=*/false));
    }
  }
  // Nobody wants a gradient: nothing is kept but the outputs.
  const Outcome whole = Run(Mode::kWhole, DType::kFloat64, false, false, false);
  EXPECT_EQ(whole.kept_bytes, Run(Mode::kKeep, DType::kFloat64, false, false, false).kept_bytes);
}

TEST_P(RecomputeTest, LessIsKept) {
  const auto of = [&](Mode mode, bool split) { return Run(mode, DType::kFloat64, split); };
  const Outcome kept = of(Mode::kKeep, false), parts = of(Mode::kParts, false),
                whole = of(Mode::kWhole, false);
  // Of each block only its two inputs stay, of 37 x 24 doubles (2 pages) each, and the constant.
  EXPECT_LE(whole.kept_bytes, (5 * 2 + 2 + 1) * 2 * kPageBytes);
  EXPECT_LT(whole.kept_bytes, parts.kept_bytes);
  EXPECT_LT(parts.kept_bytes, kept.kept_bytes / 2);
  EXPECT_LT(whole.high_water_bytes, kept.high_water_bytes / 2);
  EXPECT_LT(parts.high_water_bytes, kept.high_water_bytes * 2 / 3);
  // At the split backward's end every block's weight half has been kept; still less before it.
  EXPECT_LE(of(Mode::kWhole, true).high_water_bytes, of(Mode::kKeep, true).high_water_bytes);
}

TEST_P(RecomputeTest, AnIdentityAndTwoViewsOfOneTensor) {
  TestDevice device(GetParam(), {.reserved_bytes = int64_t{1} << 28});
  const std::vector<double> ones(64, 1.0);
  const TensorView value = device.Upload(ones, {8, 8}), seed = device.Upload(ones, {8, 8});
  const TensorView half_seed = device.Upload(std::vector<double>(32, 1.0), {8, 4});
  Tape tape(device.device());
  ExecContext ctx = device.ctx(&tape);
  const Var x = tape.Input(value, true);
  const std::vector<Var> out =
      Recompute(ctx, {&x, 1}, false, [](ExecContext& inner, absl::Span<const Var> in) {
        std::vector<Var> parts = SplitColumns(inner, Add(inner, in[0], in[0]), {4, 4});
        parts.push_back(in[0]);
        return parts;
      });
  tape.EndForward(out);
  EXPECT_EQ(device.ReadDoubles(out[1].value), std::vector<double>(32, 2.0));
  ExecContext back = device.ctx();
  tape.Backward(back, {{out[1], half_seed}, {out[2], seed}});
  std::vector<double> expected;
  for (int i = 0; i < 64; ++i) expected.push_back(i % 8 < 4 ? 1.0 : 3.0);
  EXPECT_EQ(device.ReadDoubles(tape.GradOf(x)), expected);
  EXPECT_EQ(device.ReadDoubles(seed), ones);
}

TEST_P(RecomputeTest, WithoutATapeItIsTheFunction) {
  TestDevice device(GetParam(), {.reserved_bytes = int64_t{1} << 28});
  ExecContext ctx = device.ctx();
  const Var x{.value = device.Upload(std::vector<double>{1.0, 2.0}, {1, 2})};
  int calls = 0;
  const std::vector<Var> out =
      Recompute(ctx, {&x, 1}, true, [&calls](ExecContext& inner, absl::Span<const Var> in) {
        ++calls;
        return std::vector<Var>{Add(inner, in[0], in[0])};
      });
  EXPECT_EQ(device.ReadDoubles(out[0].value), (std::vector<double>{2.0, 4.0}));
  EXPECT_EQ(calls, 1);
}

TEST(AnyTrainsTest, WeightsTheirAdaptersAndNone) {
  double memory = 0;
  const TensorView view = TensorView::Dense(&memory, DType::kFloat64, DeviceKind::kCpu, {1, 1});
  const Weight frozen{view, {}}, trained{view, view};
  const LoraAdapter frozen_adapter{.a = frozen, .b = frozen}, adapter{.a = frozen, .b = trained};
  const Weight adapted{view, {}, &adapter}, not_adapted{view, {}, &frozen_adapter};
  EXPECT_FALSE(AnyTrains({}));
  EXPECT_FALSE(AnyTrains({nullptr, &frozen, &not_adapted}));
  EXPECT_TRUE(AnyTrains({nullptr, &frozen, &trained}));
  EXPECT_TRUE(AnyTrains({&adapted}));
}

INSTANTIATE_TEST_SUITE_P(Devices, RecomputeTest, testing::TestDevices(), testing::DeviceName);

}  // namespace
}  // namespace omni
