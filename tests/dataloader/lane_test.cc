#include "dataloader/lane.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

namespace omni::dataloader {
namespace {

LaneOrder MakeLane(int32_t lane, int32_t num_lanes, std::vector<int64_t> sizes, int32_t window = 10,
                   uint64_t seed = 1) {
  std::vector<uint64_t> streams;
  for (size_t i = 0; i < sizes.size(); ++i) streams.push_back(100 + i);
  return LaneOrder({.seed = seed,
                    .lane = lane,
                    .num_lanes = num_lanes,
                    .window = window,
                    .source_streams = streams,
                    .source_sizes = std::move(sizes)});
}

// All draws of the first `num_windows` windows.
std::vector<SampleKey> DrawWindows(const LaneOrder& lane, int64_t num_windows,
                                   const std::vector<double>& weights) {
  LaneState state{.cursors = std::vector<int64_t>(weights.size(), 0)};
  std::vector<SampleKey> draws;
  for (; state.window < num_windows; ++state.window) {
    std::vector<int64_t> after;
    const auto window = lane.Draw(state, weights, &after);
    draws.insert(draws.end(), window.begin(), window.end());
    state.cursors = after;
  }
  return draws;
}

TEST(LaneOrderTest, LanesShareASourceWithoutOverlapAndEpochsReshuffle) {
  const int64_t size = 103;
  for (const int32_t num_lanes : {1, 3, 4, 7}) {
    std::set<int64_t> seen;
    for (int32_t lane = 0; lane < num_lanes; ++lane) {
      const LaneOrder order = MakeLane(lane, num_lanes, {size}, 1);
      const int64_t share = order.share_size(0);
      std::vector<int64_t> first, second;
      const auto draws = DrawWindows(order, 2 * share, {1.0});
      for (int64_t i = 0; i < share; ++i) {
        first.push_back(draws[i].index);
        second.push_back(draws[share + i].index);
        EXPECT_TRUE(seen.insert(first.back()).second) << "sample " << first.back() << " twice";
        EXPECT_EQ(draws[share + i].draw, share + i);
      }
      EXPECT_NE(first, second);
      EXPECT_EQ(std::set<int64_t>(first.begin(), first.end()),
                std::set<int64_t>(second.begin(), second.end()));
    }
    EXPECT_EQ(static_cast<int64_t>(seen.size()), size);
  }
}

TEST(LaneOrderTest, SourceSmallerThanTheLanesIsEveryLanes) {
  for (int32_t lane = 0; lane < 5; ++lane) {
    const LaneOrder order = MakeLane(lane, 5, {3}, 1);
    EXPECT_EQ(order.share_size(0), 3);
    std::set<int64_t> seen;
    for (const SampleKey& key : DrawWindows(order, 3, {1.0})) seen.insert(key.index);
    EXPECT_EQ(seen, (std::set<int64_t>{0, 1, 2}));
  }
}

TEST(LaneOrderTest, EveryWindowHasTheMixtureUpToOneDraw) {
  const std::vector<double> weights = {24.0 / 61, 10.0 / 61, 24.0 / 61, 3.0 / 61};
  const LaneOrder order = MakeLane(2, 4, {1000, 50, 400, 20}, 64);
  LaneState state{.cursors = {0, 0, 0, 0}};
  std::vector<int64_t> total(4, 0);
  const int64_t num_windows = 500;
  for (; state.window < num_windows; ++state.window) {
    std::vector<int64_t> after;
    std::vector<int64_t> counts(4, 0);
    for (const SampleKey& key : order.Draw(state, weights, &after)) ++counts[key.source];
    for (int i = 0; i < 4; ++i) {
      EXPECT_GE(counts[i], std::floor(64 * weights[i]));
      EXPECT_LE(counts[i], std::ceil(64 * weights[i]) + 1);
      EXPECT_EQ(after[i] - state.cursors[i], counts[i]);
      total[i] += counts[i];
    }
    state.cursors = after;
  }
  for (int i = 0; i < 4; ++i) {
    EXPECT_NEAR(total[i] / (64.0 * num_windows), weights[i], 0.005) << i;
  }
}

TEST(LaneOrderTest, RareSourcesAreDrawnInTheLongRun) {
  const LaneOrder order = MakeLane(0, 1, {10, 10}, 4);
  int64_t rare = 0;
  for (const SampleKey& key : DrawWindows(order, 2000, {0.99, 0.01})) rare += key.source;
  EXPECT_NEAR(rare / 8000.0, 0.01, 0.004);
}

TEST(LaneOrderTest, SourcesWithoutWeightAreNeverDrawnFromEvenIfEmpty) {
  const LaneOrder order = MakeLane(0, 1, {10, 0, 10, 0}, 7);
  for (const SampleKey& key : DrawWindows(order, 300, {0.3, 0, 0.7, 0})) {
    EXPECT_TRUE(key.source == 0 || key.source == 2);
  }
}

TEST(LaneOrderTest, DependsOnSeedAndLaneOnly) {
  const auto draws = DrawWindows(MakeLane(1, 2, {50, 60}), 5, {0.5, 0.5});
  EXPECT_EQ(draws, DrawWindows(MakeLane(1, 2, {50, 60}), 5, {0.5, 0.5}));
  EXPECT_NE(draws, DrawWindows(MakeLane(0, 2, {50, 60}), 5, {0.5, 0.5}));
  EXPECT_NE(draws, DrawWindows(MakeLane(1, 2, {50, 60}, 10, 2), 5, {0.5, 0.5}));
}

TEST(LaneOrderTest, SequenceOrderIsAPermutationThatDiffersByWindow) {
  const LaneOrder order = MakeLane(0, 1, {10});
  std::set<std::vector<int32_t>> orders;
  for (int64_t window = 0; window < 20; ++window) {
    const auto sequences = order.SequenceOrder(window, 8);
    EXPECT_EQ(std::set<int32_t>(sequences.begin(), sequences.end()).size(), 8u);
    orders.insert(sequences);
  }
  EXPECT_GT(orders.size(), 15u);
  EXPECT_TRUE(order.SequenceOrder(0, 0).empty());
}

}  // namespace
}  // namespace omni::dataloader
