#include "parallel/placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <tuple>

#include "parallel/parameter_list.h"
#include "runtime/base/rng.h"

namespace omni::parallel {
namespace {

using ::testing::ElementsAre;
using Ranges = std::vector<IndexRange>;
using R = std::tuple<int64_t, int64_t, int64_t>;  // a run: local, global, count

int64_t Product(const std::vector<int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

std::vector<R> Runs(const Shard& shard, int64_t begin, int64_t end) {
  std::vector<R> runs;
  shard.ForEachRun(begin, end, [&](int64_t local, int64_t global, int64_t count) {
    runs.emplace_back(local, global, count);
  });
  return runs;
}

// The global index of every local element, by walking all indices of the whole tensor: slow and
// plain.
std::vector<int64_t> GlobalIndices(const Shard& shard) {
  std::vector<int64_t> found = {0};
  for (size_t dim = 0; dim < shard.dims.size(); ++dim) {
    std::vector<int64_t> next;
    for (const int64_t prefix : found) {
      for (const IndexRange& range : shard.dims[dim]) {
        for (int64_t i = range.begin; i < range.end; ++i) {
          next.push_back(prefix * shard.global_shape[dim] + i);
        }
      }
    }
    found = next;
  }
  return found;
}

TEST(ShardTest, ColumnsAreARunARow) {
  const Shard columns{.global_shape = {3, 10}, .dims = {{{0, 3}}, {{4, 7}}}};
  EXPECT_FALSE(columns.is_whole());
  EXPECT_THAT(columns.shape(), ElementsAre(3, 3));
  EXPECT_THAT(Runs(columns, 0, 9), ElementsAre(R{0, 4, 3}, R{3, 14, 3}, R{6, 24, 3}));
  EXPECT_THAT(Runs(columns, 2, 5), ElementsAre(R{2, 6, 1}, R{3, 14, 2}));
  EXPECT_THAT(Runs(columns, 5, 5), ElementsAre());
}

TEST(ShardTest, RowsAndWholesAreOneRun) {
  EXPECT_THAT(Runs(Shard::Whole({3, 10}), 2, 30), ElementsAre(R{2, 2, 28}));
  const Shard rows{.global_shape = {6, 5}, .dims = {{{2, 4}, {4, 5}}, {{0, 5}}}};  // adjacent
  EXPECT_THAT(Runs(rows, 0, 15), ElementsAre(R{0, 10, 15}));
  // The end of one row and the beginning of the next.
  const Shard ends{.global_shape = {2, 6}, .dims = {{{0, 2}}, {{0, 1}, {4, 6}}}};
  EXPECT_THAT(Runs(ends, 0, 6), ElementsAre(R{0, 0, 1}, R{1, 4, 3}, R{4, 10, 2}));
  const Shard nothing{.global_shape = {4, 3}, .dims = {{{2, 2}}, {{0, 3}}}};
  EXPECT_EQ(nothing.num_elements(), 0);
  EXPECT_THAT(Runs(nothing, 0, 0), ElementsAre());
}

TEST(ShardTest, RunsOfRandomShardsAreRightAndAsLongAsCanBe) {
  const CounterRng rng(1, 2);
  uint64_t draw = 0;
  const auto below = [&](int64_t n) { return static_cast<int64_t>(rng.Below(draw++, n)); };
  for (int trial = 0; trial < 400; ++trial) {
    Shard shard;
    for (int64_t dim = 1 + below(4); dim > 0; --dim) {
      const int64_t size = 1 + below(6);
      shard.global_shape.push_back(size);
      Ranges ranges;
      for (int64_t at = 0; at < size && below(3) > 0;) {
        const int64_t begin = at + below(size - at), end = begin + 1 + below(size - begin);
        ranges.push_back({begin, end});
        at = end;
      }
      if (ranges.empty()) ranges.push_back({0, size});
      shard.dims.push_back(ranges);
    }
    const std::vector<int64_t> expected = GlobalIndices(shard);
    ASSERT_EQ(shard.num_elements(), static_cast<int64_t>(expected.size()));
    ASSERT_EQ(shard.num_elements(), Product(shard.shape()));
    ASSERT_EQ(shard.is_whole(), shard.shape() == shard.global_shape);
    const int64_t begin = below(shard.num_elements() + 1);
    const int64_t end = begin + below(shard.num_elements() - begin + 1);
    int64_t next = begin, last_global = -1;
    for (const auto& [local, global, count] : Runs(shard, begin, end)) {
      ASSERT_EQ(local, next);
      ASSERT_GT(count, 0);
      ASSERT_NE(global, last_global);  // else it were one run with the last
      for (int64_t i = 0; i < count; ++i) ASSERT_EQ(global + i, expected[local + i]);
      next = local + count;
      last_global = global + count;
    }
    ASSERT_EQ(next, end);
  }
}

ParameterSpec Qkv(int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t hidden) {
  const int64_t q = heads * head_dim, kv = kv_heads * head_dim;
  ParameterSpec spec = Matrix("decoder.layers.0.attention.qkv.weight", q + 2 * kv, hidden, 0.1);
  spec.stack_rows = {q, kv, kv};
  return Cut(spec, 0, {heads, kv_heads, kv_heads});
}

Placement PlaceTensor(const ParameterSpec& spec, int32_t rank, int32_t ranks) {
  return Place(spec, PlacementClass::kStage, rank, ranks, 0, 1);
}

TEST(PlaceTest, QkvGoesByHeads) {
  const Placement placed = PlaceTensor(Qkv(4, 2, 3, 5), 1, 2);
  EXPECT_EQ(placed.placement, PlacementClass::kTensor);
  EXPECT_EQ(placed.shard.dims, (std::vector<Ranges>{{{6, 12}, {15, 18}, {21, 24}}, {{0, 5}}}));
  EXPECT_THAT(placed.copies, ElementsAre(1, 1, 1));
  EXPECT_THAT(placed.local().shape, ElementsAre(12, 5));
  EXPECT_THAT(placed.local().StackRows(), ElementsAre(6, 3, 3));
}

TEST(PlaceTest, FewerKvHeadsThanRanksAreHeldByNeighbours) {
  const ParameterSpec spec = Qkv(4, 2, 2, 5);
  const std::vector<Ranges> expected = {{{0, 2}, {8, 10}, {12, 14}},
                                        {{2, 4}, {8, 10}, {12, 14}},
                                        {{4, 6}, {10, 12}, {14, 16}},
                                        {{6, 8}, {10, 12}, {14, 16}}};
  for (int32_t rank = 0; rank < 4; ++rank) {
    const Placement placed = PlaceTensor(spec, rank, 4);
    EXPECT_EQ(placed.shard.dims[0], expected[rank]) << rank;
    EXPECT_THAT(placed.copies, ElementsAre(1, 2, 2));
    EXPECT_THAT(placed.local().StackRows(), ElementsAre(2, 2, 2));
  }
  // A bias likewise.
  ParameterSpec bias = Bias("decoder.layers.0.attention.qkv.bias", 16);
  bias.stack_rows = {8, 4, 4};
  const Placement placed = PlaceTensor(Cut(bias, 0, {4, 2, 2}), 3, 4);
  EXPECT_EQ(placed.shard.dims, (std::vector<Ranges>{{{6, 8}, {10, 12}, {14, 16}}}));
}

TEST(PlaceTest, GateAndUpAreCutByThemselvesEvenUnevenly) {
  ParameterSpec gate_up = Matrix("m.gate_up.weight", 10, 3, 0.1);
  gate_up.num_stacked = 2;
  gate_up = Cut(gate_up, 0, {5, 5});
  EXPECT_EQ(PlaceTensor(gate_up, 0, 2).shard.dims[0], (Ranges{{0, 2}, {5, 7}}));
  const Placement second = PlaceTensor(gate_up, 1, 2);
  EXPECT_EQ(second.shard.dims[0], (Ranges{{2, 5}, {7, 10}}));
  EXPECT_THAT(second.local().StackRows(), ElementsAre(3, 3));
  // Down's columns are those.
  const Placement down = PlaceTensor(Cut(Matrix("m.down.weight", 3, 5, 0.1), 1, {5}), 1, 2);
  EXPECT_EQ(down.shard.dims, (std::vector<Ranges>{{{0, 3}}, {{2, 5}}}));
  EXPECT_THAT(down.local().shape, ElementsAre(3, 3));
  EXPECT_THAT(down.local().StackRows(), ElementsAre(3));
}

TEST(PlaceTest, EveryElementIsHeldAsOftenAsItHasCopies) {
  std::vector<ParameterSpec> specs = {
      Qkv(8, 2, 3, 5), Qkv(4, 4, 2, 3), Cut(Matrix("m.output.weight", 5, 12, 0.1), 1, {4}),
      Cut(Stem("m.embedding.weight", {13, 3}, 0.1), 0, {13}), Scale("m.norm.weight", 7)};
  for (const ParameterSpec& spec : specs) {
    for (const int32_t tensor : {1, 2, 4}) {
      SCOPED_TRACE(::testing::Message() << spec.path << " over " << tensor);
      std::vector<int32_t> holders(spec.num_elements(), 0);
      for (int32_t rank = 0; rank < tensor; ++rank) {
        for (const int64_t i : GlobalIndices(PlaceTensor(spec, rank, tensor).shard)) ++holders[i];
      }
      const Placement placed = PlaceTensor(spec, 0, tensor);
      int64_t at = 0;
      const std::vector<int64_t> rows = spec.StackRows();
      const int64_t cols = spec.num_elements() / spec.num_rows();
      for (size_t stack = 0; stack < rows.size(); ++stack) {
        const int32_t copies =
            placed.tensor == 1 && spec.tensor_dim < 0 ? tensor : placed.num_copies(stack);
        for (int64_t i = 0; i < rows[stack] * cols; ++i) EXPECT_EQ(holders[at++], copies);
      }
    }
  }
}

TEST(PlaceTest, ExpertsGoWholeAndEncodersAreNeverCut) {
  const ParameterSpec experts = {.path = "decoder.layers.0.moe.gate_up.weight",
                                 .shape = {6, 4, 5},
                                 .num_stacked = 12,
                                 .row_dims = 2,
                                 .is_expert = true};
  const Placement placed = Place(experts, PlacementClass::kStage, 1, 2, 2, 3);
  EXPECT_EQ(placed.placement, PlacementClass::kExpert);
  EXPECT_EQ(placed.shard.dims[0], (Ranges{{4, 6}}));
  EXPECT_EQ(placed.tensor, 1);
  EXPECT_THAT(placed.local().shape, ElementsAre(2, 4, 5));
  EXPECT_THAT(placed.local().StackRows(), ElementsAre(2, 2, 2, 2));
  EXPECT_EQ(Place(experts, PlacementClass::kStage, 1, 2, 0, 1).placement, PlacementClass::kStage);

  const ParameterSpec map = Cut(Matrix("vision.fc1.weight", 4, 4, 0.1), 0, {4});
  const Placement encoder = Place(map, PlacementClass::kEncoder, 1, 2, 0, 1);
  EXPECT_EQ(encoder.placement, PlacementClass::kEncoder);
  EXPECT_TRUE(encoder.shard.is_whole());

  const ParameterSpec embedding = Cut(Stem("decoder.embedding.weight", {5, 2}, 0.1), 0, {5});
  const Placement tied = Place(embedding, PlacementClass::kTied, 1, 2, 0, 1);
  EXPECT_EQ(tied.placement, PlacementClass::kTied);
  EXPECT_EQ(tied.shard.dims[0], (Ranges{{2, 5}}));
  EXPECT_EQ(Place(embedding, PlacementClass::kTied, 0, 1, 0, 1).placement, PlacementClass::kTied);
}

TEST(PlaceDeathTest, WhatWouldNotStayAlignedIsRefused) {
  EXPECT_DEATH(PlaceTensor(Qkv(6, 3, 2, 5), 0, 2), "qkv.weight: 3 units .* 2 tensor ranks");
  EXPECT_DEATH(PlaceTensor(Qkv(6, 2, 2, 5), 0, 4), "6 units .* 4 tensor ranks");
  const ParameterSpec output = Cut(Matrix("m.output.weight", 5, 12, 0.1), 1, {2});
  EXPECT_DEATH(PlaceTensor(output, 0, 4), "output.weight: 2 units .* 4 tensor ranks");
}

}  // namespace
}  // namespace omni::parallel
