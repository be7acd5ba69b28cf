#include "parallel/sequence_shards.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "runtime/base/rng.h"

namespace omni::parallel {
namespace {

using Pieces = std::vector<SequencePiece>;
using Tokens = std::vector<int32_t>;

std::vector<int32_t> Cumulated(const std::vector<int32_t>& lengths) {
  std::vector<int32_t> cu = {0};
  for (const int32_t length : lengths) cu.push_back(cu.back() + length);
  return cu;
}

// Query-key pairs under a causal mask of the tokens that a ring rank holds.
int64_t PairsOf(const SequenceShards& shards, int32_t ring) {
  int64_t pairs = 0;
  for (const SequencePiece& piece : shards.pieces[ring]) {
    for (int64_t i = piece.begin; i < piece.end; ++i) pairs += i + 1;
  }
  return pairs;
}

TEST(SequenceShardsTest, TheExampleOfTheHeader) {
  const SequenceShards shards =
      ShardSequence(Cumulated({8, 3}), {.ring = 2, .ulysses = 1, .tensor = 2}, 4);
  EXPECT_EQ(shards.document_lengths, (std::vector<int32_t>{8, 3}));
  EXPECT_EQ(shards.tokens[0], (Tokens{0, 1, 6, 7, 8, 9, 10}));
  EXPECT_EQ(shards.tokens[1], (Tokens{2, 3, 4, 5}));
  EXPECT_EQ(shards.pieces[0], (Pieces{{0, 0, 2}, {0, 6, 8}, {1, 0, 3}}));
  EXPECT_EQ(shards.pieces[1], (Pieces{{0, 2, 6}}));  // two pieces that touch are one
  const auto of = [&](int32_t index) {
    const auto span = shards.TokensOf(index);
    return Tokens(span.begin(), span.end());
  };
  EXPECT_EQ(of(0), (Tokens{0, 1, 6}));
  EXPECT_EQ(of(1), (Tokens{7, 8, 9, 10}));
  EXPECT_EQ(of(2), (Tokens{2, 3}));
  EXPECT_EQ(of(3), (Tokens{4, 5}));
}

TEST(SequenceShardsTest, EveryTokenLiesOnceWhateverTheDegrees) {
  CounterRng rng(7, StreamOf("shards"));
  for (int32_t round = 0; round < 300; ++round) {
    const SequenceDegrees degrees = {.ring = 1 + static_cast<int32_t>(rng.NextBelow(5)),
                                     .ulysses = 1 + static_cast<int32_t>(rng.NextBelow(3)),
                                     .tensor = 1 + static_cast<int32_t>(rng.NextBelow(3))};
    std::vector<int32_t> lengths(rng.NextBelow(9));
    for (int32_t& length : lengths) length = static_cast<int32_t>(rng.NextBelow(40));
    const int32_t threshold = static_cast<int32_t>(rng.NextBelow(40));
    const std::vector<int32_t> cu = Cumulated(lengths);
    const SequenceShards shards = ShardSequence(cu, degrees, threshold);
    SCOPED_TRACE(absl::StrCat("round ", round, " ring ", degrees.ring));
    ASSERT_EQ(shards.pieces.size(), static_cast<size_t>(degrees.ring));

    Tokens all;
    for (int32_t index = 0; index < degrees.num_ranks(); ++index) {
      const auto span = shards.TokensOf(index);
      all.insert(all.end(), span.begin(), span.end());
    }
    std::sort(all.begin(), all.end());
    Tokens expected(cu.back());
    std::iota(expected.begin(), expected.end(), 0);
    ASSERT_EQ(all, expected);

    for (int32_t ring = 0; ring < degrees.ring; ++ring) {
      Tokens rows;
      int32_t holders_of_short = 0;
      for (const SequencePiece& piece : shards.pieces[ring]) {
        ASSERT_LT(piece.begin, piece.end);
        if (lengths[piece.document] <= threshold) {
          ++holders_of_short;
          ASSERT_EQ(piece.end - piece.begin, lengths[piece.document]);
        }
        for (int32_t i = piece.begin; i < piece.end; ++i) rows.push_back(cu[piece.document] + i);
      }
      ASSERT_EQ(rows, shards.tokens[ring]);
      ASSERT_TRUE(std::is_sorted(rows.begin(), rows.end()));
      // Counts are those of TokensOf, add up, and differ by one at most inside a ring rank.
      const std::vector<int64_t> groups = shards.UlyssesCounts(ring);
      ASSERT_EQ(groups.size(), static_cast<size_t>(degrees.ulysses));
      ASSERT_EQ(std::accumulate(groups.begin(), groups.end(), int64_t{0}),
                static_cast<int64_t>(rows.size()));
      int64_t next = 0, fewest = cu.back(), most = 0;
      for (int32_t u = 0; u < degrees.ulysses; ++u) {
        const std::vector<int64_t> counts = shards.TensorCounts(ring, u);
        ASSERT_EQ(std::accumulate(counts.begin(), counts.end(), int64_t{0}), groups[u]);
        for (int32_t t = 0; t < degrees.tensor; ++t) {
          const int32_t part = u * degrees.tensor + t;
          const int32_t index = ring * degrees.ulysses * degrees.tensor + part;
          ASSERT_EQ(counts[t], static_cast<int64_t>(shards.TokensOf(index).size()));
          ASSERT_EQ(shards.PartRows(ring, part).first, next);
          next += counts[t];
          fewest = std::min(fewest, counts[t]);
          most = std::max(most, counts[t]);
        }
      }
      ASSERT_LE(most - fewest, 1);
    }
  }
}

TEST(SequenceShardsTest, AZigzagGivesAllRanksTheSameCausalWork) {
  for (int32_t ring = 2; ring <= 5; ++ring) {
    // Lengths that divide: exactly the same. Others: pieces differ by one token.
    const SequenceShards even = ShardSequence(Cumulated({2 * ring * 50}), {.ring = ring}, 0);
    const SequenceShards uneven = ShardSequence(Cumulated({2 * ring * 50 + 3}), {.ring = ring}, 0);
    for (int32_t rank = 0; rank < ring; ++rank) {
      EXPECT_EQ(PairsOf(even, rank), PairsOf(even, 0));
      EXPECT_EQ(even.tokens[rank].size(), 100u);
      EXPECT_NEAR(PairsOf(uneven, rank), PairsOf(uneven, 0), 2.0 * (2 * ring * 50 + 3));
      EXPECT_NEAR(uneven.tokens[rank].size(), 100, 2);
    }
  }
}

TEST(SequenceShardsTest, ADocumentOfTheThresholdIsWholeOneLongerIsCut) {
  const SequenceShards whole = ShardSequence(Cumulated({10}), {.ring = 2}, 10);
  EXPECT_EQ(whole.pieces[0], (Pieces{{0, 0, 10}}));
  EXPECT_TRUE(whole.pieces[1].empty());
  const SequenceShards cut = ShardSequence(Cumulated({11}), {.ring = 2}, 10);
  EXPECT_EQ(cut.pieces[0], (Pieces{{0, 0, 2}, {0, 8, 11}}));
  EXPECT_EQ(cut.pieces[1], (Pieces{{0, 2, 8}}));
}

TEST(SequenceShardsTest, ADocumentShorterThanItsPiecesLeavesSomeEmpty) {
  // 6 pieces of 2 tokens: [0,0) [0,0) [0,1) [1,1) [1,1) [1,2).
  const SequenceShards shards = ShardSequence(Cumulated({2}), {.ring = 3}, 0);
  EXPECT_EQ(shards.pieces[0], (Pieces{{0, 1, 2}}));
  EXPECT_TRUE(shards.pieces[1].empty());
  EXPECT_EQ(shards.pieces[2], (Pieces{{0, 0, 1}}));
}

TEST(SequenceShardsTest, WholeDocumentsAreDealtTheDearestFirst) {
  // 9 -> 0, 7 -> 1, 6 -> 1 (7 < 9), 5 -> 0, then 1 -> 1 (13 < 14). Now 14 tokens each, but 60
  // pairs of query and key on rank 0 against 50, so the last goes to rank 1.
  const SequenceShards shards = ShardSequence(Cumulated({1, 5, 9, 6, 7, 1}), {.ring = 2}, 100);
  EXPECT_EQ(shards.pieces[0], (Pieces{{1, 0, 5}, {2, 0, 9}}));
  EXPECT_EQ(shards.pieces[1], (Pieces{{0, 0, 1}, {3, 0, 6}, {4, 0, 7}, {5, 0, 1}}));
  // Equal ones: the lower index first, to the lower rank.
  const SequenceShards equal = ShardSequence(Cumulated({4, 4, 4}), {.ring = 3}, 100);
  for (int32_t rank = 0; rank < 3; ++rank) {
    EXPECT_EQ(equal.pieces[rank], (Pieces{{rank, 0, 4}}));
  }
}

TEST(SequenceShardsTest, AttentionCountsWhenWholeDocumentsAreDealt) {
  // By tokens alone the last few would go to rank 0 (60,000 against 65,000).
  std::vector<int32_t> lengths = {60000};
  for (int32_t i = 0; i < 65; ++i) lengths.push_back(1000);
  const SequenceShards shards = ShardSequence(Cumulated(lengths), {.ring = 2}, 100000);
  EXPECT_EQ(shards.pieces[0], (Pieces{{0, 0, 60000}}));
  EXPECT_EQ(shards.pieces[1].size(), 65u);
}

TEST(SequenceShardsTest, ARingOfOneHoldsThePackAsItIs) {
  const SequenceShards shards = ShardSequence(Cumulated({3, 0, 7}), {}, 2);
  EXPECT_EQ(shards.pieces[0], (Pieces{{0, 0, 3}, {2, 0, 7}}));
  EXPECT_EQ(shards.tokens[0], (Tokens{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}));
}

TEST(SequenceShardsTest, AnEmptyPackGivesEverybodyNothing) {
  for (const std::vector<int32_t>& lengths : {std::vector<int32_t>{}, std::vector<int32_t>{0, 0}}) {
    const SequenceShards shards =
        ShardSequence(Cumulated(lengths), {.ring = 3, .ulysses = 2, .tensor = 2}, 1);
    for (int32_t index = 0; index < 12; ++index) EXPECT_TRUE(shards.TokensOf(index).empty());
    EXPECT_EQ(shards.UlyssesCounts(2), (std::vector<int64_t>{0, 0}));
    EXPECT_EQ(shards.TensorCounts(1, 1), (std::vector<int64_t>{0, 0}));
  }
}

TEST(SequenceShardsTest, PiecesDealtOtherwiseListTheirTokens) {
  const SequenceShards shards = ShardsOfPieces(
      {6, 0, 3}, {{{0, 0, 2}, {2, 1, 3}}, {}, {{0, 2, 6}, {2, 0, 1}}}, {.ring = 3, .ulysses = 2});
  EXPECT_EQ(shards.tokens[0], (Tokens{0, 1, 7, 8}));
  EXPECT_TRUE(shards.tokens[1].empty());
  EXPECT_EQ(shards.tokens[2], (Tokens{2, 3, 4, 5, 6}));
  EXPECT_EQ(shards.UlyssesCounts(2), (std::vector<int64_t>{2, 3}));
}

TEST(SequenceShardsDeathTest, PiecesMustHoldEveryTokenOnce) {
  const auto make = [](std::vector<Pieces> pieces) {
    ShardsOfPieces({4, 2}, std::move(pieces), {.ring = 2});
  };
  EXPECT_DEATH(make({{{0, 0, 4}}, {{1, 0, 1}}}), "0 vs 1");                   // one missing
  EXPECT_DEATH(make({{{0, 0, 4}, {1, 0, 2}}, {{0, 3, 4}}}), "2 vs 1");        // one twice
  EXPECT_DEATH(make({{{0, 0, 5}}, {{1, 0, 2}}}), "5 vs 4");                   // too long
  EXPECT_DEATH(make({{{1, 0, 2}, {0, 0, 2}}, {{0, 2, 4}}}), "CHECK failed");  // out of order
  EXPECT_DEATH(make({{{0, 0, 4}}, {{1, 0, 2}, {2, 0, 1}}}), "CHECK failed");  // no document
  EXPECT_DEATH(make({{{0, 0, 4}, {1, 0, 2}}}), "1 vs 2");                     // ranks
}

TEST(SequenceShardsDeathTest, WhatNoPackCanBeIsCaught) {
  EXPECT_DEATH(ShardSequence({}, {}, 0), "CHECK failed");
  EXPECT_DEATH(ShardSequence({0, 5, 3}, {}, 0), "5 vs 3");
  EXPECT_DEATH(ShardSequence({1, 5}, {}, 0), "1 vs 0");
  EXPECT_DEATH(ShardSequence({0, 5}, {}, -1), "-1 vs 0");
  EXPECT_DEATH(ShardSequence({0, 5}, {.ring = 0}, 0), "CHECK failed");
  EXPECT_DEATH(ShardSequence({0, 5}, {}, 0).TokensOf(1), "CHECK failed");
}

}  // namespace
}  // namespace omni::parallel
