#include "parallel/mesh.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

namespace omni::parallel {
namespace {

const Axis kAll[] = {Axis::kPipeline, Axis::kData,   Axis::kExpert,   Axis::kContext,
                     Axis::kUlysses,  Axis::kTensor, Axis::kInstance, Axis::kSequence};

Mesh World8() {
  return *Mesh::Create({{Axis::kPipeline, 2}, {Axis::kData, 2}, {Axis::kTensor, 2}}, 8);
}

// Meshes of 1 to 4 axes, odd extents and extents of 1 among them.
std::vector<Mesh> Meshes() {
  return {
      *Mesh::Create({}, 1),
      *Mesh::Create({{Axis::kData, 1}}, 1),
      *Mesh::Create({{Axis::kData, 7}}, 7),
      World8(),
      *Mesh::Create({{Axis::kInstance, 3}, {Axis::kSequence, 4}}, 12),
      *Mesh::Create(
          {{Axis::kData, 3}, {Axis::kPipeline, 5}, {Axis::kContext, 1}, {Axis::kTensor, 2}}, 30)};
}

TEST(MeshTest, TheLastAxisVariesFastest) {
  const Mesh mesh = World8();
  EXPECT_EQ(mesh.Coord(5, Axis::kPipeline), 1);
  EXPECT_EQ(mesh.Coord(5, Axis::kData), 0);
  EXPECT_EQ(mesh.Coord(5, Axis::kTensor), 1);
  EXPECT_EQ(mesh.Group(5, {Axis::kTensor}), (std::vector<int32_t>{4, 5}));
  EXPECT_EQ(mesh.Group(5, {Axis::kData}), (std::vector<int32_t>{5, 7}));
  EXPECT_EQ(mesh.Group(5, {Axis::kPipeline, Axis::kTensor}), (std::vector<int32_t>{0, 1, 4, 5}));
  EXPECT_EQ(mesh.Group(5, {Axis::kTensor, Axis::kPipeline, Axis::kTensor}),
            (std::vector<int32_t>{0, 1, 4, 5}));
  EXPECT_EQ(mesh.ToString(), "pipeline 2 x data 2 x tensor 2");
}

TEST(MeshTest, AnUndeclaredAxisHasExtentOne) {
  const Mesh mesh = World8();
  EXPECT_EQ(mesh.Extent(Axis::kExpert), 1);
  EXPECT_EQ(mesh.Coord(6, Axis::kExpert), 0);
  EXPECT_EQ(mesh.WithCoord(6, Axis::kExpert, 0), 6);
  EXPECT_EQ(mesh.Group(6, {Axis::kExpert}), std::vector<int32_t>{6});
  EXPECT_EQ(mesh.Group(6, {}), std::vector<int32_t>{6});
}

TEST(MeshTest, CoordinatesTellRanksApart) {
  for (const Mesh& mesh : Meshes()) {
    SCOPED_TRACE(mesh.ToString());
    std::vector<std::vector<int32_t>> seen;
    for (int32_t rank = 0; rank < mesh.num_ranks(); ++rank) {
      std::vector<int32_t> coords;
      int32_t rebuilt = 0;
      for (const Axis axis : kAll) {
        coords.push_back(mesh.Coord(rank, axis));
        EXPECT_LT(coords.back(), mesh.Extent(axis));
        rebuilt = mesh.WithCoord(rebuilt, axis, coords.back());
      }
      EXPECT_EQ(rebuilt, rank);
      seen.push_back(coords);
    }
    std::sort(seen.begin(), seen.end());
    EXPECT_EQ(std::adjacent_find(seen.begin(), seen.end()), seen.end());
  }
}

TEST(MeshTest, GroupsPartitionTheRanksAndAgree) {
  for (const Mesh& mesh : Meshes()) {
    SCOPED_TRACE(mesh.ToString());
    for (uint32_t subset = 0; subset < (1u << std::size(kAll)); ++subset) {
      std::vector<Axis> axes;
      int32_t size = 1;
      for (size_t i = 0; i < std::size(kAll); ++i) {
        if ((subset >> i & 1) == 0) continue;
        axes.push_back(kAll[i]);
        size *= mesh.Extent(kAll[i]);
      }
      std::vector<int32_t> ranks, firsts;
      for (const std::vector<int32_t>& group : mesh.Groups(axes)) {
        ASSERT_EQ(static_cast<int32_t>(group.size()), size);
        EXPECT_TRUE(std::is_sorted(group.begin(), group.end()));
        for (const int32_t rank : group) ASSERT_EQ(mesh.Group(rank, axes), group);
        ranks.insert(ranks.end(), group.begin(), group.end());
        firsts.push_back(group.front());
      }
      EXPECT_TRUE(std::is_sorted(firsts.begin(), firsts.end()));
      std::sort(ranks.begin(), ranks.end());
      std::vector<int32_t> all(mesh.num_ranks());
      std::iota(all.begin(), all.end(), 0);
      EXPECT_EQ(ranks, all);
    }
  }
}

TEST(MeshTest, BadExtentsAreNamed) {
  const auto error = [](std::vector<AxisExtent> extents, int32_t num_ranks) {
    const auto mesh = Mesh::Create(extents, num_ranks);
    EXPECT_EQ(mesh.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(mesh.status().message());
  };
  EXPECT_EQ(error({{Axis::kData, 3}, {Axis::kTensor, 4}}, 16),
            "mesh data 3 x tensor 4 needs 12 ranks, there are 16");
  EXPECT_EQ(error({{Axis::kData, 3}, {Axis::kTensor, 4}}, 8),
            "mesh data 3 x tensor 4 needs at least 12 ranks, there are 8");
  EXPECT_EQ(error({{Axis::kData, 2}, {Axis::kData, 2}}, 4), "mesh axis data is named twice");
  EXPECT_EQ(error({{Axis::kContext, 0}}, 4), "mesh axis context has 0 ranks, expected >= 1");
  EXPECT_EQ(error({{Axis::kData, -2}}, 4), "mesh axis data has -2 ranks, expected >= 1");
  EXPECT_EQ(error({}, 2), "a mesh without axes has 1 rank, there are 2");
  EXPECT_EQ(error({}, 0), "a mesh of 0 ranks");
  // A product that would overflow 64 bits.
  const int32_t huge = 2147483647;
  EXPECT_NE(error({{Axis::kPipeline, huge},
                   {Axis::kData, huge},
                   {Axis::kContext, huge},
                   {Axis::kTensor, huge}},
                  8)
                .find("at least"),
            std::string::npos);
}

TEST(MeshDeathTest, ARankOutsideIsCaught) {
  EXPECT_DEATH(World8().Coord(8, Axis::kData), "8 vs 8");
  EXPECT_DEATH(World8().Coord(-1, Axis::kData), "CHECK failed");
  EXPECT_DEATH(World8().WithCoord(0, Axis::kData, 2), "2 vs 2");
}

}  // namespace
}  // namespace omni::parallel
