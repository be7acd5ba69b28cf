// Ranks as threads, each with a device, a tape and a group: what tests of collective ops run on.
//
//   const auto results = OnRanks<Values>({.size = 3}, [&](OpRank& rank) {
//     const Var x = rank.Input(values, {2, 4});
//     const Var y = AllGatherRows(rank.ctx, x, rank.group, counts);
//     rank.Backward(y, grads);
//     return rank.GradOf(x);
//   });
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "parallel/group.h"
#include "runtime/base/rng.h"
#include "runtime/device/args/elementwise.h"
#include "runtime/ops/tape.h"
#include "tests/support/run_ranks.h"
#include "tests/support/test_device.h"

namespace omni::parallel {

using Values = std::vector<double>;

struct RankSetup {
  int32_t size = 1;
  DType dtype = DType::kFloat64;
  DeviceKind device = DeviceKind::kCpu;
  std::string engine = "shm";
};

class OpRank {
 public:
  OpRank(const RankSetup& setup, Communicator& comm)
      : device_(setup.device, {.num_threads = 1, .delay_seed = uint64_t(comm.rank()) + 1}),
        dtype_(setup.dtype),
        tape_(device_.device()),
        eval_ctx_(device_.ctx()),
        ctx(device_.ctx(&tape_)),
        group{.comm = setup.size == 1 ? nullptr : &device_.Reach(comm)} {}

  // Records nothing.
  ExecContext& EvalCtx() { return eval_ctx_; }
  DType dtype() const { return dtype_; }
  // Of weight gradients, statistics and losses.
  DType wide() const { return dtype_ == DType::kFloat64 ? dtype_ : DType::kFloat32; }

  TensorView Upload(const Values& values, std::initializer_list<int64_t> sizes) {
    return device_.UploadAs(dtype_, values, sizes, device_.arena());
  }
  TensorView UploadWide(const Values& values, std::initializer_list<int64_t> sizes) {
    return device_.UploadAs(wide(), values, sizes, device_.arena());
  }
  // The same contents, each row followed by a gap.
  TensorView UploadStrided(const Values& values, std::initializer_list<int64_t> sizes) {
    const TensorView dense = Upload(values, sizes);
    std::vector<int64_t> wide(sizes);
    wide.back() += 3;
    const TensorView padded = eval_ctx_.New(dtype_, wide);
    Launch(eval_ctx_, OpId::kFill, dtype_, FillArgs{padded, 99.0});
    const TensorView strided = padded.Columns(2, *(sizes.end() - 1));
    Launch(eval_ctx_, OpId::kCopyCast, dtype_, CopyCastArgs{.in = dense, .out = strided});
    return strided;
  }
  Var Input(const Values& values, std::initializer_list<int64_t> sizes, bool strided = false) {
    return tape_.Input(strided ? UploadStrided(values, sizes) : Upload(values, sizes), true);
  }
  // In the dtype of routers.
  Var WideInput(const Values& values, std::initializer_list<int64_t> sizes) {
    return tape_.Input(UploadWide(values, sizes), true);
  }
  // With a gradient that starts at 0.
  Weight MakeWeight(const Values& values, std::initializer_list<int64_t> sizes) {
    return {.value = Upload(values, sizes), .grad = UploadWide(Values(values.size(), 0.0), sizes)};
  }

  // The roots' values can still be read afterwards.
  void Backward(absl::Span<const Tape::RootGrad> roots) {
    std::vector<Var> outputs;
    for (const Tape::RootGrad& root : roots) outputs.push_back(root.output);
    tape_.EndForward(outputs);
    tape_.Backward(eval_ctx_, roots);
  }
  void Backward(const Var& output, const TensorView& grad) {
    Backward({Tape::RootGrad{output, grad}});
  }
  void BackwardOfLoss(const Var& loss, double grad) { Backward(loss, UploadWide({grad}, {1})); }
  Values GradOf(const Var& input) { return Read(tape_.GradOf(input)); }
  Values Read(const TensorView& view) {
    return view.empty() ? Values{} : device_.ReadDoubles(view);
  }
  // Everything recorded is forgotten; all the tape's memory must then be returned.
  int64_t BytesAfterReset() {
    tape_.Reset();
    device_.arena().Release();
    return device_.used_bytes();
  }

 private:
  testing::TestDevice device_;
  DType dtype_;
  Tape tape_;
  ExecContext eval_ctx_;

 public:
  ExecContext ctx;  // records
  const Group group;

  Tape& tape() { return tape_; }
};

// What `body` returned on each rank; all must end well and leave the communicator so.
template <typename Result>
std::vector<Result> OnRanks(const RankSetup& setup, const std::function<Result(OpRank&)>& body) {
  std::vector<Result> results(setup.size);
  const absl::Status status =
      test::RunRanks(setup.size, setup.engine, [&](Communicator& comm, int32_t index) {
        OpRank rank(setup, comm);
        results[index] = body(rank);
        EXPECT_EQ(rank.BytesAfterReset(), 0);
        return comm.status();
      });
  EXPECT_TRUE(status.ok()) << status;
  return results;
}

inline Values Random(int64_t count, uint64_t seed) {
  CounterRng rng(seed, 0);
  Values values(count);
  for (double& value : values) value = rng.NextNormal();
  return values;
}

// Rounded to what a tensor of `dtype` holds, so that both sides start from the same values.
inline Values Held(Values values, DType dtype) {
  for (double& value : values) {
    if (dtype == DType::kFloat32) value = static_cast<float>(value);
    if (dtype == DType::kBFloat16) value = static_cast<float>(BFloat16(static_cast<float>(value)));
  }
  return values;
}

// Rows [first, first + count) of a table `width` wide.
inline Values RowsOf(const Values& values, int64_t first, int64_t count, int64_t width) {
  return {values.begin() + first * width, values.begin() + (first + count) * width};
}

// ||found - expected|| <= tolerance ||expected||; exact if the tolerance is 0.
inline void ExpectClose(const Values& found, const Values& expected, double tolerance,
                        const std::string& what) {
  ASSERT_EQ(found.size(), expected.size()) << what;
  double error = 0, norm = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    error += (found[i] - expected[i]) * (found[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  EXPECT_LE(std::sqrt(error), tolerance * std::sqrt(norm)) << what;
}

// Counts of rows to test with: even, uneven, with empty ranks, all empty.
inline std::vector<std::vector<int64_t>> CountCases(int32_t size) {
  std::vector<int64_t> even(size, 2), uneven, gaps, none(size, 0);
  for (int64_t rank = 0; rank < size; ++rank) {
    uneven.push_back(1 + (rank * 5 + 2) % 4);
    gaps.push_back(rank % 2 == 0 ? 0 : 3);
  }
  return {even, uneven, gaps, none};
}

}  // namespace omni::parallel
