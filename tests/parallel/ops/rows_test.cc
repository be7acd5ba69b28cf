// Rows gathered and scattered over groups: values, gradients, and what is summed in which type.
#include "parallel/ops/rows.h"

#include "parallel/ops/row_exchange.h"
#include "tests/parallel/ops/op_ranks.h"

namespace omni::parallel {
namespace {

// What one rank found.
struct Found {
  Values y, grad_x;
};

struct Problem {
  std::vector<int64_t> counts;
  int64_t width = 5;           // elements of a row
  Values rows;                 // [T, width], all ranks' rows
  std::vector<Values> wholes;  // by rank, [T, width]: a contribution to every row

  Problem(std::vector<int64_t> rank_counts, DType dtype) : counts(std::move(rank_counts)) {
    rows = Held(Random(total() * width, 7), dtype);
    for (size_t rank = 0; rank < counts.size(); ++rank)
      wholes.push_back(Held(Random(total() * width, 100 + rank), dtype));
  }
  int64_t total() const { return SumOf(counts); }
  int64_t first(int32_t rank) const { return SumOf(absl::MakeConstSpan(counts).first(rank)); }
  Values Own(const Values& all, int32_t rank) const {
    return RowsOf(all, first(rank), counts[rank], width);
  }
  // Added in rank order, and rounded once.
  Values Sum(DType dtype) const {
    Values sum(total() * width, 0.0);
    for (const Values& whole : wholes)
      for (size_t i = 0; i < sum.size(); ++i)
        sum[i] = dtype == DType::kFloat64
                     ? sum[i] + whole[i]
                     : static_cast<float>(sum[i]) + static_cast<float>(whole[i]);
    return Held(sum, dtype);
  }
};

void ExpectGather(const RankSetup& setup, const Problem& problem, bool strided) {
  const auto found = OnRanks<Found>(setup, [&](OpRank& rank) {
    const int32_t r = rank.group.rank();
    const Var x = rank.Input(problem.Own(problem.rows, r), {problem.counts[r], 5}, strided);
    const Var y = AllGatherRows(rank.ctx, x, rank.group, problem.counts);
    const Values& grad = problem.wholes[r];
    rank.Backward(y, strided ? rank.UploadStrided(grad, {problem.total(), 5})
                             : rank.Upload(grad, {problem.total(), 5}));
    return Found{rank.Read(y.value), rank.GradOf(x)};
  });
  const Values sum = problem.Sum(setup.dtype);
  for (int32_t r = 0; r < setup.size; ++r) {
    ExpectClose(found[r].y, problem.rows, 0.0, "rows");
    ExpectClose(found[r].grad_x, problem.Own(sum, r), 1e-15, "gradient");
  }
}

void ExpectScatter(const RankSetup& setup, const Problem& problem, bool strided) {
  const auto found = OnRanks<Found>(setup, [&](OpRank& rank) {
    const int32_t r = rank.group.rank();
    const Var x = rank.Input(problem.wholes[r], {problem.total(), 5}, strided);
    const Var y = ReduceScatterRows(rank.ctx, x, rank.group, problem.counts);
    const Values grad = problem.Own(problem.rows, r);
    rank.Backward(y, strided ? rank.UploadStrided(grad, {problem.counts[r], 5})
                             : rank.Upload(grad, {problem.counts[r], 5}));
    return Found{rank.Read(y.value), rank.GradOf(x)};
  });
  const Values sum = problem.Sum(setup.dtype);
  for (int32_t r = 0; r < setup.size; ++r) {
    ExpectClose(found[r].y, problem.Own(sum, r), 1e-15, "sums");
    ExpectClose(found[r].grad_x, problem.rows, 0.0, "gradient");
  }
}

TEST(RowsTest, GatherAndScatterAreEachOthersTranspose) {
  for (const int32_t size : {1, 2, 3, 4, 5})
    for (const auto& counts : CountCases(size))
      for (const bool strided : {false, true}) {
        SCOPED_TRACE(::testing::PrintToString(counts));
        const Problem problem(counts, DType::kFloat64);
        ExpectGather({.size = size}, problem, strided);
        ExpectScatter({.size = size}, problem, strided);
      }
}

TEST(RowsTest, LowerPrecisionIsSummedInFp32AndRoundedOnce) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    const Problem problem({2, 0, 3}, dtype);
    ExpectGather({.size = 3, .dtype = dtype}, problem, true);
    ExpectScatter({.size = 3, .dtype = dtype}, problem, true);
  }
}

TEST(RowsTest, OverTcpAndOnStreams) {
  for (const RankSetup& setup : {RankSetup{.size = 3, .engine = "tcp"},
                                 RankSetup{.size = 3, .device = DeviceKind::kCpuAsync}}) {
    const Problem problem({2, 0, 3}, DType::kFloat64);
    for (int repeat = 0; repeat < 5; ++repeat) {
      ExpectGather(setup, problem, true);
      ExpectScatter(setup, problem, true);
    }
  }
}

TEST(RowsTest, RowsMayHaveAnyShape) {
  const std::vector<int64_t> counts = {1, 2};
  const Values all = Random(3 * 2 * 4, 3);
  const auto found = OnRanks<Values>({.size = 2}, [&](OpRank& rank) {
    const int32_t r = rank.group.rank();
    const Var x = rank.Input(RowsOf(all, r, counts[r], 8), {counts[r], 2, 4}, true);
    const Var y = AllGatherRows(rank.ctx, x, rank.group, counts);
    EXPECT_EQ(y.value.DebugString(), "fp64[3, 2, 4]");
    return rank.Read(y.value);
  });
  for (const Values& values : found) ExpectClose(values, all, 0.0, "rows");
}

TEST(RowsTest, AGroupOfOneGivesBackItsInput) {
  OnRanks<int>({.size = 1}, [&](OpRank& rank) {
    const Var x = rank.Input(Random(6, 1), {2, 3});
    for (const Var& y : {AllGatherRows(rank.ctx, x, rank.group, {2}),
                         ReduceScatterRows(rank.ctx, x, rank.group, {2})}) {
      EXPECT_EQ(y.value.data, x.value.data);
      EXPECT_EQ(y.slot, x.slot);
    }
    return 0;
  });
}

TEST(RowsDeathTest, CountsMustFit) {
  const auto run = [](const std::vector<int64_t>& counts, int64_t rows) {
    OnRanks<int>({.size = 2}, [&](OpRank& rank) {
      AllGatherRows(rank.ctx, rank.Input(Random(rows, 1), {rows, 1}), rank.group, counts);
      return 0;
    });
  };
  EXPECT_DEATH(run({2}, 2), "1 vs 2");
  EXPECT_DEATH(run({2, 2}, 3), "3 vs 2");
}

}  // namespace
}  // namespace omni::parallel
