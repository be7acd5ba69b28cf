#include "encoders/position_taps.h"

#include <algorithm>

#include "runtime/base/check.h"

namespace omni::encoders {
namespace {

// A coordinate between two lines of the table.
struct Place {
  int32_t below, above;
  float fraction;  // of the way from below to above
};

// torch.linspace(0, side - 1, count): from the start in the first half, from the end in the second.
std::vector<Place> Places(int32_t side, int32_t count) {
  std::vector<Place> places;
  const float end = static_cast<float>(side - 1);
  const float step = count > 1 ? end / static_cast<float>(count - 1) : 0.0f;
  for (int32_t i = 0; i < count; ++i) {
    float at = step * static_cast<float>(i);
    if (count > 1 && i >= count / 2) at = end - step * static_cast<float>(count - 1 - i);
    const auto below = static_cast<int32_t>(at);
    places.push_back({below, std::min(below + 1, side - 1), at - static_cast<float>(below)});
  }
  return places;
}

}  // namespace

PositionTaps MakePositionTaps(const std::vector<parallel::MediaItem>& items, int32_t merge,
                              int32_t side) {
  OMNI_CHECK_GE(side, 1);
  PositionTaps taps;
  const auto add = [&](const Place& row, const Place& column) {
    for (const bool lower : {false, true}) {
      for (const bool right : {false, true}) {
        taps.taps_P4.push_back((lower ? row.above : row.below) * side +
                               (right ? column.above : column.below));
        taps.weights_P4.push_back((lower ? row.fraction : 1 - row.fraction) *
                                  (right ? column.fraction : 1 - column.fraction));
      }
    }
  };
  for (const parallel::MediaItem& item : items) {
    OMNI_CHECK_EQ(item.h % merge, 0);
    OMNI_CHECK_EQ(item.w % merge, 0);
    const std::vector<Place> rows = Places(side, item.h), columns = Places(side, item.w);
    for (int32_t frame = 0; frame < item.t; ++frame) {
      for (int32_t top = 0; top < item.h; top += merge) {
        for (int32_t left = 0; left < item.w; left += merge) {
          for (int32_t y = 0; y < merge; ++y) {
            for (int32_t x = 0; x < merge; ++x) add(rows[top + y], columns[left + x]);
          }
        }
      }
    }
  }
  return taps;
}

}  // namespace omni::encoders
