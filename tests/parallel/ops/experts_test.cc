// Experts over ranks against all experts on one.
#include "parallel/ops/experts.h"

#include "parallel/ops/row_exchange.h"
#include "runtime/ops/grouped_linear.h"
#include "tests/parallel/ops/op_ranks.h"

namespace omni::parallel {
namespace {

struct Found {
  Values rows, y;  // what the experts got; the result
  std::vector<int64_t> expert_counts;
  Values grad_x, grad_gates, grad_weight;
};

struct Problem {
  std::vector<int64_t> counts;  // tokens by rank
  int64_t num_experts, top_k, width = 4, outs = 3;
  std::vector<int32_t> experts;  // [T, K]
  Values x, gates, weight, grad_y;

  // `spread` 0: all tokens to the first experts; 1: over all but expert 2.
  Problem(std::vector<int64_t> rank_counts, int64_t expert_count, int64_t k, bool spread,
          DType dtype)
      : counts(std::move(rank_counts)), num_experts(expert_count), top_k(k) {
    for (int64_t t = 0; t < tokens(); ++t)
      for (int64_t i = 0; i < top_k; ++i) {
        int64_t e = spread ? (t * t * 5 + i * 3 + t) % num_experts : i;
        if (e == 2 && num_experts > 3) e = 3;
        experts.push_back(static_cast<int32_t>(e));
      }
    x = Held(Random(tokens() * width, 31), dtype);
    gates = Random(tokens() * top_k, 32);
    weight = Held(Random(num_experts * outs * width, 33), dtype);
    grad_y = Held(Random(tokens() * outs, 34), dtype);
  }
  int64_t tokens() const { return SumOf(counts); }
};

// A layer of one linear map an expert, on this rank's tokens and experts.
Found RunLayer(const Problem& p, OpRank& rank) {
  const int64_t r = rank.group.rank(), first = SumOf(absl::MakeConstSpan(p.counts).first(r));
  const int64_t tokens = p.counts[r], local = p.num_experts / rank.group.size();
  const Weight weight = rank.MakeWeight(RowsOf(p.weight, r * local, local, p.outs * p.width),
                                        {local, p.outs, p.width});
  const Var x = rank.Input(RowsOf(p.x, first, tokens, p.width), {tokens, p.width});
  const Var gates = rank.WideInput(RowsOf(p.gates, first, tokens, p.top_k), {tokens, p.top_k});
  const std::vector<int32_t> experts(p.experts.begin() + first * p.top_k,
                                     p.experts.begin() + (first + tokens) * p.top_k);
  ExecContext& ctx = rank.ctx;
  const ExpertOrder order =
      MoeSort(ctx, UploadNew<int32_t>(ctx, experts, {tokens, p.top_k}), p.num_experts);
  const ExpertExchange exchange = ExchangeExperts(ctx, order, rank.group);
  EXPECT_FALSE(exchange.failed);
  const Var rows = DispatchRows(ctx, MoePermute(ctx, x, order), exchange);
  EXPECT_EQ(rows.value.size(0), exchange.num_rows);
  Found found{.rows = rank.Read(rows.value)};
  const Values offsets = rank.Read(exchange.offsets_E1);
  for (int64_t e = 0; e < local; ++e)
    found.expert_counts.push_back(static_cast<int64_t>(offsets[e + 1] - offsets[e]));
  const Var outs =
      CombineRows(ctx, GroupedLinear(ctx, rows, weight, exchange.offsets_E1), exchange);
  const Var y = MoeUnpermute(ctx, outs, gates, order);
  rank.Backward(y, rank.UploadStrided(RowsOf(p.grad_y, first, tokens, p.outs), {tokens, p.outs}));
  found.y = rank.Read(y.value);
  found.grad_x = rank.GradOf(x);
  found.grad_gates = rank.GradOf(gates);
  found.grad_weight = rank.Read(weight.grad);
  return found;
}

Found Joined(const std::vector<Found>& parts) {
  Found all;
  const auto append = [](const auto& from, auto* to) {
    to->insert(to->end(), from.begin(), from.end());
  };
  for (const Found& part : parts) {
    append(part.rows, &all.rows);
    append(part.y, &all.y);
    append(part.expert_counts, &all.expert_counts);
    append(part.grad_x, &all.grad_x);
    append(part.grad_gates, &all.grad_gates);
    append(part.grad_weight, &all.grad_weight);
  }
  return all;
}

void ExpectLayer(const RankSetup& setup, const Problem& problem, double tolerance) {
  Problem whole = problem;
  whole.counts = {problem.tokens()};
  const auto run = [](const Problem& p) {
    return [&p](OpRank& rank) { return RunLayer(p, rank); };
  };
  const Found one = OnRanks<Found>({.size = 1, .dtype = setup.dtype}, run(whole))[0];
  const Found all = Joined(OnRanks<Found>(setup, run(problem)));
  EXPECT_EQ(all.expert_counts, one.expert_counts);
  ExpectClose(all.rows, one.rows, 0.0, "rows of experts");  // in the order of one rank
  ExpectClose(all.y, one.y, tolerance, "result");
  ExpectClose(all.grad_x, one.grad_x, tolerance, "gradient of x");
  ExpectClose(all.grad_gates, one.grad_gates, tolerance, "gradient of the gates");
  ExpectClose(all.grad_weight, one.grad_weight, tolerance, "gradient of the experts");
}

TEST(ExpertsTest, ALayerIsThatOfOneRank) {
  for (const int32_t size : {1, 2, 3, 4, 5})
    for (const int64_t per_rank : {1, 3})
      for (const auto& counts : CountCases(size))
        for (const bool spread : {false, true}) {
          SCOPED_TRACE(::testing::PrintToString(counts));
          const int64_t experts = per_rank * size;
          for (const int64_t top_k : {int64_t{1}, std::min<int64_t>(3, experts)})
            ExpectLayer({.size = size}, Problem(counts, experts, top_k, spread, DType::kFloat64),
                        1e-14);
        }
}

TEST(ExpertsTest, LowerPrecision) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16})
    ExpectLayer({.size = 3, .dtype = dtype}, Problem({4, 0, 5}, 6, 2, true, dtype),
                dtype == DType::kFloat32 ? 1e-6 : 1e-2);
}

