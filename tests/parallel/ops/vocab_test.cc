// Embedding and cross-entropy over a cut vocabulary against the ops of one rank.
#include "parallel/ops/vocab.h"

#include "parallel/ops/row_exchange.h"
#include "runtime/ops/embedding.h"
#include "tests/parallel/ops/op_ranks.h"

namespace omni::parallel {
namespace {

int64_t Before(const std::vector<int64_t>& counts, int32_t rank) {
  return SumOf(absl::MakeConstSpan(counts).first(rank));
}

// What a rank, or the only one, was left with.
struct Found {
  Values y, grad_x, grad_weight;  // y: rows, or losses
  Values argmax, loss;
};

// Ranks' results end to end: rows of hidden, rows of the table.
Found Joined(const std::vector<Found>& parts) {
  Found all = {.loss = {0.0}};
  for (const Found& part : parts) {
    for (const auto& [from, to] : {std::pair{&part.y, &all.y},
                                   {&part.grad_x, &all.grad_x},
                                   {&part.grad_weight, &all.grad_weight},
                                   {&part.argmax, &all.argmax}})
      to->insert(to->end(), from->begin(), from->end());
    if (!part.loss.empty()) all.loss[0] += part.loss[0];
  }
  return all;
}

// A vocabulary over ranks: even, uneven, with nothing for some.
std::vector<std::vector<int64_t>> VocabCases(int32_t size) {
  std::vector<int64_t> even(size, 4), uneven, gaps;
  for (int64_t rank = 0; rank < size; ++rank) {
    uneven.push_back(2 + (rank * 7 + 3) % 5);
    gaps.push_back(rank % 2 == (size > 1) ? 9 : 0);
  }
  return {even, uneven, gaps};
}

struct Problem {
  std::vector<int64_t> counts, vocab;  // by rank
  int64_t width;
  std::vector<int32_t> ids, targets;
  Values hidden, weight, grad_rows;
  double scale = 0.3, grad_loss = 1.7;

  Problem(std::vector<int64_t> rank_counts, std::vector<int64_t> rank_vocab, DType dtype,
          int64_t hidden_width = 6)
      : counts(std::move(rank_counts)), vocab(std::move(rank_vocab)), width(hidden_width) {
    for (int64_t t = 0; t < tokens(); ++t) {
      ids.push_back(static_cast<int32_t>((t * t * 3 + 1) % classes()));
      targets.push_back(t % 4 == 2 ? -1 : static_cast<int32_t>((t * 5 + 2) % classes()));
    }
    hidden = Held(Random(tokens() * width, 21), dtype);
    weight = Held(Random(classes() * width, 22), dtype);
    grad_rows = Held(Random(tokens() * width, 23), dtype);
  }
  int64_t tokens() const { return SumOf(counts); }
  int64_t classes() const { return SumOf(vocab); }
};

// One rank of the group: its rows and its part of the vocabulary.
class Shard {
 public:
  Shard(const Problem& problem, OpRank& rank)
      : p_(problem),
        rank_(rank),
        first_(Before(p_.counts, rank.group.rank())),
        rows_(p_.counts[rank.group.rank()]) {
    const int64_t part = p_.vocab[rank.group.rank()];
    range_ = {.begin = Before(p_.vocab, rank.group.rank()), .total = p_.classes()};
    weight_ = rank.MakeWeight(RowsOf(p_.weight, range_.begin, part, p_.width), {part, p_.width});
  }

  Found Embed() {
    const Var y = VocabEmbedding(rank_.ctx, p_.ids, weight_, range_, rank_.group, p_.counts);
    rank_.Backward(
        y, rank_.UploadStrided(RowsOf(p_.grad_rows, first_, rows_, p_.width), {rows_, p_.width}));
    return {.y = rank_.Read(y.value), .grad_weight = rank_.Read(weight_.grad)};
  }
  Found Loss(bool strided) {
    const Var x =
        rank_.Input(RowsOf(p_.hidden, first_, rows_, p_.width), {rows_, p_.width}, strided);
    const CrossEntropyResult result = VocabCrossEntropy(rank_.ctx, x, weight_, range_, p_.targets,
                                                        p_.scale, rank_.group, p_.counts);
    Found found = {.y = rank_.Read(result.losses_T), .argmax = rank_.Read(result.argmax_T)};
    rank_.BackwardOfLoss(result.loss, p_.grad_loss);
    found.loss = rank_.Read(result.loss.value);
    found.grad_x = rank_.GradOf(x);
    found.grad_weight = rank_.Read(weight_.grad);
    return found;
  }

