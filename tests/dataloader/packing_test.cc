#include "dataloader/packing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "runtime/base/rng.h"

namespace omni::dataloader {
namespace {

std::vector<int64_t> Loads(const std::vector<std::vector<int32_t>>& sequences,
                           const std::vector<int64_t>& tokens) {
  std::vector<int64_t> loads;
  for (const auto& sequence : sequences) {
    int64_t load = 0;
    for (const int32_t sample : sequence) load += tokens[sample];
    loads.push_back(load);
  }
  return loads;
}

TEST(PackingTest, NothingNeedsNoSequence) { EXPECT_TRUE(PackSequences({}, 10).empty()); }

TEST(PackingTest, OneSampleOfExactlyTheCapacity) {
  EXPECT_EQ(PackSequences({10}, 10), (std::vector<std::vector<int32_t>>{{0}}));
}

TEST(PackingTest, SequencesAreEquallyLongAndMixed) {
  const std::vector<int64_t> tokens = {20, 20, 60, 20, 60, 20};
  const auto sequences = PackSequences(tokens, 100);
  EXPECT_EQ(Loads(sequences, tokens), (std::vector<int64_t>{100, 100}));
  for (const auto& sequence : sequences) {
    EXPECT_EQ(
        std::count_if(sequence.begin(), sequence.end(), [&](int32_t i) { return tokens[i] == 60; }),
        1);
  }
}

TEST(PackingTest, FillsExactly) {
  // Spreading would put 4 on 6 and leave 3 for 7 as well; 10 and 10 either way.
  const std::vector<int64_t> tokens = {7, 6, 4, 3};
  const auto sequences = PackSequences(tokens, 10);
  EXPECT_EQ(sequences.size(), 2u);
  EXPECT_EQ(Loads(sequences, tokens), (std::vector<int64_t>{10, 10}));
}

TEST(PackingTest, EachSampleOnceAndNeverTooMuch) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    CounterRng rng(seed, 7);
    const int64_t capacity = 1 + static_cast<int64_t>(rng.NextBelow(200));
    std::vector<int64_t> tokens(rng.NextBelow(80));
    for (int64_t& n : tokens) n = 1 + static_cast<int64_t>(rng.NextBelow(capacity));
    const auto sequences = PackSequences(tokens, capacity);
    std::vector<int32_t> seen;
    for (const auto& sequence : sequences) {
      EXPECT_TRUE(std::is_sorted(sequence.begin(), sequence.end()));
      EXPECT_FALSE(sequence.empty());
      seen.insert(seen.end(), sequence.begin(), sequence.end());
    }
    std::sort(seen.begin(), seen.end());
    std::vector<int32_t> all(tokens.size());
    std::iota(all.begin(), all.end(), 0);
    EXPECT_EQ(seen, all) << "seed " << seed;
    int64_t sum = 0;
    for (const int64_t load : Loads(sequences, tokens)) {
      EXPECT_LE(load, capacity) << "seed " << seed;
      sum += load;
    }
    // Best fit leaves no two sequences that would fit into one.
    if (sequences.size() > 1) {
      EXPECT_GT(2 * sum, capacity * (static_cast<int64_t>(sequences.size()) - 1)) << seed;
    }
  }
}

TEST(PackingDeathTest, ASampleBeyondTheCapacityIsAMistakeOfOurs) {
  EXPECT_DEATH(PackSequences({11}, 10), "CHECK failed");
  EXPECT_DEATH(PackSequences({0}, 10), "CHECK failed");
}

}  // namespace
}  // namespace omni::dataloader
