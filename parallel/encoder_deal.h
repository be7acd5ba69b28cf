// Who encodes what: items are dealt out by cost, so that no rank has more than its share.
//
// What is dealt together is a group: all items of one encoder in the microbatches of a group, of
// all replicas of a domain (data_layout.h). kUniform, kUpfront and kRecompute deal over the
// domain's ranks on all stages, kFirstStage over those on the first. Within a group the encoders
// are dealt one after another, each on top of the loads of those before it.
//
// Items of more input rows than a threshold are split over one sequence group, of which every
// member then pays cost / sequence and what splitting costs it; others lie whole on one rank. Long
// ones come first, then whole ones, each by descending cost (ties: the earlier item), each to where
// the load is lowest (Graham's LPT rule). Of equal loads microbatch k takes stage k mod stages,
// then the lowest rank.
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

// What a split item costs every rank that takes part, beyond its share of the work: as much as so
// many of its own rows. With fewer rows than that, products with the weights take as long as to
// read the weights.
inline constexpr int64_t kSplitRows = 256;

// What items weigh. Both functions are given or neither: they are in one unit, FLOPs or, if null,
// input rows, and the same for all encoders. Functions of their arguments alone, >= 0.
struct EncodeCosts {
  // Of encoding an item whole.
  std::function<int64_t(int32_t encoder, const MediaItem& item)> item;
  // What splitting it costs every rank that takes part, beyond its share.
  std::function<int64_t(int32_t encoder, const MediaItem& item)> split;
};

// What splitting an item costs by that rule, in the unit of its `cost`.
int64_t SplitCost(int64_t cost, const MediaItem& item);

// Of one item, as EncodeCosts has it.
struct ItemCost {
  int64_t whole = 0, split = 0;
};
ItemCost CostOf(const EncodeCosts& costs, int32_t encoder, const MediaItem& item);

// One item of a group, and where it goes.
struct DealItem {
  int64_t cost = 0;
  int64_t input_rows = 0;
  int32_t microbatch = 0;
  int64_t split_cost = 0;
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
                             int64_t threshold, std::vector<int64_t>* loads);

// Sets encoder_rank and num_shards of all items of a layout whose other members are set. `costs`:
// by item.
void DealItems(const DataLayout& data, absl::Span<const ItemCost> costs, StepLayout* layout);

}  // namespace omni::parallel