 private:
  const Problem& p_;
  OpRank& rank_;
  const int64_t first_, rows_;
  VocabRange range_;
  Weight weight_;
};

// The same on one rank: the group of one runs the ops of runtime/ops.
Problem Whole(Problem problem) {
  problem.counts = {problem.tokens()};
  problem.vocab = {problem.classes()};
  return problem;
}

void ExpectEmbedding(const RankSetup& setup, const Problem& problem, double tolerance) {
  const auto run = [](const Problem& p) {
    return [&p](OpRank& rank) { return Shard(p, rank).Embed(); };
  };
  const Problem whole = Whole(problem);
  const Found one = OnRanks<Found>({.size = 1, .dtype = setup.dtype}, run(whole))[0];
  const Found all = Joined(OnRanks<Found>(setup, run(problem)));
  ExpectClose(all.y, one.y, 0.0, "rows");
  ExpectClose(all.grad_weight, one.grad_weight, tolerance, "gradient of the table");
}

void ExpectLoss(const RankSetup& setup, const Problem& problem, double tolerance,
                double grad_tolerance, bool strided = true) {
  const auto run = [strided](const Problem& p) {
    return [&p, strided](OpRank& rank) { return Shard(p, rank).Loss(strided); };
  };
  const Problem whole = Whole(problem);
  const Found one = OnRanks<Found>({.size = 1, .dtype = setup.dtype}, run(whole))[0];
  const Found all = Joined(OnRanks<Found>(setup, run(problem)));
  ExpectClose(all.loss, one.loss, tolerance, "loss");
  ExpectClose(all.y, one.y, tolerance, "losses");
  ExpectClose(all.argmax, one.argmax, 0.0, "arg max");
  ExpectClose(all.grad_x, one.grad_x, grad_tolerance, "gradient of hidden");
  ExpectClose(all.grad_weight, one.grad_weight, grad_tolerance, "gradient of the head");
}

TEST(VocabTest, EmbeddingIsThatOfOneRank) {
  for (const int32_t size : {1, 2, 3, 4, 5})
    for (const auto& counts : CountCases(size))
      for (const auto& vocab : VocabCases(size)) {
        SCOPED_TRACE(::testing::PrintToString(std::pair(counts, vocab)));
        ExpectEmbedding({.size = size}, Problem(counts, vocab, DType::kFloat64), 0.0);
      }
}

TEST(VocabTest, CrossEntropyIsThatOfOneRank) {
  for (const int32_t size : {1, 2, 3, 4, 5})
    for (const auto& counts : CountCases(size))
      for (const auto& vocab : VocabCases(size))
        for (const bool strided : {false, true}) {
          SCOPED_TRACE(::testing::PrintToString(std::pair(counts, vocab)));
          ExpectLoss({.size = size}, Problem(counts, vocab, DType::kFloat64), 1e-14, 1e-13,
                     strided);
        }
}

// 64 rows of 2^17 logits a chunk and rank, so two chunks and a bit.
TEST(VocabTest, CrossEntropyOverSeveralChunks) {
  const Problem problem({90, 50}, {1 << 17, 1 << 17}, DType::kFloat64, 3);
  ASSERT_GT(std::count_if(problem.targets.begin(), problem.targets.end(),
                          [](int32_t target) { return target >= 0; }),
            64);
  ExpectLoss({.size = 2}, problem, 1e-14, 1e-12);
}

TEST(VocabTest, LowerPrecision) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    const bool half = dtype == DType::kBFloat16;
    const Problem problem({2, 0, 5, 1}, {3, 7, 0, 5}, dtype);
    ExpectEmbedding({.size = 4, .dtype = dtype}, problem, 0.0);
    // Losses and the head's gradient are fp32 in both; the gradient of hidden is rounded per rank.
    ExpectLoss({.size = 4, .dtype = dtype}, problem, 5e-7, half ? 6e-3 : 1e-6);
  }
}

double Distance(const Values& a, const Values& b) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    error += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(error / norm);
}

// Against fp64 from the same values. What differs from one rank is that each rank's part of the
// gradient of hidden is rounded to bf16 before they are added.
TEST(VocabTest, Bf16OverRanksIsAboutAsExactAsOnOne) {
  Problem problem(std::vector<int64_t>(4, 16), std::vector<int64_t>(4, 250), DType::kBFloat16, 32);
  const Problem whole = Whole(problem);
  const auto run = [](const Problem& p) {
    return [&p](OpRank& rank) { return Shard(p, rank).Loss(false); };
  };
  const Found exact = OnRanks<Found>({.size = 1}, run(whole))[0];
  const Found one = OnRanks<Found>({.size = 1, .dtype = DType::kBFloat16}, run(whole))[0];
  const Found all = Joined(OnRanks<Found>({.size = 4, .dtype = DType::kBFloat16}, run(problem)));
  EXPECT_LE(Distance(all.y, exact.y), 2e-7);
  EXPECT_LE(Distance(all.grad_weight, exact.grad_weight), 5e-7);
  EXPECT_LE(Distance(all.grad_x, exact.grad_x), 1.5 * Distance(one.grad_x, exact.grad_x));
}

