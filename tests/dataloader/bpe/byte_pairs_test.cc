#include "dataloader/bpe/byte_pairs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>

namespace omni::dataloader {
namespace {

using ::testing::ElementsAre;

std::vector<int32_t> BytesThemselves() {
  std::vector<int32_t> ids(256);
  for (int i = 0; i < 256; ++i) ids[i] = i;
  return ids;
}

// The definition, step by step: the pair of the least rank, the leftmost of equals.
std::vector<int32_t> Definition(const std::vector<Merge>& merges, const std::string& word) {
  std::map<std::pair<int32_t, int32_t>, std::pair<size_t, int32_t>> table;
  for (size_t i = 0; i < merges.size(); ++i) {
    table[{merges[i].left, merges[i].right}] = {i, merges[i].merged};
  }
  std::vector<int32_t> ids;
  for (const char c : word) ids.push_back(static_cast<unsigned char>(c));
  for (;;) {
    size_t best = ids.size(), best_rank = merges.size();
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto it = table.find({ids[i], ids[i + 1]});
      if (it != table.end() && it->second.first < best_rank) {
        best = i;
        best_rank = it->second.first;
      }
    }
    if (best == ids.size()) return ids;
    ids[best] = table[{ids[best], ids[best + 1]}].second;
    ids.erase(ids.begin() + static_cast<int64_t>(best) + 1);
  }
}

// Merges over the letters a to d that build on each other.
std::vector<Merge> RandomMerges(std::mt19937* random) {
  std::vector<int32_t> known = {'a', 'b', 'c', 'd'};
  std::vector<Merge> merges;
  for (int32_t next = 256; next < 256 + 60; ++next) {
    merges.push_back({known[(*random)() % known.size()], known[(*random)() % known.size()], next});
    known.push_back(next);
  }
  return merges;
}

TEST(BytePairsTest, IsTheDefinitionForWordsOfAnyLength) {
  std::mt19937 random(7);
  for (int round = 0; round < 20; ++round) {
    BytePairOptions options{.byte_ids = BytesThemselves(), .merges = RandomMerges(&random)};
    const std::vector<Merge> merges = options.merges;
    const BytePairs pairs(std::move(options));
    for (const size_t size : {0, 1, 2, 3, 7, 43, 44, 47, 48, 49, 50, 97, 300}) {
      for (int sample = 0; sample < 20; ++sample) {
        std::string word(size, ' ');
        for (char& c : word) c = static_cast<char>('a' + random() % 4);
        std::vector<int32_t> once = {-7}, again;
        pairs.Append(word, &once);
        pairs.Append(word, &again);  // from the table
        std::vector<int32_t> expected = Definition(merges, word);
        ASSERT_EQ(again, expected) << word;
        expected.insert(expected.begin(), -7);
        ASSERT_EQ(once, expected) << word;
      }
    }
  }
}

TEST(BytePairsTest, RunsOfOneLetterMergeFromTheLeft) {
  const BytePairs pairs({.byte_ids = BytesThemselves(), .merges = {{'a', 'a', 300}}});
  for (const size_t size : {3, 49}) {
    std::vector<int32_t> ids, expected(size / 2, 300);
    pairs.Append(std::string(size, 'a'), &ids);
    expected.push_back('a');
    EXPECT_EQ(ids, expected);
  }
}

TEST(BytePairsTest, LaterMergesOfTheSamePairHold) {
  const BytePairs pairs({.byte_ids = BytesThemselves(),
                         .merges = {{'a', 'b', 300}, {'b', 'c', 301}, {'a', 'b', 302}}});
  std::vector<int32_t> ids;
  pairs.Append("abc", &ids);
  EXPECT_THAT(ids, ElementsAre('a', 301));
  pairs.Append("ab", &ids);
  EXPECT_THAT(ids, ElementsAre('a', 301, 302));
}

TEST(BytePairsTest, WholeWordsComeBeforeMerges) {
  const std::string longer(60, 'a');
  const BytePairs pairs({.byte_ids = BytesThemselves(),
                         .merges = {{'a', 'b', 300}},
                         .whole_words = {{"abc", 400}, {longer, 401}}});
  std::vector<int32_t> ids;
  pairs.Append("abc", &ids);
  pairs.Append("abcd", &ids);
  pairs.Append(longer, &ids);
  EXPECT_THAT(ids, ElementsAre(400, 300, 'c', 'd', 401));
}

TEST(BytePairsTest, WordsOfOneSlotDoNotMixUp) {
  std::mt19937 random(11);
  BytePairOptions options{.byte_ids = BytesThemselves(), .merges = RandomMerges(&random)};
  const BytePairs pairs(std::move(options));
  // Far more words than slots.
  for (int i = 0; i < 100000; ++i) {
    std::string word(2 + random() % 10, ' ');
    for (char& c : word) c = static_cast<char>('a' + random() % 4);
    std::vector<int32_t> cached, plain;
    pairs.Append(word, &cached);
    pairs.AppendUncached(word, &plain);
    ASSERT_EQ(cached, plain) << word;
  }
}

}  // namespace
}  // namespace omni::dataloader
