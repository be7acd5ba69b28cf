#include "parallel/reshard.h"

#include <algorithm>
#include <map>
#include <tuple>

#include "absl/container/flat_hash_map.h"
#include "parallel/sequence_shards.h"
#include "runtime/base/check.h"

namespace omni::parallel {
namespace {

// Which rank of the first stage holds a token of a microbatch, and as which of its tokens.
struct Holder {
  int32_t sequence_index = 0;
  int32_t row = 0;
};

std::vector<Holder> HoldersOf(const StepLayout::Microbatch& microbatch, const DataLayout& data) {
  std::vector<Holder> holders(microbatch.tokens());
  const SequenceShards shards =
      ShardSequence(microbatch.cu_seqlens(), data.sequence, data.ring_threshold);
  for (int32_t index = 0; index < data.sequence.num_ranks(); ++index) {
    int32_t row = 0;
    for (const int32_t token : shards.TokensOf(index)) holders[token] = {index, row++};
  }
  return holders;
}

// A row on its way.
struct Row {
  int32_t from = 0, to = 0;  // ranks
  int32_t microbatch = 0;
  int32_t row = 0;         // among the receiver's tokens of the microbatch
  int32_t output_row = 0;  // of the sender
};

// All rows of one encoder and group that a domain makes, as one rank sees them.
class GroupRows {
 public:
  explicit GroupRows(int32_t self) : self_(self) {}

  // Items must come whole ones first, then split ones, each in the layout's order.
  void Add(const StepLayout& layout, const DataLayout& data, int32_t item_index,
           const std::vector<Holder>& holders, absl::Span<const StepLayout::Route> routes) {
    const StepLayout::Item& item = layout.items[item_index];
    for (int32_t rank = item.encoder_rank; rank < item.encoder_rank + item.num_shards; ++rank) {
      const UnitRange own = layout.OutputRows(item, rank);
      for (const StepLayout::Route& route : routes) {
        const int64_t begin = std::max(own.begin, route.first_row);
        const int64_t end = std::min(own.end, route.first_row + route.num_rows);
        for (int64_t row = begin; row < end; ++row) {
          const Holder& holder = holders[route.position + row - route.first_row];
          const int32_t to = data.RankAt(0, item.replica, holder.sequence_index);
          ++received_[to];
          if (rank != self_ && to != self_) continue;
          rows_.push_back({.from = rank,
                           .to = to,
                           .microbatch = item.microbatch,
                           .row = holder.row,
                           .output_row = static_cast<int32_t>(made_[rank] + row - own.begin)});
        }
      }
      made_[rank] += own.size();
    }
  }

  ReshardGroup Plan() {
    std::sort(rows_.begin(), rows_.end(), [](const Row& a, const Row& b) {
      return std::tie(a.from, a.to, a.microbatch, a.row) <
             std::tie(b.from, b.to, b.microbatch, b.row);
    });
    ReshardGroup group;
    for (const Row& row : rows_) {
      if (row.from == self_) {
        if (group.send.empty() || group.send.back().rank != row.to) {
          group.send.push_back({.rank = row.to, .microbatches = {}, .rows = {}});
        }
        group.send.back().microbatches.push_back(row.microbatch);
        group.send.back().rows.push_back(row.output_row);
      }
      if (row.to == self_) {
        if (group.receive.empty() || group.receive.back().rank != row.from) {
          group.receive.push_back({.rank = row.from, .microbatches = {}, .rows = {}});
        }
        group.receive.back().microbatches.push_back(row.microbatch);
        group.receive.back().rows.push_back(row.row);
      }
    }
    for (const auto& [from, rows] : made_) group.rows_max = std::max(group.rows_max, rows);
    for (const auto& [to, rows] : received_) group.rows_max = std::max(group.rows_max, rows);
    group.output_rows = made_[self_];
    return group;
  }

 private:
  const int32_t self_;
  std::vector<Row> rows_;                                  // that it sends or receives
  absl::flat_hash_map<int32_t, int64_t> made_, received_;  // by rank
};

}  // namespace

UnitRange RowMessage::RowsOf(int32_t microbatch) const {
  const auto [begin, end] = std::equal_range(microbatches.begin(), microbatches.end(), microbatch);
  return {begin - microbatches.begin(), end - microbatches.begin()};
}

int32_t ReshardGroup::NumRounds(int64_t max_rows) const {
  OMNI_CHECK_GE(max_rows, 1);
  return static_cast<int32_t>(std::max<int64_t>(1, (rows_max + max_rows - 1) / max_rows));
}

int32_t ReshardGroup::NumRounds(double fraction, int64_t whole_rows) const {
  OMNI_CHECK(fraction > 0);
  if (fraction >= 1 || rows_max <= whole_rows) return 1;
  const auto staged =
      std::max(whole_rows, static_cast<int64_t>(fraction * static_cast<double>(rows_max)));
  return NumRounds(std::max<int64_t>(1, staged / 2));
}

UnitRange RoundRows(int64_t num_rows, int32_t round, int32_t num_rounds) {
  return ShardUnits(num_rows, round, num_rounds);
}

ReshardPlan PlanReshard(const StepLayout& layout, const DataLayout& data, int32_t rank) {
  OMNI_CHECK(rank >= 0 && rank < data.num_ranks());
  OMNI_CHECK_GE(layout.encoders.size(), data.encoders.size());
  std::vector<size_t> cu_routes = {0};  // [items + 1]
  for (size_t i = 0; i < layout.items.size(); ++i) {
    size_t end = cu_routes.back();
    while (end < layout.routes.size() && layout.routes[end].item == static_cast<int32_t>(i)) ++end;
    cu_routes.push_back(end);
  }
  OMNI_CHECK_EQ(cu_routes.back(), layout.routes.size());
  const int32_t replica = data.Replica(rank);
  std::map<int32_t, std::vector<Holder>> holders;  // by index into layout.microbatches
  ReshardPlan plan;
  for (int32_t encoder = 0; encoder < static_cast<int32_t>(data.encoders.size()); ++encoder) {
    std::vector<GroupRows> groups(layout.num_groups(), GroupRows(rank));
    const int32_t domain_replicas = data.DomainReplicas(encoder);
    for (const bool is_split : {false, true}) {
      for (size_t i = 0; i < layout.items.size(); ++i) {
        const StepLayout::Item& item = layout.items[i];
        if (item.encoder != encoder || (item.num_shards > 1) != is_split ||
            item.replica / domain_replicas != replica / domain_replicas) {
          continue;
        }
        const int32_t index = item.replica * layout.num_microbatches + item.microbatch;
        auto held = holders.find(index);
        if (held == holders.end()) {
          held = holders.emplace(index, HoldersOf(layout.microbatches[index], data)).first;
        }
        groups[item.group].Add(layout, data, static_cast<int32_t>(i), held->second,
                               absl::MakeConstSpan(layout.routes)
                                   .subspan(cu_routes[i], cu_routes[i + 1] - cu_routes[i]));
      }
    }
    plan.groups.emplace_back();
    for (GroupRows& group : groups) plan.groups.back().push_back(group.Plan());
  }
  return plan;
}

}  // namespace omni::parallel
