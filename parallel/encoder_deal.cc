#include "parallel/encoder_deal.h"

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <tuple>
#include <utility>

#include "runtime/base/check.h"

namespace omni::parallel {
namespace {

constexpr int64_t kNoThreshold = std::numeric_limits<int64_t>::max();

struct Attempt {
  std::vector<Dealt> dealt;
  std::vector<int64_t> loads;
  int64_t slowest = 0;
};

// Some sequence groups (of one: single ranks) by load; a group's load is that of its busiest rank.
class Groups {
 public:
  Groups(const DealRanks& ranks, int32_t size, std::vector<int64_t>* loads)
      : size_(size), stage_ranks_(ranks.stage_ranks), loads_(*loads), of_stage_(ranks.stages) {
    for (int32_t stage = 0; stage < ranks.stages; ++stage) {
      for (int32_t index = 0; index < ranks.count; index += size) {
        Insert(stage * stage_ranks_ + ranks.first + index);
      }
    }
  }

  // Gives `share` to every rank of the group of lowest load, of equals the one on the microbatch's
  // own stage, then the first. Returns its first rank.
  int32_t Give(int32_t microbatch, int64_t share) {
    Entry lowest = *all_.begin();
    const auto own = of_stage_[microbatch % of_stage_.size()].begin();
    if (own->first == lowest.first) lowest = *own;
    const int32_t first = lowest.second;
    all_.erase(lowest);
    of_stage_[first / stage_ranks_].erase(lowest);
    for (int32_t rank = first; rank < first + size_; ++rank) loads_[rank] += share;
    Insert(first);
    return first;
  }

 private:
  using Entry = std::pair<int64_t, int32_t>;  // load, first rank

  void Insert(int32_t first) {
    const auto begin = loads_.begin() + first;
    const Entry entry = {*std::max_element(begin, begin + size_), first};
    all_.insert(entry);
    of_stage_[first / stage_ranks_].insert(entry);
  }

