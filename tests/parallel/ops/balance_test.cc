// Router losses of sequences that lie on several ranks against those on one.
#include "parallel/ops/balance.h"

#include "parallel/ops/row_exchange.h"
#include "tests/parallel/ops/op_ranks.h"

namespace omni::parallel {
namespace {

constexpr int64_t kExperts = 5, kLayers = 2;

struct Found {
  Values balance, z;                 // this rank's shares
  std::vector<Values> grads;         // of the logits of each layer, [T, E]
  std::vector<int32_t> token_order;  // which tokens the rows are
};

struct Problem {
  std::vector<int64_t> lengths;  // of sequences
  // [rank][sequence]: how many of its tokens are there, ranks after each other.
  std::vector<std::vector<int64_t>> held;
  std::vector<Values> logits;  // by layer, [T, E]

  Problem(std::vector<std::vector<int64_t>> by_rank, DType dtype) : held(std::move(by_rank)) {
    lengths.assign(held[0].size(), 0);
    for (const auto& of_rank : held)
      for (size_t s = 0; s < lengths.size(); ++s) lengths[s] += of_rank[s];
    for (int64_t layer = 0; layer < kLayers; ++layer)
      logits.push_back(Held(Random(SumOf(lengths) * kExperts, 41 + layer), dtype));
  }
  std::vector<int32_t> Tokens(int32_t rank) const {
    std::vector<int32_t> tokens;
    int64_t begin = 0;
    for (size_t s = 0; s < lengths.size(); ++s) {
      int64_t first = begin;
      for (int32_t before = 0; before < rank; ++before) first += held[before][s];
      for (int64_t i = 0; i < held[rank][s]; ++i) tokens.push_back(static_cast<int32_t>(first + i));
      begin += lengths[s];
    }
    return tokens;
  }
  std::vector<int32_t> Cu(int32_t rank) const {
    std::vector<int32_t> cu = {0};
    for (const int64_t count : held[rank]) cu.push_back(cu.back() + static_cast<int32_t>(count));
    return cu;
  }
};

Found RunLosses(const Problem& p, BalanceSets sets, OpRank& rank) {
  const int32_t r = rank.group.rank();
  Found found{.token_order = p.Tokens(r)};
  const auto tokens = static_cast<int64_t>(found.token_order.size());
  std::vector<Var> logits;
  std::vector<Routing> layers;
  for (const Values& of_layer : p.logits) {
    Values own;
    for (const int32_t t : found.token_order)
      for (int64_t e = 0; e < kExperts; ++e) own.push_back(of_layer[t * kExperts + e]);
    logits.push_back(rank.WideInput(own, {tokens, kExperts}));
    layers.push_back(MoeRoute(rank.ctx, logits.back(), {.top_k = 2}));
  }
  const Var balance = BalanceLoss(rank.ctx, layers, p.Cu(r), p.lengths, sets, 0.7, rank.group);
  const Var z = RouterZLoss(rank.ctx, layers, 0.2);
  rank.Backward({Tape::RootGrad{balance, rank.UploadWide({1.3}, {1})},
                 Tape::RootGrad{z, rank.UploadWide({0.4}, {1})}});
  found.balance = rank.Read(balance.value);
  found.z = rank.Read(z.value);
  for (const Var& x : logits) found.grads.push_back(rank.GradOf(x));
  return found;
}

void ExpectLosses(const RankSetup& setup, const Problem& problem, double tolerance) {
  Problem whole = problem;
  whole.held = {problem.lengths};
  for (const BalanceSets sets : {BalanceSets::kSequences, BalanceSets::kPooled}) {
    const auto run = [sets](const Problem& p) {
      return [&p, sets](OpRank& rank) { return RunLosses(p, sets, rank); };
    };
    const Found one = OnRanks<Found>({.size = 1, .dtype = setup.dtype}, run(whole))[0];
    const std::vector<Found> parts = OnRanks<Found>(setup, run(problem));
    Values balance = {0.0}, z = {0.0};
    for (const Found& part : parts) {
      balance[0] += part.balance[0];
      z[0] += part.z[0];
      for (int64_t layer = 0; layer < kLayers; ++layer) {
        Values expected;
        for (const int32_t t : part.token_order)
          for (int64_t e = 0; e < kExperts; ++e)
            expected.push_back(one.grads[layer][t * kExperts + e]);
        ExpectClose(part.grads[layer], expected, tolerance, "gradient");
      }
    }
    ExpectClose(balance, one.balance, tolerance, "balance loss");
    ExpectClose(z, one.z, tolerance, "z-loss");
  }
}

TEST(BalanceTest, SharesAddUpAndGradientsAreThoseOfOneRank) {
  for (const auto& held : std::vector<std::vector<std::vector<int64_t>>>{
           {{3, 1, 4}},                                 // one rank
           {{2, 3}, {2, 3}},                            // even
           {{0, 5, 1}, {4, 0, 2}},                      // whole sequences elsewhere
           {{1, 2, 0, 3}, {0, 0, 0, 0}, {5, 1, 0, 2}},  // a rank and a sequence without tokens
           {{2}, {1}, {3}, {1}, {0}},                   // one sequence over five
           {{0, 0}, {0, 0}}}) {                         // nothing at all
    SCOPED_TRACE(::testing::PrintToString(held));
    ExpectLosses({.size = static_cast<int32_t>(held.size())}, Problem(held, DType::kFloat64),
                 1e-13);
  }
}

TEST(BalanceTest, InFp32OverTcpAndOnStreams) {
  const std::vector<std::vector<int64_t>> held = {{1, 2, 0, 3}, {0, 0, 0, 0}, {5, 1, 0, 2}};
  ExpectLosses({.size = 3, .dtype = DType::kFloat32}, Problem(held, DType::kFloat32), 1e-5);
  for (int repeat = 0; repeat < 5; ++repeat) {
    ExpectLosses({.size = 3, .engine = "tcp"}, Problem(held, DType::kFloat64), 1e-13);
    ExpectLosses({.size = 3, .device = DeviceKind::kCpuAsync}, Problem(held, DType::kFloat64),
                 1e-13);
  }
}

TEST(BalanceDeathTest, NoMoreTokensHereThanThereAre) {
  Problem problem({{2, 3}, {2, 3}}, DType::kFloat64);
  problem.lengths = {1, 9};
  EXPECT_DEATH(OnRanks<Found>(
                   {.size = 2},
                   [&](OpRank& rank) { return RunLosses(problem, BalanceSets::kSequences, rank); }),
               "2 vs 1");
}

}  // namespace
}  // namespace omni::parallel
