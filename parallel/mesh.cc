#include "parallel/mesh.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"

namespace omni::parallel {

absl::string_view AxisName(Axis axis) {
  switch (axis) {
    case Axis::kPipeline:
      return "pipeline";
    case Axis::kData:
      return "data";
    case Axis::kExpert:
      return "expert";
    case Axis::kContext:
      return "context";
    case Axis::kTensor:
      return "tensor";
    case Axis::kUlysses:
      return "ulysses";
    case Axis::kInstance:
      return "instance";
    case Axis::kSequence:
      return "sequence";
  }
  return "?";
}

absl::StatusOr<Mesh> Mesh::Create(absl::Span<const AxisExtent> extents, int32_t num_ranks) {
  if (num_ranks < 1) {
    return absl::InvalidArgumentError(absl::StrCat("a mesh of ", num_ranks, " ranks"));
  }
  Mesh mesh;
  mesh.num_ranks_ = num_ranks;
  for (const AxisExtent& extent : extents) {
    if (extent.num_ranks < 1) {
      return absl::InvalidArgumentError(absl::StrCat("mesh axis ", AxisName(extent.axis), " has ",
                                                     extent.num_ranks, " ranks, expected >= 1"));
    }
    if (mesh.Find(extent.axis) != nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("mesh axis ", AxisName(extent.axis), " is named twice"));
    }
    mesh.levels_.push_back({extent.axis, extent.num_ranks, /*stride=*/0});
  }
  int64_t product = 1;
  for (auto level = mesh.levels_.rbegin(); level != mesh.levels_.rend(); ++level) {
    level->stride = static_cast<int32_t>(product);
    product *= level->extent;
    if (product > num_ranks) break;  // before it can overflow
  }
  if (mesh.levels_.empty() && num_ranks > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("a mesh without axes has 1 rank, there are ", num_ranks));
  }
  if (product != num_ranks) {
    return absl::InvalidArgumentError(absl::StrCat("mesh ", mesh.ToString(), " needs ",
                                                   product > num_ranks ? "at least " : "", product,
                                                   " ranks, there are ", num_ranks));
  }
  return mesh;
}

const Mesh::Level* Mesh::Find(Axis axis) const {
  const auto level = std::find_if(levels_.begin(), levels_.end(), [axis](const Level& candidate) {
    return candidate.axis == axis;
  });
  return level == levels_.end() ? nullptr : &*level;
}

int32_t Mesh::Extent(Axis axis) const {
  const Level* level = Find(axis);
  return level == nullptr ? 1 : level->extent;
}

int32_t Mesh::Coord(int32_t rank, Axis axis) const {
  OMNI_CHECK_GE(rank, 0);
  OMNI_CHECK_LT(rank, num_ranks_);
  const Level* level = Find(axis);
  return level == nullptr ? 0 : rank / level->stride % level->extent;
}

int32_t Mesh::WithCoord(int32_t rank, Axis axis, int32_t coord) const {
  OMNI_CHECK_GE(coord, 0);
  OMNI_CHECK_LT(coord, Extent(axis));
  const int32_t now = Coord(rank, axis);
  const Level* level = Find(axis);
  return level == nullptr ? rank : rank + (coord - now) * level->stride;
}

std::vector<int32_t> Mesh::Group(int32_t rank, absl::Span<const Axis> axes) const {
  OMNI_CHECK_GE(rank, 0);
  OMNI_CHECK_LT(rank, num_ranks_);
  std::vector<int32_t> group = {rank};
  for (const Level& level : levels_) {  // an axis listed twice counts once
    if (std::find(axes.begin(), axes.end(), level.axis) == axes.end()) continue;
    std::vector<int32_t> wider;
    wider.reserve(group.size() * level.extent);
    for (const int32_t member : group) {
      for (int32_t coord = 0; coord < level.extent; ++coord) {
        wider.push_back(WithCoord(member, level.axis, coord));
      }
    }
    group = std::move(wider);
  }
  std::sort(group.begin(), group.end());
  return group;
}

std::vector<std::vector<int32_t>> Mesh::Groups(absl::Span<const Axis> axes) const {
  std::vector<std::vector<int32_t>> groups;
  std::vector<bool> placed(num_ranks_, false);
  for (int32_t rank = 0; rank < num_ranks_; ++rank) {
    if (placed[rank]) continue;
    groups.push_back(Group(rank, axes));
    for (const int32_t member : groups.back()) placed[member] = true;
  }
  return groups;
}

std::string Mesh::ToString() const {
  if (levels_.empty()) return "1 rank";
  std::string text;
  for (const Level& level : levels_) {
    absl::StrAppend(&text, text.empty() ? "" : " x ", AxisName(level.axis), " ", level.extent);
  }
  return text;
}

}  // namespace omni::parallel
