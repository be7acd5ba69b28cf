// A Mesh gives each of some ranks one coordinate per axis of parallelism. It is a plain value
// without communicators, so it is as good for 2 ranks as for planning 16,384.
//
// Ranks are laid out row-major over the axes, outermost first: the last axis varies fastest.
// Declare the most talkative axis last; its groups are then neighbouring ranks, which the
// launcher places on one node.
//
//   pipeline 2 x data 2 x tensor 2, 8 ranks:  rank 5 = 1*4 + 0*2 + 1 has coordinates (1, 0, 1)
//   Group(5, {kTensor}) = {4, 5}    Group(5, {kData}) = {5, 7}
//   Group(5, {kPipeline, kTensor}) = {0, 1, 4, 5}
//
// Decoder and encoders have a mesh each over the same ranks. An axis that was not declared has
// extent 1: code may ask for any.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace omni::parallel {

// An "axis" is one of a mesh; a "dim" is one of a tensor.
enum class Axis : uint8_t {
  kPipeline,  // layers
  kData,      // replicas, each with microbatches of its own
  kExpert,    // experts of a mixture
  kContext,   // pieces of a long sequence (ring)
  kUlysses,   // heads inside attention, tokens outside
  kTensor,    // slices of matrices, and of the tokens between them
  kInstance,  // of an encoder
  kSequence   // pieces of an encoder's long samples (all-to-all)
};
absl::string_view AxisName(Axis axis);  // "pipeline": as in plans

struct AxisExtent {
  Axis axis;
  int32_t num_ranks;  // along this axis, >= 1
};

class Mesh {
 public:
  // `extents` run outermost first. They come from configuration: an axis named twice, an extent
  // below 1, or a product other than `num_ranks` is InvalidArgument, with the numbers.
  static absl::StatusOr<Mesh> Create(absl::Span<const AxisExtent> extents, int32_t num_ranks);

  int32_t num_ranks() const { return num_ranks_; }
  int32_t Extent(Axis axis) const;  // 1 if not declared

  // Position of `rank` along `axis`. A rank outside [0, num_ranks()) is the caller's bug.
  int32_t Coord(int32_t rank, Axis axis) const;
  // The rank that differs from `rank` in its position along `axis` only.
  int32_t WithCoord(int32_t rank, Axis axis, int32_t coord) const;

  // The ranks that differ from `rank` along these axes only, `rank` included, ascending: the
  // same on every rank of the group.
  std::vector<int32_t> Group(int32_t rank, absl::Span<const Axis> axes) const;
  // All groups over these axes, by their first rank. They partition the ranks. This is the one
  // order in which communicators are split (Communicator::Split is called by all ranks alike).
  std::vector<std::vector<int32_t>> Groups(absl::Span<const Axis> axes) const;

  std::string ToString() const;  // "pipeline 2 x data 2 x tensor 2"; "1 rank" without axes

 private:
  struct Level {
    Axis axis;
    int32_t extent, stride;  // in ranks
  };
  Mesh() = default;
  const Level* Find(Axis axis) const;

  std::vector<Level> levels_;  // outermost first
  int32_t num_ranks_ = 0;
};

}  // namespace omni::parallel
