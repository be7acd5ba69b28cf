// Ring attention against one rank's attention over the whole pack, and which keys travel to whom.
#include "parallel/ops/ring_attention.h"

#include "absl/strings/str_cat.h"
#include "parallel/ops/ring_segments.h"
#include "tests/parallel/ops/attention_problem.h"

namespace omni::parallel {
namespace {

using Problem = AttentionProblem;
using Tensors = AttentionTensors;

// The ring's results, put together in pack order.
Tensors OnRing(const RankSetup& setup, const Problem& p, const Tensors& inputs,
               const SequenceShards& shards, bool strided = false,
               const std::array<bool, 3>& wants = {true, true, true}) {
  const auto found = OnRanks<Tensors>(setup, [&](OpRank& rank) {
    const auto attention = [&](OpRank& r, const Var& q, const Var& k, const Var& v) {
      const SequenceShards mine = shards;  // gone before the backward
      return RingAttention(r.ctx, q, k, v, mine, r.group, {.causal = p.causal});
    };
    return RunOn(rank, p, inputs, shards.tokens[rank.group.rank()], attention, strided, wants);
  });
  const int64_t wide = p.heads * p.head_dim, narrow = p.kv_heads * p.head_dim;
  Tensors all{.out = Values(p.num_tokens() * wide)};
  all.grad_q = all.out;
  all.grad_k = all.grad_v = Values(p.num_tokens() * narrow);
  for (int32_t rank = 0; rank < setup.size; ++rank) {
    Place(found[rank].out, shards.tokens[rank], wide, all.out);
    if (wants[0]) Place(found[rank].grad_q, shards.tokens[rank], wide, all.grad_q);
    if (wants[1]) Place(found[rank].grad_k, shards.tokens[rank], narrow, all.grad_k);
    if (wants[2]) Place(found[rank].grad_v, shards.tokens[rank], narrow, all.grad_v);
  }
  return all;
}

Problem RandomProblem(CounterRng& rng) {
  constexpr std::array<int64_t, 2> kHeads[] = {{1, 1}, {3, 3}, {4, 1}, {6, 2}};
  const auto& heads = kHeads[rng.NextBelow(4)];
  Problem p{.lengths = std::vector<int32_t>(1 + rng.NextBelow(6)),
            .heads = heads[0],
            .kv_heads = heads[1],
            .head_dim = 1 + static_cast<int64_t>(rng.NextBelow(20)),
            .causal = rng.NextBelow(2) == 0};
  for (int32_t& length : p.lengths) {  // many shorter than their pieces would be
    length = 1 + static_cast<int32_t>(rng.NextBelow(rng.NextBelow(2) == 0 ? 6 : 70));
  }
  return p;
}

TEST(RingAttentionTest, EqualsOneRankOverTheWholePack) {
  CounterRng rng(3, StreamOf("ring"));
  for (int32_t size = 1; size <= 5; ++size) {
    for (int32_t round = 0; round < 24; ++round) {
      const Problem p = RandomProblem(rng);
      const int32_t threshold = static_cast<int32_t>(rng.NextBelow(3) * 12);
      SCOPED_TRACE(absl::StrCat("ring ", size, " round ", round, " threshold ", threshold));
      SCOPED_TRACE(::testing::PrintToString(p));
      const Tensors inputs = MakeInputs(p, DType::kFloat64);
      const SequenceShards shards = ShardSequence(p.cu_seqlens(), {.ring = size}, threshold);
      ExpectSame(OnRing({.size = size}, p, inputs, shards, round % 2 == 1),
                 OneRank(p, inputs, DType::kFloat64), 1e-12, 1e-12);
    }
  }
}

// Long enough that a rank's work is cut into several tasks.
TEST(RingAttentionTest, LongDocuments) {
  for (const bool causal : {false, true}) {
    const Problem p{{1500, 3, 700}, 4, 2, 16, causal};
    const Tensors inputs = MakeInputs(p, DType::kFloat64);
    ExpectSame(OnRing({.size = 3}, p, inputs, ShardSequence(p.cu_seqlens(), {.ring = 3}, 100)),
               OneRank(p, inputs, DType::kFloat64), 1e-12, 1e-12);
  }
}

TEST(RingAttentionTest, RanksWithoutTokensTakePart) {
  for (const std::vector<int32_t>& lengths :
       {std::vector<int32_t>{40, 2}, {1}, {}, {0, 0}, {0, 9, 0}}) {
    for (const bool causal : {false, true}) {
      const Problem p{lengths, 4, 2, 6, causal};
      SCOPED_TRACE(::testing::PrintToString(p));
      const Tensors inputs = MakeInputs(p, DType::kFloat64);
      // Everything whole, so that some of the four have nothing; and cut.
      for (const int32_t threshold : {1000, 0}) {
        ExpectSame(
            OnRing({.size = 4}, p, inputs, ShardSequence(p.cu_seqlens(), {.ring = 4}, threshold)),
            OneRank(p, inputs, DType::kFloat64), 1e-12, 1e-12);
      }
    }
  }
}

// As an encoder may deal its samples: contiguous parts of any size, of whichever ranks.
TEST(RingAttentionTest, AnyPiecesWithoutAMaskAndContiguousOnesWithIt) {
  const auto shards_of = [](std::vector<std::vector<SequencePiece>> pieces) {
    return ShardsOfPieces({20, 9}, std::move(pieces), {.ring = 3});
  };
  Problem p{{20, 9}, 2, 1, 7, false};
  const Tensors inputs = MakeInputs(p, DType::kFloat64);
  ExpectSame(OnRing({.size = 3}, p, inputs,
                    shards_of({{{0, 0, 3}, {0, 8, 9}, {0, 15, 20}, {1, 4, 9}},
                               {{1, 0, 4}},
                               {{0, 3, 8}, {0, 9, 15}}})),
             OneRank(p, inputs, DType::kFloat64), 1e-12, 1e-12);
  p.causal = true;
  ExpectSame(OnRing({.size = 3}, p, inputs,
                    shards_of({{{0, 0, 9}}, {{0, 9, 11}, {1, 0, 8}}, {{0, 11, 20}, {1, 8, 9}}})),
             OneRank(p, inputs, DType::kFloat64), 1e-12, 1e-12);
}

TEST(RingAttentionTest, LowerPrecision) {
  for (const bool causal : {false, true}) {
    const Problem p{{90, 7, 33}, 4, 2, 16, causal};
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
      const Tensors inputs = MakeInputs(p, dtype);
      const double tolerance = dtype == DType::kFloat32 ? 1e-6 : 6e-3;
      ExpectSame(OnRing({.size = 3, .dtype = dtype}, p, inputs,
                        ShardSequence(p.cu_seqlens(), {.ring = 3}, 10)),
                 OneRank(p, inputs, dtype), tolerance, tolerance);
    }
  }
}

TEST(RingAttentionTest, OverTcpAndOnStreams) {
  const Problem p{{61, 5, 1, 18}, 6, 2, 8, true};
  const SequenceShards shards = ShardSequence(p.cu_seqlens(), {.ring = 3}, 6);
  for (const DType dtype : {DType::kFloat64, DType::kBFloat16}) {
    const Tensors inputs = MakeInputs(p, dtype);
    const Tensors plain = OnRing({.size = 3, .dtype = dtype}, p, inputs, shards);
    for (const RankSetup& setup :
         {RankSetup{.size = 3, .dtype = dtype, .engine = "tcp"},
          RankSetup{.size = 3, .dtype = dtype, .device = DeviceKind::kCpuAsync}}) {
      ExpectSame(OnRing(setup, p, inputs, shards), plain, 0.0, 0.0);  // the same bits
    }
  }
}

TEST(RingAttentionTest, GradientsThatNobodyWantsAreNotMade) {
  const Problem p{{30, 4}, 4, 2, 8, true};
  const SequenceShards shards = ShardSequence(p.cu_seqlens(), {.ring = 2}, 0);
  for (const DType dtype : {DType::kFloat64, DType::kBFloat16}) {
    const Tensors inputs = MakeInputs(p, dtype);
    const Tensors all = OnRing({.size = 2, .dtype = dtype}, p, inputs, shards);
    for (int32_t mask = 1; mask < 8; ++mask) {
      const std::array<bool, 3> wants = {(mask & 1) != 0, (mask & 2) != 0, (mask & 4) != 0};
      const Tensors some = OnRing({.size = 2, .dtype = dtype}, p, inputs, shards, true, wants);
      ExpectClose(some.out, all.out, 0.0, "out");
      const Values zero_q(all.grad_q.size()), zero_k(all.grad_k.size());
      ExpectClose(some.grad_q, wants[0] ? all.grad_q : zero_q, 0.0, "grad_q");
      ExpectClose(some.grad_k, wants[1] ? all.grad_k : zero_k, 0.0, "grad_k");
      ExpectClose(some.grad_v, wants[2] ? all.grad_v : zero_k, 0.0, "grad_v");
    }
  }
}

// While the tape records, only what the backward needs stays: q, k, v belong to the test, so out,
// lse and the list of segments, a page each.
TEST(RingAttentionTest, BuffersOfTheTripAreReturnedAtOnce) {
  const Problem p{{400}, 4, 4, 16, true};
  const Tensors inputs = MakeInputs(p, DType::kFloat32);
  const SequenceShards shards = ShardSequence(p.cu_seqlens(), {.ring = 2}, 0);
  OnRanks<int>({.size = 2, .dtype = DType::kFloat32}, [&](OpRank& rank) {
    const absl::Span<const int32_t> tokens = shards.tokens[rank.group.rank()];
    const Values own = Take(inputs.q, tokens, 64);
    const Var x = rank.Input(own, {200, 4, 16});
    const auto used = [&] { return rank.ctx.device.pool().stats().used_bytes; };
    const int64_t before = used();
    RingAttention(rank.ctx, x, x, x, shards, rank.group, {.causal = true});
    const auto pages = [](int64_t bytes) { return (bytes + 4095) / 4096 * 4096; };
    EXPECT_EQ(used() - before, pages(200 * 64 * 4) + pages(200 * 4 * 4) + pages(1));
    return 0;
  });
}

// What never arrived is garbage, but nothing crashes or hangs, and all memory comes back.
TEST(RingAttentionTest, ADeadCommunicatorMovesNothing) {
  const Problem p{{30, 4}, 4, 2, 8, true};
  const Tensors inputs = MakeInputs(p, DType::kBFloat16);
  const SequenceShards shards = ShardSequence(p.cu_seqlens(), {.ring = 3}, 0);
  for (const DeviceKind kind : {DeviceKind::kCpu, DeviceKind::kCpuAsync}) {
    const absl::Status status = test::RunRanks(3, "shm", [&](Communicator& comm, int32_t index) {
      OpRank rank({.size = 3, .dtype = DType::kBFloat16, .device = kind}, comm);
      const auto attention = [&](OpRank& r, const Var& q, const Var& k, const Var& v) {
        const Var out = RingAttention(r.ctx, q, k, v, shards, r.group, {.causal = true});
        if (index == 1) comm.Abort("the test");  // perhaps before the others are through
        return out;
      };
      RunOn(rank, p, inputs, shards.tokens[index], attention, false);
      EXPECT_EQ(comm.status().code(), absl::StatusCode::kAborted) << comm.status();
      EXPECT_EQ(rank.BytesAfterReset(), 0);
      return absl::OkStatus();
    });
    EXPECT_TRUE(status.ok()) << status;
  }
}

TEST(RingSegmentsTest, AZigzagShowsEachRankHalfOfTheOthers) {
  // Pieces of 10: rank 0 has 0 and 5, rank 1 has 1 and 4, rank 2 has 2 and 3.
  const SequenceShards shards = ShardSequence({0, 60}, {.ring = 3}, 0);
  using Segments = std::vector<RingSegment>;
  EXPECT_EQ(RingSegments(shards, 1, 1, true), (Segments{{0, 20, 0, 20}}));
  EXPECT_EQ(RingSegments(shards, 1, 0, true), (Segments{{0, 20, 0, 10}}));   // 1, 4 see 0
  EXPECT_EQ(RingSegments(shards, 1, 2, true), (Segments{{10, 10, 0, 20}}));  // 4 sees 2, 3
  EXPECT_EQ(RingSegments(shards, 1, 2, false), (Segments{{0, 20, 0, 20}}));
}

TEST(RingSegmentsTest, DocumentsThatTwoRanksDoNotShareAreLeftOut) {
  const SequenceShards shards = ShardSequence({0, 4, 44, 47}, {.ring = 2}, 5);
  // The short ones lie whole, 4 tokens on rank 0 and 3 on rank 1.
  EXPECT_EQ(shards.pieces[0].front(), (SequencePiece{0, 0, 4}));
  EXPECT_EQ(shards.pieces[1].back(), (SequencePiece{2, 0, 3}));
  using Segments = std::vector<RingSegment>;
  EXPECT_EQ(RingSegments(shards, 0, 1, true), (Segments{{14, 10, 0, 20}}));
  EXPECT_EQ(RingSegments(shards, 1, 0, true), (Segments{{0, 20, 4, 10}}));
  EXPECT_EQ(HeldSeqlens(shards, 0), (std::vector<int32_t>{0, 4, 24}));
}

TEST(RingSegmentsDeathTest, AMaskThatNeedsTwoRangesIsCaught) {
  SequenceShards shards{.degrees = {.ring = 2}, .document_lengths = {8}};
  shards.pieces = {{{0, 0, 2}, {0, 4, 6}}, {{0, 2, 4}, {0, 6, 8}}};
  EXPECT_DEATH(RingSegments(shards, 1, 0, true), "2 vs 4");
}

TEST(RingAttentionDeathTest, WhatCannotBeIsCaught) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const SequenceShards shards = ShardSequence({0, 8}, {.ring = 2}, 0);
  const auto attend = [&](const SequenceShards& by, int64_t rows, const AttentionOptions& options) {
    OnRanks<int>({.size = 2}, [&](OpRank& rank) {
      const Var x = rank.Input(Values(rows * 2, 0.0), {rows, 1, 2});
      RingAttention(rank.ctx, x, x, x, by, rank.group, options);
      return 0;
    });
  };
  EXPECT_DEATH(attend(shards, 3, {}), "3 vs 4");
  EXPECT_DEATH(attend(shards, 4, {.window = 2}), "2 vs 0");
  EXPECT_DEATH(attend(ShardSequence({0, 8}, {.ring = 3}, 0), 4, {}), "3 vs 2");
}

}  // namespace
}  // namespace omni::parallel
