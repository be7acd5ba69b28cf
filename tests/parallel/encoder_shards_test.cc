// Cutting samples over a sequence group: every unit is somebody's, in order and evenly, and rows
// follow their units.
#include "parallel/encoder_shards.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace omni::parallel {
namespace {

TEST(EncoderShardsTest, UnitsAreCutEvenlyAndInOrder) {
  for (const int64_t units : {0, 1, 2, 3, 5, 7, 12, 1000}) {
    for (const int32_t shards : {1, 2, 3, 4, 7}) {
      int64_t next = 0, fewest = units, most = 0;
      for (int32_t shard = 0; shard < shards; ++shard) {
        const UnitRange range = ShardUnits(units, shard, shards);
        EXPECT_EQ(range.begin, next);
        next = range.end;
        fewest = std::min(fewest, range.size());
        most = std::max(most, range.size());
      }
      EXPECT_EQ(next, units);
      EXPECT_LE(most - fewest, 1);
    }
  }
  EXPECT_EQ(ShardUnits(7, 2, 3), (UnitRange{4, 7}));
  EXPECT_EQ(ShardUnits(2, 0, 4), (UnitRange{0, 0}));
  EXPECT_EQ(ShardUnits(2, 1, 4), (UnitRange{0, 1}));
}

TEST(EncoderShardsTest, ALastUnitMayBeShorter) {
  const SampleUnit unit{.input_rows = 12, .output_rows = 3};
  const MediaItem item{.t = 26, .num_input_rows = 26, .num_output_rows = 6};
  EXPECT_EQ(unit.NumUnits(item), 3);
  EXPECT_EQ(unit.InputRows(item, 0, 2), (UnitRange{0, 12}));
  EXPECT_EQ(unit.OutputRows(item, 0, 2), (UnitRange{0, 3}));
  EXPECT_EQ(unit.InputRows(item, 1, 2), (UnitRange{12, 26}));
  EXPECT_EQ(unit.OutputRows(item, 1, 2), (UnitRange{3, 6}));
  // The last unit alone: two rows go in and none comes out.
  EXPECT_EQ(unit.InputRows(item, 2, 3), (UnitRange{24, 26}));
  EXPECT_EQ(unit.OutputRows(item, 2, 3), (UnitRange{6, 6}));
}

TEST(EncoderShardsTest, ShardsOfAPackAreThePack) {
  const SampleUnit unit{.input_rows = 2, .output_rows = 1};
  MediaPack pack{.row_elements = 3};
  for (const int64_t rows : {10, 2, 5}) {
    pack.items.push_back({.t = 1,
                          .input_row = pack.num_rows(),
                          .num_input_rows = rows,
                          .num_output_rows = rows / 2});
    for (int64_t i = 0; i < rows * 3; ++i) {
      pack.payload.push_back(static_cast<uint8_t>(pack.payload.size()));
    }
    for (int64_t i = 0; i < rows / 2; ++i) {
      pack.token_rows.push_back(static_cast<int32_t>(100 + pack.token_rows.size()));
    }
  }
  for (const int32_t shards : {1, 3, 4}) {
    std::vector<std::vector<uint8_t>> payloads(3);
    std::vector<std::vector<int32_t>> token_rows(3);
    for (int32_t shard = 0; shard < shards; ++shard) {
      const MediaPack part = ShardPack(pack, unit, shard, shards);
      ASSERT_EQ(part.items.size(), 3u);
      auto row = part.token_rows.begin();
      for (size_t i = 0; i < 3; ++i) {
        EXPECT_EQ(part.items[i].num_input_rows, pack.items[i].num_input_rows);
        const int64_t rows = unit.InputRows(part.items[i], shard, shards).size();
        const auto begin = part.payload.begin() + part.items[i].input_row * 3;
        payloads[i].insert(payloads[i].end(), begin, begin + rows * 3);
        const int64_t outputs = unit.OutputRows(part.items[i], shard, shards).size();
        token_rows[i].insert(token_rows[i].end(), row, row + outputs);
        row += outputs;
      }
      EXPECT_EQ(row, part.token_rows.end());
    }
    std::vector<uint8_t> payload;
    std::vector<int32_t> rows;
    for (size_t i = 0; i < 3; ++i) {
      payload.insert(payload.end(), payloads[i].begin(), payloads[i].end());
      rows.insert(rows.end(), token_rows[i].begin(), token_rows[i].end());
    }
    EXPECT_EQ(payload, pack.payload);
    EXPECT_EQ(rows, pack.token_rows);
  }
}

TEST(EncoderShardsDeathTest, WhatCannotBeSplitIsNot) {
  EXPECT_DEATH(SampleUnit{}.NumUnits({.num_input_rows = 4}), "input_rows");
  EXPECT_DEATH(ShardUnits(4, 2, 2), "shard");
}

}  // namespace
}  // namespace omni::parallel
