// Random schedules, small ones mostly.
#pragma once

#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "parallel/schedule/build.h"

namespace omni::parallel {

inline ScheduleOptions RandomSchedule(std::mt19937& random) {
  const auto below = [&](int32_t bound) { return static_cast<int32_t>(random() % bound); };
  ScheduleOptions options;
  options.schedule = static_cast<ScheduleKind>(below(5));
  options.joint = static_cast<JointKind>(below(6));
  options.ranks = 1 + below(below(4) == 0 ? 12 : 5);
  if (options.schedule == ScheduleKind::kInterleaved) options.chunks_per_rank = 2 + below(3);
  if (options.schedule == ScheduleKind::kZbV) options.chunks_per_rank = 2;
  options.microbatches = 1 + below(below(4) == 0 ? 40 : 12);
  options.q = 1 + below(below(2) == 0 ? 3 : 1);
  options.groups_ahead = 1 + below(4);
  for (int32_t encoder = below(4); encoder > 0; --encoder) {
    options.encoders.push_back({.trains = below(3) > 0});
  }
  options.row_rounds = below(2) == 0;
  if (options.joint == JointKind::kDisaggregated) {
    ++options.ranks;
    options.encoder_ranks = 1 + below(options.ranks - 1);
  }
  return options;
}

inline std::string ToString(const ScheduleOptions& options) {
  std::string text = absl::StrCat(
      "schedule ", static_cast<int>(options.schedule), " joint ", static_cast<int>(options.joint),
      " ranks ", options.ranks, " (", options.encoder_ranks, " encode) chunks ",
      options.chunks_per_rank, " microbatches ", options.microbatches, " q ", options.q,
      " groups_ahead ", options.groups_ahead, options.row_rounds ? " row rounds" : "", " encoders");
  for (const ScheduledEncoder& encoder : options.encoders) {
    absl::StrAppend(&text, encoder.trains ? " trains" : " frozen");
  }
  return text;
}

}  // namespace omni::parallel
