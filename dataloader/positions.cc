#include "dataloader/positions.h"

#include <algorithm>
#include <cmath>

#include "runtime/base/check.h"

namespace omni::dataloader {

void MropePositions(absl::Span<const PositionSpan> spans, const PositionOptions& options,
                    absl::Span<float> temporal, absl::Span<float> height, absl::Span<float> width) {
  int64_t token = 0;
  int64_t start = 0;
  for (const PositionSpan& span : spans) {
    OMNI_CHECK_LE(token + span.num_tokens, static_cast<int64_t>(temporal.size()));
    if (span.t == 0 || options.rule == PositionRule::kSequential) {
      for (int64_t i = 0; i < span.num_tokens; ++i, ++token, ++start) {
        temporal[token] = height[token] = width[token] = static_cast<float>(start);
      }
      continue;
    }
    OMNI_CHECK_EQ(span.num_tokens, int64_t{span.t} * span.h * span.w);
    OMNI_CHECK(options.rule != PositionRule::kQwen3Vl || span.t == 1);
    const bool whole_seconds =
        options.rule == PositionRule::kQwen2_5Whole || options.rule == PositionRule::kQwen2_5Grid;
    const double seconds_per_grid =
        whole_seconds ? std::trunc(span.seconds_per_grid) : span.seconds_per_grid;
    int64_t last = start;
    for (int32_t t = 0; t < span.t; ++t) {
      const float seconds = static_cast<float>(t) * static_cast<float>(seconds_per_grid);
      const auto offset =
          static_cast<int64_t>(seconds * static_cast<float>(options.positions_per_second));
      for (int32_t h = 0; h < span.h; ++h) {
        for (int32_t w = 0; w < span.w; ++w, ++token) {
          temporal[token] = static_cast<float>(start + offset);
          height[token] = static_cast<float>(start + h);
          width[token] = static_cast<float>(start + w);
        }
      }
      if (options.rule != PositionRule::kQwen2_5Grid) last = std::max(last, start + offset);
    }
    last = std::max<int64_t>({last, start + span.h - 1, start + span.w - 1});
    start = last + 1;
  }
  OMNI_CHECK_EQ(token, static_cast<int64_t>(temporal.size()));
}

}  // namespace omni::dataloader
