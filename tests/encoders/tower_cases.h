// The small towers whose golden values tools/golden/towers.py writes, and packs for them.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "runtime/base/rng.h"
#include "tests/support/tower_harness.h"

namespace omni::testing {

struct TowerCase {
  const char* kind;
  const char* name;  // the encoder's in the recipe
  const char* yaml;
  bool is_audio;
};

inline constexpr int32_t kTowerOutput = 12;
inline constexpr TowerCase kTowerCases[] = {
    {"qwen3_vision", "vision",
     "{kind: qwen3_vision, hidden: 8, layers: 3, heads: 2, ffn: 12, patch: 4, merge: 2, "
     "temporal_patch: 2, position_side: 5, deepstack_layers: [0, 1]}",
     false},
    {"qwen2_audio", "audio",
     "{kind: qwen2_audio, mel_bands: 8, hidden: 8, layers: 2, heads: 2, ffn: 12, "
     "max_positions: 12}",
     true},
    {"seed_vision", "vision",
     "{kind: seed_vision, hidden: 16, layers: 2, heads: 2, ffn: 24, patch: 4, merge: 2}", false},
};

inline std::string TowerName(const ::testing::TestParamInfo<TowerCase>& info) {
  std::string name;
  bool upper = true;
  for (const char* c = info.param.kind; *c != 0; ++c) {
    if (*c != '_') name += upper ? static_cast<char>(std::toupper(*c)) : *c;
    upper = *c == '_';
  }
  return name;
}

// Grids {t, h, w}, or sounds {frames, rows handed over, 0}, end to end, with random contents.
inline parallel::MediaPack RandomPack(const encoders::Encoder& encoder, bool is_audio,
                                      const std::vector<std::vector<int32_t>>& shapes) {
  const encoders::InputGeometry geometry = encoder.geometry();
  parallel::MediaPack pack;
  pack.dtype = is_audio ? DType::kFloat32 : DType::kUInt8;
  pack.row_elements =
      is_audio ? geometry.mel_bands : 3 * geometry.temporal_patch * geometry.patch * geometry.patch;
  int64_t rows = 0, outputs = 0;
  for (const std::vector<int32_t>& shape : shapes) {
    parallel::MediaItem item{.t = shape[0], .h = shape[1], .w = shape[2]};
    if (is_audio) item.h = item.w = 0;
    item.input_row = rows;
    item.num_input_rows = is_audio ? shape[1] : int64_t{item.t} * item.h * item.w;
    item.num_output_rows = encoder.NumOutputRows(item);
    rows += item.num_input_rows;
    outputs += item.num_output_rows;
    pack.items.push_back(item);
  }
  for (int64_t row = 0; row < outputs; ++row) pack.token_rows.push_back(static_cast<int32_t>(row));
  const int64_t elements = rows * pack.row_elements;
  const CounterRng rng(5, 1);
  pack.payload.resize(elements * SizeOf(pack.dtype));
  for (int64_t i = 0; i < elements; ++i) {
    if (is_audio) {
      reinterpret_cast<float*>(pack.payload.data())[i] = static_cast<float>(rng.Normal(i));
    } else {
      pack.payload[i] = static_cast<uint8_t>(128 + 40 * std::clamp(rng.Normal(i), -3.0, 3.0));
    }
  }
  return pack;
}

// Several items of a tower's kind.
inline std::vector<std::vector<int32_t>> SomeShapes(bool is_audio) {
  if (is_audio) return {{24, 24, 0}, {9, 11, 0}, {23, 24, 0}, {1, 3, 0}, {4, 6, 0}};
  return {{1, 4, 6}, {2, 2, 4}, {1, 2, 2}, {1, 8, 2}};
}

// Item `index` of `pack` by itself.
inline parallel::MediaPack OnlyItem(const parallel::MediaPack& pack, size_t index) {
  parallel::MediaPack one;
  one.dtype = pack.dtype;
  one.row_elements = pack.row_elements;
  parallel::MediaItem item = pack.items[index];
  const int64_t row_bytes = pack.row_elements * SizeOf(pack.dtype);
  const auto begin = pack.payload.begin() + item.input_row * row_bytes;
  one.payload.assign(begin, begin + item.num_input_rows * row_bytes);
  item.input_row = 0;
  one.items = {item};
  for (int64_t row = 0; row < item.num_output_rows; ++row) {
    one.token_rows.push_back(static_cast<int32_t>(row));
  }
  return one;
}

}  // namespace omni::testing
