#include "parallel/encoder_shards.h"

#include <algorithm>

#include "runtime/base/check.h"

namespace omni::parallel {
namespace {

// `units` in rows, of which a whole unit has `unit_rows` and the sample `num_rows`.
UnitRange InRows(const UnitRange& units, int64_t unit_rows, int64_t num_rows) {
  return {std::min(units.begin * unit_rows, num_rows), std::min(units.end * unit_rows, num_rows)};
}

}  // namespace

UnitRange ShardUnits(int64_t units, int32_t shard, int32_t num_shards) {
  OMNI_CHECK_GE(units, 0);
  OMNI_CHECK(0 <= shard && shard < num_shards);
  return {units * shard / num_shards, units * (shard + 1) / num_shards};
}

int64_t SampleUnit::NumUnits(const MediaItem& item) const {
  OMNI_CHECK_GT(input_rows, 0);
  return (item.num_input_rows + input_rows - 1) / input_rows;
}

UnitRange SampleUnit::Units(const MediaItem& item, int32_t shard, int32_t num_shards) const {
  return ShardUnits(NumUnits(item), shard, num_shards);
}

UnitRange SampleUnit::InputRows(const MediaItem& item, int32_t shard, int32_t num_shards) const {
  UnitRange rows = InRows(Units(item, shard, num_shards), input_rows, item.num_input_rows);
  if (rows.size() == 0) return rows;
  rows.begin = std::max<int64_t>(0, rows.begin - rows_before);
  rows.end = std::min(rows.end + rows_after, item.num_input_rows);
  return rows;
}

UnitRange SampleUnit::OutputRows(const MediaItem& item, int32_t shard, int32_t num_shards) const {
  return InRows(Units(item, shard, num_shards), output_rows, item.num_output_rows);
}

MediaPack ShardPack(const MediaPack& pack, const SampleUnit& unit, int32_t shard,
                    int32_t num_shards) {
  MediaPack part{.dtype = pack.dtype, .row_elements = pack.row_elements};
  const int64_t row_bytes = int64_t{pack.row_elements} * SizeOf(pack.dtype);
  auto token_row = pack.token_rows.begin();
  for (MediaItem item : pack.items) {
    const UnitRange in = unit.InputRows(item, shard, num_shards);
    const UnitRange out = unit.OutputRows(item, shard, num_shards);
    const auto payload = pack.payload.begin() + item.input_row * row_bytes;
    item.input_row = part.num_rows();
    part.payload.insert(part.payload.end(), payload + in.begin * row_bytes,
                        payload + in.end * row_bytes);
    part.token_rows.insert(part.token_rows.end(), token_row + out.begin, token_row + out.end);
    token_row += item.num_output_rows;
    part.items.push_back(item);
  }
  return part;
}

}  // namespace omni::parallel
