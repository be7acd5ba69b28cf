// Who encodes what: items are dealt out by cost, so that no rank has more than its share.
//
// What is dealt together is a group: all items of one encoder in the microbatches of a group, of
// all replicas of a domain (data_layout.h). kUniform, kUpfront and kRecompute deal over the
// domain's ranks on all stages, kFirstStage over those on the first. Within a group the encoders
// are dealt one after another, each on top of the loads of those before it.
//
// Items of more input rows than a threshold are split over one sequence group, of which every
// member then pays cost / sequence + split_overhead; others lie whole on one rank. Long ones come
// first, then whole ones, each by descending cost (ties: the earlier item), each to where the load
// is lowest (Graham's LPT rule). Of equal loads microbatch k takes stage k mod stages, then the
// lowest rank.
//
// kThresholdAuto chooses for each group and domain, among 0 (all are split), the lengths of its
// items (at most kThresholdCandidates in all, evenly chosen) and none, the threshold of the lowest
// slowest rank, of equals the highest. It is a function of the group's lengths and costs alone.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/types/span.h"
#include "parallel/data_layout.h"
#include "parallel/pack.h"
#include "parallel/step_layout.h"

namespace omni::parallel {

inline constexpr int32_t kThresholdCandidates = 16;

// In any one unit, the same for all encoders.
struct EncodeCosts {
  // Of encoding an item whole, >= 0; null: its input rows. Must be a function of its arguments.
  std::function<int64_t(int32_t encoder, const MediaItem& item)> item;
  // What a split item costs every rank that takes part, beyond its share of the work.
  int64_t split_overhead = 256;
};

// One item of a group, and where it goes.
struct DealItem {
  int64_t cost = 0;
  int64_t input_rows = 0;
  int32_t microbatch = 0;
};
struct Dealt {
  int32_t rank = 0;  // of the job; the first where it is split
  int32_t num_shards = 1;
  bool operator==(const Dealt&) const = default;
};

// Some ranks: [first, first + count) of every one of `stages` stages, `stage_ranks` apart.
struct DealRanks {
  int32_t stages = 1, stage_ranks = 1;
  int32_t first = 0, count = 1;
  int32_t sequence = 1;  // divides count; 1: nothing is split
};

// `threshold`: input rows, or kThresholdAuto, kThresholdNone. `loads`, by rank of the job: what
// they have already; what they get is added.
std::vector<Dealt> DealGroup(absl::Span<const DealItem> items, const DealRanks& ranks,
                             int64_t threshold, int64_t split_overhead,
                             std::vector<int64_t>* loads);

// Sets encoder_rank and num_shards of all items of a layout whose other members are set. `costs`:
// by item.
void DealItems(const DataLayout& data, absl::Span<const int64_t> costs, int64_t split_overhead,
               StepLayout* layout);

}  // namespace omni::parallel