TEST(ExpertsTest, OverTcpAndOnStreams) {
  for (const RankSetup& setup : {RankSetup{.size = 3, .engine = "tcp"},
                                 RankSetup{.size = 3, .device = DeviceKind::kCpuAsync}})
    for (int repeat = 0; repeat < 5; ++repeat)
      ExpectLayer(setup, Problem({4, 0, 5}, 6, 2, true, DType::kFloat64), 1e-14);
}

// Counts that never arrived: no rows, no crash, and shapes that the ops around accept.
TEST(ExpertsTest, ADeadCommunicatorMovesNothing) {
  for (const DeviceKind kind : {DeviceKind::kCpu, DeviceKind::kCpuAsync}) {
    const absl::Status status = test::RunRanks(2, "shm", [&](Communicator& comm, int32_t) {
      OpRank rank({.size = 2, .device = kind}, comm);
      comm.Abort("the test");
      ExecContext& ctx = rank.ctx;
      const Var x = rank.Input(Random(6, 1), {3, 2});
      const ExpertOrder order =
          MoeSort(ctx, UploadNew<int32_t>(ctx, std::vector<int32_t>{3, 0, 2}, {3, 1}), 4);
      const ExpertExchange exchange = ExchangeExperts(ctx, order, rank.group);
      EXPECT_TRUE(exchange.failed);
      EXPECT_EQ(exchange.num_rows, 0);
      EXPECT_EQ(rank.Read(exchange.offsets_E1), (Values{0, 0, 0}));
      const Var rows = DispatchRows(ctx, MoePermute(ctx, x, order), exchange);
      EXPECT_EQ(rows.value.DebugString(), "fp64[0, 2]");
      const Var back = CombineRows(ctx, rows, exchange);
      rank.Backward(back, rank.Upload(Random(6, 2), {3, 2}));
      EXPECT_EQ(rank.Read(back.value), Values(6, 0.0));
      EXPECT_EQ(rank.GradOf(x), Values(6, 0.0));
      return absl::OkStatus();
    });
    EXPECT_TRUE(status.ok()) << status;
  }
}

TEST(ExpertsDeathTest, RanksMustDivideTheExperts) {
  EXPECT_DEATH(OnRanks<Found>({.size = 2},
                              [](OpRank& rank) {
                                return RunLayer(Problem({1, 1}, 3, 1, true, DType::kFloat64), rank);
                              }),
               "1 vs 0");
}

}  // namespace
}  // namespace omni::parallel
