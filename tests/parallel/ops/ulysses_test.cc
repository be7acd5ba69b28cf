// Rows to heads and back, with as many heads as ranks, more, and fewer.
#include "parallel/ops/ulysses.h"

#include "parallel/ops/row_exchange.h"
#include "tests/parallel/ops/op_ranks.h"

namespace omni::parallel {
namespace {

constexpr int64_t kDim = 3;

struct Found {
  Values heads, rows, grad_rows, grad_heads;
};

struct Problem {
  std::vector<int64_t> counts;
  int64_t num_heads;
  Values x;                   // [T, N, D]
  std::vector<Values> grads;  // by rank, [T, n, D]

  int64_t size() const { return static_cast<int64_t>(counts.size()); }
  int64_t local_heads() const { return num_heads >= size() ? num_heads / size() : 1; }
  int64_t total() const { return SumOf(counts); }
  int64_t first_row(int64_t rank) const { return SumOf(absl::MakeConstSpan(counts).first(rank)); }
  int64_t first_head(int64_t rank) const {
    return num_heads >= size() ? rank * local_heads() : rank / (size() / num_heads);
  }

  Problem(std::vector<int64_t> rank_counts, int64_t heads, DType dtype)
      : counts(std::move(rank_counts)), num_heads(heads) {
    x = Held(Random(total() * num_heads * kDim, 11), dtype);
    for (int64_t rank = 0; rank < size(); ++rank)
      grads.push_back(Held(Random(total() * local_heads() * kDim, 50 + rank), dtype));
  }
  Values OwnRows(const Values& all, int64_t rank) const {
    return RowsOf(all, first_row(rank), counts[rank], num_heads * kDim);
  }
  // [T, n, D] of the heads of `rank`.
  Values OwnHeads(const Values& all, int64_t rank) const {
    Values own;
    for (int64_t t = 0; t < total(); ++t)
      for (int64_t i = 0; i < local_heads() * kDim; ++i)
        own.push_back(all[(t * num_heads + first_head(rank)) * kDim + i]);
    return own;
  }
  // The gradients of all ranks put together, [T, N, D]; those of copies summed in rank order.
  Values AllGrads(DType dtype) const {
    Values all(total() * num_heads * kDim, 0.0);
    for (int64_t rank = 0; rank < size(); ++rank)
      for (int64_t t = 0; t < total(); ++t)
        for (int64_t i = 0; i < local_heads() * kDim; ++i) {
          double& to = all[(t * num_heads + first_head(rank)) * kDim + i];
          to += grads[rank][t * local_heads() * kDim + i];
          if (dtype != DType::kFloat64) to = static_cast<float>(to);
        }
    return Held(all, dtype);
  }
};

void ExpectExchange(const RankSetup& setup, const Problem& p, bool strided) {
  const bool inverse_too = p.num_heads >= setup.size;
  const auto found = OnRanks<Found>(setup, [&](OpRank& rank) {
    const int32_t r = rank.group.rank();
    const int64_t rows = p.counts[r], n = p.local_heads();
    const Values own = p.OwnRows(p.x, r);
    const Var x_LND = rank.Input(own, {rows, p.num_heads, kDim}, strided);
    const Var heads = RowsToHeads(rank.ctx, x_LND, rank.group, p.counts);
    Var x_TND, back;
    std::vector<Tape::RootGrad> roots;
    const auto upload = [&](const Values& values, std::initializer_list<int64_t> sizes) {
      return strided ? rank.UploadStrided(values, sizes) : rank.Upload(values, sizes);
    };
    roots.push_back({heads, upload(p.grads[r], {p.total(), n, kDim})});
    if (inverse_too) {
      x_TND = rank.Input(p.OwnHeads(p.x, r), {p.total(), n, kDim}, strided);
      back = HeadsToRows(rank.ctx, x_TND, rank.group, p.counts);
      roots.push_back({back, upload(own, {rows, p.num_heads, kDim})});
    }
    rank.Backward(roots);
    return Found{rank.Read(heads.value), rank.Read(back.value), rank.GradOf(x_LND),
                 inverse_too ? rank.GradOf(x_TND) : Values{}};
  });
  const Values all_grads = p.AllGrads(setup.dtype);
  for (int32_t r = 0; r < setup.size; ++r) {
    ExpectClose(found[r].heads, p.OwnHeads(p.x, r), 0.0, "heads");
    ExpectClose(found[r].grad_rows, p.OwnRows(all_grads, r), 1e-15, "gradient of rows");
    if (!inverse_too) continue;
    ExpectClose(found[r].rows, p.OwnRows(p.x, r), 0.0, "rows");
    ExpectClose(found[r].grad_heads, p.OwnHeads(p.x, r), 0.0, "gradient of heads");
  }
}

TEST(UlyssesTest, RowsToHeadsAndBack) {
  for (const int32_t size : {1, 2, 3, 4, 5})
    for (const int64_t per_rank : {1, 3})
      for (const auto& counts : CountCases(size))
        for (const bool strided : {false, true}) {
          SCOPED_TRACE(::testing::PrintToString(counts));
          ExpectExchange({.size = size}, Problem(counts, per_rank * size, DType::kFloat64),
                         strided);
        }
}

TEST(UlyssesTest, FewerHeadsThanRanksAreCopiedAndTheirGradientsSummed) {
  for (const auto& [size, heads] : {std::pair{2, 1}, {3, 1}, {4, 2}, {4, 1}, {6, 2}, {6, 3}})
    for (const auto& counts : CountCases(size)) {
      SCOPED_TRACE(::testing::PrintToString(counts));
      ExpectExchange({.size = size}, Problem(counts, heads, DType::kFloat64), true);
    }
}

TEST(UlyssesTest, LowerPrecision) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16})
    for (const int64_t heads : {8, 1})
      ExpectExchange({.size = 4, .dtype = dtype}, Problem({2, 0, 3, 1}, heads, dtype), true);
}

TEST(UlyssesTest, OverTcpAndOnStreams) {
  for (const RankSetup& setup : {RankSetup{.size = 4, .engine = "tcp"},
                                 RankSetup{.size = 4, .device = DeviceKind::kCpuAsync}})
    for (const int64_t heads : {8, 2})
      for (int repeat = 0; repeat < 5; ++repeat)
        ExpectExchange(setup, Problem({2, 0, 3, 1}, heads, DType::kFloat64), true);
}

TEST(UlyssesTest, AGroupOfOneGivesBackItsInput) {
  OnRanks<int>({.size = 1}, [&](OpRank& rank) {
    const Var x = rank.Input(Random(6, 1), {1, 2, 3});
    for (const Var& y :
         {RowsToHeads(rank.ctx, x, rank.group, {1}), HeadsToRows(rank.ctx, x, rank.group, {1})}) {
      EXPECT_EQ(y.value.data, x.value.data);
      EXPECT_EQ(y.slot, x.slot);
    }
    return 0;
  });
}

TEST(UlyssesDeathTest, HeadsMustDivide) {
  const auto run = [](int32_t size, int64_t heads) {
    OnRanks<int>({.size = size}, [&](OpRank& rank) {
      const std::vector<int64_t> counts(size, 1);
      RowsToHeads(rank.ctx, rank.Input(Random(heads, 1), {1, heads, 1}), rank.group, counts);
      return 0;
    });
  };
  EXPECT_DEATH(run(2, 3), "1 vs 0");
  EXPECT_DEATH(run(3, 2), "1 vs 0");
}

}  // namespace
}  // namespace omni::parallel
