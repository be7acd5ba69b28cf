// How one long sample of an encoder is cut over the ranks of a sequence group.
//
// A sample is cut at multiples of its encoder's unit: the fewest input rows, in pack order, that
// make output rows by themselves (a cell of merge x merge patches; a chunk of sound). The last unit
// may be shorter. Of U units shard s of n has [U s / n, U (s + 1) / n): as even as it gets, in
// order, and none for some shards where U < n.
//
//   7 units over 3 shards: 0 1 | 2 3 | 4 5 6        2 units over 4 shards: - | 0 | - | 1
#pragma once

#include <cstdint>

#include "parallel/group.h"
#include "parallel/pack.h"

namespace omni::parallel {

// Consecutive units of a sample, or rows of it.
struct UnitRange {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
  bool operator==(const UnitRange&) const = default;
};

// `shard` of `num_shards` of `units` units. units >= 0, 0 <= shard < num_shards.
UnitRange ShardUnits(int64_t units, int32_t shard, int32_t num_shards);

// What a sample is cut by; the same numbers stand in an encoder's InputGeometry.
struct SampleUnit {
  int64_t input_rows = 0;   // 0: samples cannot be split
  int64_t output_rows = 0;  // made of so many input rows; the last unit of a sample may make fewer
  // Its neighbours' input rows that a shard with any units reads as well (of convolutions across
  // the bound), as far as the sample goes.
  int64_t rows_before = 0, rows_after = 0;
  bool operator==(const SampleUnit&) const = default;

  int64_t NumUnits(const MediaItem& item) const;
  UnitRange Units(const MediaItem& item, int32_t shard, int32_t num_shards) const;
  // The shard's rows of an item: of its input, with those of its neighbours; and of its output.
  UnitRange InputRows(const MediaItem& item, int32_t shard, int32_t num_shards) const;
  UnitRange OutputRows(const MediaItem& item, int32_t shard, int32_t num_shards) const;
};

// This rank's place in a sequence group: ring x ulysses ranks, ulysses fastest, shards in that
// order. An encoder's heads are a multiple of the ulysses ranks. By default: alone, with all of a
// sample.
struct SampleShard {
  Group ulysses, ring;

  int32_t index() const { return ring.rank() * ulysses.size() + ulysses.rank(); }
  int32_t num_shards() const { return ring.size() * ulysses.size(); }
  bool is_whole() const { return num_shards() == 1; }
};

// What the shard holds of a pack whose items are all split: the items as they are but for
// `input_row`, the payload and token_rows of its own rows only. `pack` has all rows.
MediaPack ShardPack(const MediaPack& pack, const SampleUnit& unit, int32_t shard,
                    int32_t num_shards);

}  // namespace omni::parallel
