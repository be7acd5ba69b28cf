// What schedules promise, as formulas: how long a step of equal stages takes and how much lives at
// once. The replay is held against them (tests/parallel/schedule/closed_forms_test.cc) and shown
// beside them (`omnitrain replay`).
//
// p ranks, v chunks a rank, m microbatches; t = forward + input_backward + weight_gradient of a
// stage. Sources: GPipe (arXiv 1811.06965), 1F1B and interleaved (2104.04473), ZB-H1 and ZB-V
// (2401.10241).
#pragma once

#include <cstdint>
#include <optional>

#include "parallel/schedule/build.h"
#include "parallel/schedule/replay.h"

namespace omni::parallel {

// Seconds (or any unit) a microbatch takes, the same for all.
struct StageCosts {
  // Through all chunks of one of `ranks` ranks; a pipeline with fewer decoder ranks takes longer.
  double forward = 1, input_backward = 1, weight_gradient = 1;
  // Through one encoder, if one rank does it alone.
  double encode = 0, encode_backward = 0;

  double stage() const { return forward + input_backward + weight_gradient; }
};

// Chunks of a rank are equal, groups are dealt evenly over the ranks that encode them; encoding
// again (kRecompute) is part of the encoder's backward. Transfers and the end of a step take none.
ActionTime EqualTimes(const ScheduleOptions& options, const StageCosts& costs);

// How long a step takes: m t + bubble + what the encoders take.
//   GPipe, 1F1B   bubble (p - 1) t
//   interleaved   bubble (p - 1) t / v, if p divides m
//   ZB-H1         bubble (p - 1) (forward + input_backward - weight_gradient), if m >= p and the
//                 weight gradient takes no longer than either
//   ZB-V          bubble (p - 1) forward / 2, between the first action of all ranks and the last
//                 (none between those of each rank), if the three take equally long and m >= 2 p
//   encoders      uniform, upfront, recompute: m sum(e) / p, if p divides m (sum(e): all encoders,
//                 there and back); first stage, on 1F1B with q = 1 and m >= p, a step of
//                 m (t + sum(e)) + (p - 1) (max(0, backward - sum(encode)) +
//                                           max(0, forward - sum(encode_backward)))
// Nothing where there is no formula.
std::optional<double> ClosedFormStep(const ScheduleOptions& options, const StageCosts& costs);

// Most (chunk, microbatch) that `rank` keeps:
//   GPipe m; 1F1B min(m, p - rank); ZB-H1 min(m, p); ZB-V 2 min(m, p) halves of a stage;
//   interleaved min(v m, 2 (p - 1 - rank) + (v - 1) p + 1) v-ths of a stage
// Most groups that any rank keeps, with d microbatches between chunk 0's forward and its backward
// (1F1B and ZB-H1 p, interleaved and ZB-V 2 p, GPipe m):
//   uniform groups_ahead + 1 + ceil(d / (q p)), on 1F1B groups_ahead + 2; upfront all; recompute 1;
//   first stage as many as d microbatches may touch
std::optional<int32_t> LiveActivationsBound(const ScheduleOptions& options, int32_t rank);
std::optional<int32_t> LiveGroupsBound(const ScheduleOptions& options);

}  // namespace omni::parallel
