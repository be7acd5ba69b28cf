#include "parallel/encoder_deal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "tests/parallel/random_step.h"

namespace omni::parallel {
namespace {

using ::testing::ElementsAre;

int64_t Slowest(const std::vector<int64_t>& loads) {
  return *std::max_element(loads.begin(), loads.end());
}

std::vector<DealItem> RandomItems(CounterRng& rng, int32_t count) {
  std::vector<DealItem> items;
  for (int32_t i = 0; i < count; ++i) {
    const int32_t rows = Pick(rng, 1, 60);
    items.push_back({.cost = rows * Pick(rng, 1, 4), .input_rows = rows, .microbatch = i / 2});
  }
  return items;
}

// Loads that these assignments make, counted anew.
std::vector<int64_t> LoadsOf(const std::vector<DealItem>& items, const std::vector<Dealt>& dealt,
                             int64_t overhead, std::vector<int64_t> loads) {
  for (size_t i = 0; i < items.size(); ++i) {
    const int32_t n = dealt[i].num_shards;
    const int64_t share = n == 1 ? items[i].cost : (items[i].cost + n - 1) / n + overhead;
    for (int32_t r = 0; r < n; ++r) loads[dealt[i].rank + r] += share;
  }
  return loads;
}

// The lowest slowest rank any assignment of whole items has.
int64_t Optimum(const std::vector<DealItem>& items, size_t next, std::vector<int64_t>* loads) {
  if (next == items.size()) return Slowest(*loads);
  int64_t best = INT64_MAX;
  for (int64_t& load : *loads) {
    load += items[next].cost;
    best = std::min(best, Optimum(items, next + 1, loads));
    load -= items[next].cost;
  }
  return best;
}

TEST(EncoderDealTest, WholeItemsAreWithinLptsBoundOfTheOptimum) {
  for (int seed = 0; seed < 200; ++seed) {
    CounterRng rng(seed, 1);
    const std::vector<DealItem> items = RandomItems(rng, Pick(rng, 0, 7));
    const int32_t ranks = Pick(rng, 1, 3);
    std::vector<int64_t> loads(ranks), none(ranks);
    const auto dealt = DealGroup(items, {.stages = ranks}, kThresholdNone, &loads);
    EXPECT_EQ(loads, LoadsOf(items, dealt, 0, none));
    const int64_t optimum = Optimum(items, 0, &none);
    EXPECT_LE(3 * ranks * Slowest(loads), (4 * ranks - 1) * optimum) << "seed " << seed;
  }
}

TEST(EncoderDealTest, OfEqualLoadsTheOwnStageThenTheLowestRank) {
  // Three stages of two ranks; equal items of microbatches 0 to 3.
  const DealRanks ranks{.stages = 3, .stage_ranks = 2, .count = 2};
  const std::vector<DealItem> items = {{5, 1, 0}, {5, 1, 1}, {5, 1, 2}, {5, 1, 3}, {5, 1, 4}};
  std::vector<int64_t> loads(6);
  const auto dealt = DealGroup(items, ranks, kThresholdNone, &loads);
  EXPECT_THAT(dealt, ElementsAre(Dealt{0}, Dealt{2}, Dealt{4}, Dealt{1}, Dealt{3}));
  // A lower load elsewhere comes before the own stage.
  loads = {1, 1, 1, 1, 0, 1};
  EXPECT_THAT(DealGroup({{.cost = 5, .microbatch = 0}}, ranks, kThresholdNone, &loads),
              ElementsAre(Dealt{4}));
  // The own stage is full: the lowest rank of all.
  loads = {1, 1, 0, 0, 1, 1};
  EXPECT_THAT(DealGroup({{.cost = 5, .microbatch = 0}}, ranks, kThresholdNone, &loads),
              ElementsAre(Dealt{2}));
}

TEST(EncoderDealTest, LongItemsAreSplitOverASequenceGroup) {
  // Two stages of four ranks, groups of two. 101 rows is above the threshold, 100 is not.
  const DealRanks ranks{.stages = 2, .stage_ranks = 4, .count = 4, .sequence = 2};
  std::vector<int64_t> loads(8);
  const auto dealt = DealGroup({{100, 100, 0, 7}, {101, 101, 1, 7}, {300, 300, 0, 7}}, ranks,
                               /*threshold=*/100, &loads);
  EXPECT_THAT(dealt, ElementsAre(Dealt{2}, Dealt{4, 2}, Dealt{0, 2}));
  EXPECT_THAT(loads, ElementsAre(157, 157, 100, 0, 58, 58, 0, 0));
}

TEST(EncoderDealTest, AutoTakesTheThresholdOfTheLowestSlowestRank) {
  int split = 0, whole = 0;
  for (int seed = 0; seed < 300; ++seed) {
    CounterRng rng(seed, 2);
    const DealRanks ranks{.stages = Pick(rng, 1, 2),
                          .stage_ranks = 8,
                          .first = 4,
                          .count = 4,
                          .sequence = Pick(rng, 1, 2) * 2};
    std::vector<DealItem> items = RandomItems(rng, Pick(rng, 1, 14));
    std::vector<int64_t> before(16);
    for (int64_t& load : before) load = Pick(rng, 0, 30);
    const int64_t overhead = Pick(rng, 0, 40);
    for (DealItem& item : items) item.split_cost = overhead;
    std::vector<int64_t> loads = before;
    const auto dealt = DealGroup(items, ranks, kThresholdAuto, &loads);
    ASSERT_EQ(loads, LoadsOf(items, dealt, overhead, before));
    // Every rank outside keeps what it had.
    int64_t slowest = 0;
    for (int32_t r = 0; r < 16; ++r) {
      const bool is_inside = r % 8 >= 4 && r / 8 < ranks.stages;
      if (is_inside) {
        slowest = std::max(slowest, loads[r]);
      } else {
        EXPECT_EQ(loads[r], before[r]);
      }
    }
    // No other threshold is better, and none that splits less is as good.
    int64_t shortest_split = INT64_MAX;
    for (size_t i = 0; i < items.size(); ++i) {
      (dealt[i].num_shards > 1 ? split : whole) += 1;
      if (dealt[i].num_shards > 1) shortest_split = std::min(shortest_split, items[i].input_rows);
    }
    for (int64_t threshold = 0; threshold <= 60; ++threshold) {
      std::vector<int64_t> other = before;
      DealGroup(items, ranks, threshold, &other);
      int64_t other_slowest = 0;
      for (int32_t s = 0; s < ranks.stages; ++s) {
        for (int32_t r = 4; r < 8; ++r) other_slowest = std::max(other_slowest, other[8 * s + r]);
      }
      EXPECT_GE(other_slowest, slowest) << "seed " << seed << " threshold " << threshold;
      if (shortest_split != INT64_MAX && threshold >= shortest_split) {
        EXPECT_GT(other_slowest, slowest) << "seed " << seed << " threshold " << threshold;
      }
    }
  }
  EXPECT_GT(split, 100);
  EXPECT_GT(whole, 100);
}

// What decides is how much of its work a sample saves, not the unit its work is counted in: at a
// thousand FLOPs a row and at one, the same samples are split.
TEST(EncoderDealTest, TheUnitOfCostsDecidesNothing) {
  int split = 0, whole = 0;
  for (int seed = 0; seed < 200; ++seed) {
    CounterRng rng(seed, 5);
    const DealRanks ranks{.stages = 2, .stage_ranks = 4, .count = 4, .sequence = 4};
    std::vector<DealItem> in_rows, in_flops;
    for (int32_t i = Pick(rng, 1, 6); i > 0; --i) {
      // Work for 341 rows is as much as a quarter of it and 256 rows more.
      MediaItem item{.num_input_rows = 4 * Pick(rng, 1, 225)};
      const ItemCost rows = CostOf({}, 0, item);
      const auto flops = [](int64_t rows) {
        return [rows](int32_t, const MediaItem& item) {
          return (rows == 0 ? item.num_input_rows : rows) * 4096 * 4096;
        };
      };
      const ItemCost cost = CostOf({.item = flops(0), .split = flops(kSplitRows)}, 0, item);
      in_rows.push_back({rows.whole, item.num_input_rows, i, rows.split});
      in_flops.push_back({cost.whole, item.num_input_rows, i, cost.split});
    }
    std::vector<int64_t> loads(8), other(8);
    const auto dealt = DealGroup(in_rows, ranks, kThresholdAuto, &loads);
    EXPECT_EQ(dealt, DealGroup(in_flops, ranks, kThresholdAuto, &other)) << "seed " << seed;
    for (const Dealt& one : dealt) (one.num_shards > 1 ? split : whole) += 1;
  }
  EXPECT_GT(split, 50);
  EXPECT_GT(whole, 50);
}

TEST(EncoderDealTest, AutoTriesFewThresholdsOfMany) {
  // One item dwarfs 400 of different lengths: among 16 candidates is one that splits it.
  const DealRanks ranks{.stage_ranks = 4, .count = 4, .sequence = 4};
  std::vector<DealItem> items = {{.cost = 1000000, .input_rows = 1000}};
  for (int32_t i = 0; i < 400; ++i) items.push_back({.cost = 10 + i, .input_rows = 10 + i});
  for (DealItem& item : items) item.split_cost = 1;
  std::vector<int64_t> loads(4);
  const auto dealt = DealGroup(items, ranks, kThresholdAuto, &loads);
  EXPECT_EQ(dealt[0], (Dealt{0, 4}));
  EXPECT_LT(Slowest(loads), 1000000 / 2);
}

TEST(EncoderDealTest, ItemsStayInTheirDomainAndGroupsStartAnew) {
  int64_t checked = 0, split = 0, later_stages = 0;
  for (int seed = 0; seed < 300; ++seed) {
    CounterRng rng(seed, 3);
    const DataLayout data = RandomData(rng);
    StepLayout step = RandomStep(data, rng);
    DealRandomly(data, rng, &step);
    const int32_t ranks = data.sequence.num_ranks();
    for (const StepLayout::Item& item : step.items) {
      const DataLayout::Encoder& encoder = data.encoders[item.encoder];
      // The domain: the fewest replicas, aligned, whose ranks are whole sequence groups.
      int32_t replicas = 1;
      while (replicas * ranks % encoder.sequence != 0) ++replicas;
      EXPECT_EQ(data.DomainReplicas(item.encoder), replicas);
      EXPECT_EQ(data.Replica(item.encoder_rank) / replicas, item.replica / replicas);
      EXPECT_EQ(data.Replica(item.encoder_rank + item.num_shards - 1) / replicas,
                item.replica / replicas);
      EXPECT_EQ(data.Stage(item.encoder_rank), data.Stage(item.encoder_rank + item.num_shards - 1));
      if (data.joint == JointKind::kFirstStage) {
        EXPECT_EQ(data.Stage(item.encoder_rank), 0);
      }
      if (item.num_shards > 1) {
        EXPECT_EQ(item.num_shards, encoder.sequence);
        EXPECT_EQ(item.encoder_rank % data.stage_ranks() % encoder.sequence, 0);
        EXPECT_NE(encoder.name, "indivisible");
        EXPECT_NE(encoder.threshold, kThresholdNone);
      } else if (encoder.unit.input_rows > 0 && encoder.sequence > 1 && encoder.threshold >= 0) {
        EXPECT_LE(item.input_rows, encoder.threshold);
      }
      ++checked;
      split += item.num_shards > 1;
      later_stages += data.Stage(item.encoder_rank) > 0;
    }
    // A group's assignments are those it has alone.
    StepLayout alone = step;
    alone.items.clear();
    for (const StepLayout::Item& item : step.items) {
      if (item.group == step.num_groups() - 1) alone.items.push_back(item);
    }
    StepLayout all = step;
    const auto unit_costs = [](const StepLayout& layout) {
      std::vector<ItemCost> costs;
      for (const StepLayout::Item& item : layout.items) costs.push_back({item.input_rows, 3});
      return costs;
    };
    DealItems(data, unit_costs(alone), &alone);
    DealItems(data, unit_costs(all), &all);
    size_t next = 0;
    for (const StepLayout::Item& item : all.items) {
      if (item.group != step.num_groups() - 1) continue;
      EXPECT_EQ(item, alone.items[next++]);
    }
  }
  EXPECT_GT(checked, 1000);
  EXPECT_GT(split, 300);
  EXPECT_GT(later_stages, 300);
}

TEST(EncoderDealTest, EncodersOfAGroupShareTheLoad) {
  // Vision fills rank 0: sound goes to rank 1, though it is as near.
  const DataLayout data{
      .stages = 2, .group_size = 2, .encoders = {{.name = "vision"}, {.name = "audio"}}};
  StepLayout step{.num_replicas = 1,
                  .num_microbatches = 2,
                  .group_size = 2,
                  .encoders = {{"vision", {}}, {"audio", {}}},
                  .microbatches = {{}, {}},
                  .items = {{.encoder = 0}, {.encoder = 1}},
                  .routes = {}};
  DealItems(data, {{.whole = 9}, {.whole = 9}}, &step);
  EXPECT_EQ(step.items[0].encoder_rank, 0);
  EXPECT_EQ(step.items[1].encoder_rank, 1);
}

TEST(EncoderDealTest, OneRankReplicasEncodeWhatTheyRead) {
  CounterRng rng(1, 4);
  DataLayout data = DataLayout::DataParallel(5);
  for (const char* name : {"vision", "audio", "indivisible"})
    data.encoders.push_back({.name = name});
  StepLayout step = RandomStep(data, rng);
  ASSERT_FALSE(step.items.empty());
  DealRandomly(data, rng, &step);
  for (const StepLayout::Item& item : step.items) {
    EXPECT_EQ(item.encoder_rank, item.replica);
    EXPECT_EQ(item.num_shards, 1);
  }
}

}  // namespace
}  // namespace omni::parallel