  const int32_t size_, stage_ranks_;
  std::vector<int64_t>& loads_;
  std::set<Entry> all_;
  std::vector<std::set<Entry>> of_stage_;
};

Attempt DealAt(absl::Span<const DealItem> items, absl::Span<const int32_t> by_cost,
               const DealRanks& ranks, int64_t threshold, const std::vector<int64_t>& loads) {
  Attempt attempt{.dealt = std::vector<Dealt>(items.size()), .loads = loads};
  for (const bool splits : {true, false}) {
    const int32_t size = splits ? ranks.sequence : 1;
    Groups groups(ranks, size, &attempt.loads);
    for (const int32_t i : by_cost) {
      if ((items[i].input_rows > threshold) != splits) continue;
      const int64_t share =
          splits ? (items[i].cost + size - 1) / size + items[i].split_cost : items[i].cost;
      attempt.dealt[i] = {.rank = groups.Give(items[i].microbatch, share), .num_shards = size};
    }
  }
  for (int32_t stage = 0; stage < ranks.stages; ++stage) {
    const auto begin = attempt.loads.begin() + stage * ranks.stage_ranks + ranks.first;
    attempt.slowest = std::max(attempt.slowest, *std::max_element(begin, begin + ranks.count));
  }
  return attempt;
}

// Descending: the first of equals wins, which is the highest.
std::vector<int64_t> Candidates(absl::Span<const DealItem> items) {
  std::vector<int64_t> lengths = {0};
  for (const DealItem& item : items) lengths.push_back(item.input_rows);
  std::sort(lengths.begin(), lengths.end(), std::greater<>());
  lengths.erase(std::unique(lengths.begin(), lengths.end()), lengths.end());
  // The longest length splits nothing, 0 splits all: both stay.
  const auto count = static_cast<int64_t>(lengths.size());
  if (count <= kThresholdCandidates) return lengths;
  std::vector<int64_t> some;
  for (int64_t i = 0; i < kThresholdCandidates; ++i) {
    some.push_back(lengths[i * (count - 1) / (kThresholdCandidates - 1)]);
  }
  return some;
}

}  // namespace

int64_t SplitCost(int64_t cost, const MediaItem& item) {
  if (item.num_input_rows == 0) return 0;
  return static_cast<int64_t>(static_cast<double>(cost) / item.num_input_rows * kSplitRows);
}

ItemCost CostOf(const EncodeCosts& costs, int32_t encoder, const MediaItem& item) {
  OMNI_CHECK(static_cast<bool>(costs.item) == static_cast<bool>(costs.split));
  if (!costs.item)
    return {.whole = item.num_input_rows, .split = SplitCost(item.num_input_rows, item)};
  return {.whole = costs.item(encoder, item), .split = costs.split(encoder, item)};
}

std::vector<Dealt> DealGroup(absl::Span<const DealItem> items, const DealRanks& ranks,
                             int64_t threshold, std::vector<int64_t>* loads) {
  OMNI_CHECK(ranks.sequence >= 1 && ranks.count % ranks.sequence == 0);
  OMNI_CHECK_LE((ranks.stages - 1) * ranks.stage_ranks + ranks.first + ranks.count,
                static_cast<int32_t>(loads->size()));
  std::vector<int32_t> by_cost(items.size());
  std::iota(by_cost.begin(), by_cost.end(), 0);
  std::stable_sort(by_cost.begin(), by_cost.end(),
                   [&](int32_t a, int32_t b) { return items[a].cost > items[b].cost; });
  std::vector<int64_t> candidates = {threshold};
  if (ranks.sequence == 1 || threshold == kThresholdNone) {
    candidates = {kNoThreshold};
  } else if (threshold == kThresholdAuto) {
    candidates = Candidates(items);
  }
  Attempt best;
  best.slowest = kNoThreshold;
  for (const int64_t candidate : candidates) {
    Attempt attempt = DealAt(items, by_cost, ranks, candidate, *loads);
    if (attempt.slowest < best.slowest) best = std::move(attempt);
  }
  *loads = std::move(best.loads);
  return std::move(best.dealt);
}

void DealItems(const DataLayout& data, absl::Span<const ItemCost> costs, StepLayout* layout) {
  OMNI_CHECK_EQ(costs.size(), layout->items.size());
  OMNI_CHECK(data.joint != JointKind::kDisaggregated);  // for simulation
  const int32_t num_stages = data.joint == JointKind::kFirstStage ? 1 : data.stages;
  // (group, encoder, domain) -> items
  std::map<std::tuple<int32_t, int32_t, int32_t>, std::vector<int32_t>> groups;
  for (size_t i = 0; i < layout->items.size(); ++i) {
    const StepLayout::Item& item = layout->items[i];
    groups[{item.group, item.encoder, item.replica / data.DomainReplicas(item.encoder)}].push_back(
        static_cast<int32_t>(i));
  }
  std::vector<int64_t> loads;
  int32_t last_group = -1;
  for (const auto& [key, members] : groups) {
    const auto& [group, encoder, domain] = key;
    if (group != last_group) loads.assign(data.num_ranks(), 0);
    last_group = group;
    const DataLayout::Encoder& parallel = data.encoders[encoder];
    const int32_t count = data.DomainReplicas(encoder) * data.sequence.num_ranks();
    const DealRanks ranks{.stages = num_stages,
                          .stage_ranks = data.stage_ranks(),
                          .first = domain * count,
                          .count = count,
                          .sequence = parallel.unit.input_rows > 0 ? parallel.sequence : 1};
    std::vector<DealItem> items;
    for (const int32_t i : members) {
      items.push_back({.cost = costs[i].whole,
                       .input_rows = layout->items[i].input_rows,
                       .microbatch = layout->items[i].microbatch,
                       .split_cost = costs[i].split});
    }
    const std::vector<Dealt> dealt = DealGroup(items, ranks, parallel.threshold, &loads);
    for (size_t i = 0; i < members.size(); ++i) {
      layout->items[members[i]].encoder_rank = dealt[i].rank;
      layout->items[members[i]].num_shards = dealt[i].num_shards;
    }
  }
}

}  // namespace omni::parallel