TEST(VocabTest, OverTcpAndOnStreams) {
  for (const RankSetup& setup : {RankSetup{.size = 3, .engine = "tcp"},
                                 RankSetup{.size = 3, .device = DeviceKind::kCpuAsync}})
    for (int repeat = 0; repeat < 5; ++repeat) {
      const Problem problem({2, 0, 5}, {3, 7, 2}, DType::kFloat64);
      ExpectEmbedding(setup, problem, 0.0);
      ExpectLoss(setup, problem, 1e-14, 1e-13);
    }
}

TEST(VocabTest, WithoutTargetsEverythingIsZero) {
  Problem problem({2, 1}, {3, 4}, DType::kFloat64);
  problem.targets.assign(3, -1);
  ExpectLoss({.size = 2}, problem, 0.0, 0.0);
}

// Equal logits on different ranks, large ones, and a part of the vocabulary far below the others.
TEST(VocabTest, TiesGoToTheLowestIdAndExtremesStayFinite) {
  Problem problem({2, 2}, {3, 3}, DType::kFloat64, 2);
  problem.hidden = {1, 0, 1, 0, 0, 1, 1, 1};
  problem.weight = {1, -900, 5, -800, 2, -700, 5, 700, 5, 900, 1, 900};
  problem.targets = {4, 5, 0, 3};
  const auto found =
      OnRanks<Found>({.size = 2}, [&](OpRank& rank) { return Shard(problem, rank).Loss(false); });
  EXPECT_EQ(found[0].argmax, (Values{1, 1}));
  EXPECT_EQ(found[1].argmax, (Values{4, 4}));
  ExpectLoss({.size = 2}, problem, 1e-14, 1e-14);
  for (const Found& part : found)
    for (const double loss : part.y) EXPECT_TRUE(std::isfinite(loss));
}

// Frozen heads and frozen inputs communicate alike and leave what they should.
TEST(VocabTest, OnlyWhatIsWantedIsRecorded) {
  const Problem p({2, 1}, {3, 4}, DType::kFloat64);
  for (const bool head_trains : {false, true})
    for (const bool input_wants : {false, true})
      OnRanks<int>({.size = 2}, [&](OpRank& rank) {
        const int32_t r = rank.group.rank();
        const int64_t first = Before(p.counts, r), rows = p.counts[r], part = p.vocab[r];
        const VocabRange range{.begin = Before(p.vocab, r), .total = 7};
        Weight weight =
            rank.MakeWeight(RowsOf(p.weight, range.begin, part, p.width), {part, p.width});
        const Weight frozen{.value = weight.value};
        Var x = rank.Input(RowsOf(p.hidden, first, rows, p.width), {rows, p.width});
        if (!input_wants) x.slot = -1;
        const auto result = VocabCrossEntropy(rank.ctx, x, head_trains ? weight : frozen, range,
                                              p.targets, 1.0, rank.group, p.counts);
        EXPECT_EQ(result.loss.needs_grad(), head_trains || input_wants);
        rank.BackwardOfLoss(result.loss, 1.0);
        const Values grad = rank.Read(weight.grad);
        EXPECT_EQ(std::any_of(grad.begin(), grad.end(), [](double g) { return g != 0; }),
                  head_trains);
        EXPECT_EQ(rank.GradOf(x).empty(), !input_wants);
        const Var y = VocabEmbedding(rank.EvalCtx(), p.ids, frozen, range, rank.group, p.counts);
        EXPECT_FALSE(y.needs_grad());
        return 0;
      });
}

// What was to be exchanged may then be anything; nobody reads it, but nothing may crash.
TEST(VocabTest, ADeadCommunicatorLeavesShapes) {
  const Problem p({2, 1}, {3, 4}, DType::kFloat64);
  for (const DeviceKind kind : {DeviceKind::kCpu, DeviceKind::kCpuAsync})
    for (const bool embeds : {false, true}) {
      const absl::Status status = test::RunRanks(2, "shm", [&](Communicator& comm, int32_t index) {
        OpRank rank({.size = 2, .device = kind}, comm);
        comm.Abort("the test");
        Shard shard(p, rank);
        const Found found = embeds ? shard.Embed() : shard.Loss(true);
        EXPECT_EQ(static_cast<int64_t>(found.y.size()), p.counts[index] * (embeds ? p.width : 1));
        return absl::OkStatus();
      });
      EXPECT_TRUE(status.ok()) << status;
    }
}

TEST(VocabDeathTest, IdsAndTargetsMustBeOfTheVocabulary) {
  Problem problem({2, 1}, {3, 4}, DType::kFloat64);
  problem.ids[1] = problem.targets[1] = 7;
  const auto run = [&](bool embeds) {
    OnRanks<Found>({.size = 2}, [&](OpRank& rank) {
      Shard shard(problem, rank);
      return embeds ? shard.Embed() : shard.Loss(false);
    });
  };
  EXPECT_DEATH(run(true), "token_ids");
  EXPECT_DEATH(run(false), "7 vs 7");
}

}  // namespace
}  // namespace omni::parallel
