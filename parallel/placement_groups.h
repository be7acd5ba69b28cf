// The communicators behind placements, made once by whoever lays out a job's ranks.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "parallel/group.h"
#include "parallel/parallel_config.h"
#include "parallel/placement.h"

namespace omni::parallel {

// How many ranks each class of parameters is shared among.
struct RanksByClass {
  std::array<int32_t, kNumPlacementClasses> counts;

  RanksByClass(int32_t every_class = 1) { counts.fill(every_class); }  // NOLINT: a number is one
  int32_t of(PlacementClass placement) const { return counts[static_cast<size_t>(placement)]; }
};

// Weights that a group of ranks shares out (ZeRO-2, ZeRO-3): sharded_weights.h.
struct WeightSharding {
  std::string module;  // with everything below: "vision" holds for "vision.merger"
  PlacementClass placement = PlacementClass::kEncoder;  // and of this class
  WeightStorage weights = WeightStorage::kReplicated;
  Group within;  // each of its ranks keeps one shard
  Group across;  // all ranks that have the parameters and the same place in their group: what they
                 // keep is summed over them, and its optimizer state dealt out
};
// Index of the one that holds for `module` in this class; -1: its weights are replicated.
inline int32_t FindSharding(const std::vector<WeightSharding>& all, absl::string_view module,
                            PlacementClass placement) {
  for (size_t i = 0; i < all.size(); ++i) {
    const absl::string_view name = all[i].module;
    const bool covers = module.substr(0, name.size()) == name &&
                        (module.size() == name.size() || module[name.size()] == '.');
    const bool shards = all[i].weights != WeightStorage::kReplicated;
    if (!covers || !shards || all[i].placement != placement) continue;
    if (!all[i].within.is_alone()) return static_cast<int32_t>(i);
  }
  return -1;
}

// Of one rank. Those that are alone have no communicator. Ranks of a tensor group must have the
// same place in their groups of class kTensor (and kTied): they then own the same matrices. With
// ranks in ascending order, as Mesh gives them, they do.
struct PlacementGroups {
  std::array<Group, kNumPlacementClasses> by_class;  // gradients are summed over
  Group tensor;  // the tensor ranks of this rank's replica, in order: they assemble cut matrices
  Group copies;  // those of them that hold the same KV heads; alone where every rank has its own
  Group world;   // all ranks of the job
  std::vector<WeightSharding> shardings;

  // Plain data parallelism: everything whole on every rank. `comm` may be null.
  static PlacementGroups DataParallel(Communicator* comm) {
    PlacementGroups groups;
    groups.by_class.fill(Group{comm});
    groups.world = Group{comm};
    return groups;
  }

  const Group& of(PlacementClass placement) const {
    return by_class[static_cast<size_t>(placement)];
  }
  Group& of(PlacementClass placement) { return by_class[static_cast<size_t>(placement)]; }
  RanksByClass ranks() const {
    RanksByClass ranks;
    for (size_t i = 0; i < by_class.size(); ++i) ranks.counts[i] = by_class[i].size();
    return ranks;
  }
};

}  // namespace omni::parallel
