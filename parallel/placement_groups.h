// The communicators behind placements, made once by whoever lays out a job's ranks.
#pragma once

#include <array>
#include <cstdint>

#include "parallel/group.h"
#include "parallel/placement.h"

namespace omni::parallel {

// How many ranks each class of parameters is shared among.
struct RanksByClass {
  std::array<int32_t, kNumPlacementClasses> counts;

  RanksByClass(int32_t every_class = 1) { counts.fill(every_class); }  // NOLINT: a number is one
  int32_t of(PlacementClass placement) const { return counts[static_cast<size_t>(placement)]; }
};

// Of one rank. Those that are alone have no communicator. Ranks of a tensor group must have the
// same place in their groups of class kTensor (and kTied): they then own the same matrices. With
// ranks in ascending order, as Mesh gives them, they do.
struct PlacementGroups {
  std::array<Group, kNumPlacementClasses> by_class;  // gradients are summed over
  Group tensor;  // the tensor ranks of this rank's replica, in order: they assemble cut matrices
  Group copies;  // those of them that hold the same KV heads; alone where every rank has its own
  Group world;   // all ranks of the job

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
