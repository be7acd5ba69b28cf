// Which part of a parameter a rank holds, and with whom it shares the gradient.
//
// A shard is a product: along every dim a list of index ranges, in the order in which they lie in
// the rank's own dense tensor. That covers everything cut here: slices of columns, of each of
// several stacked matrices (QKV by heads, gate and up), of experts.
//
//   QKV of 4 heads and 2 KV heads of 2 rows each, over 4 tensor ranks: units {4, 2, 2}
//     rows     q 0..8 | k 8..12 | v 12..16
//     rank 0   {0..2, 8..10, 12..14}     rank 1   {2..4, 8..10, 12..14}      the same KV head:
//     rank 2   {4..6, 10..12, 14..16}    rank 3   {6..8, 10..12, 14..16}     copies {1, 2, 2}
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "parallel/parameter.h"

namespace omni::parallel {

struct IndexRange {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
  bool operator==(const IndexRange&) const = default;
};

// Part `part` of [0, count) cut evenly, in order, into `parts`; sizes differ by one at most.
IndexRange EvenPart(int64_t count, int64_t part, int64_t parts);

struct Shard {
  std::vector<int64_t> global_shape;
  std::vector<std::vector<IndexRange>> dims;  // by dim

  static Shard Whole(const std::vector<int64_t>& shape);
  bool is_whole() const;
  std::vector<int64_t> shape() const;  // of the rank's own tensor
  int64_t num_elements() const;

  // Calls fn(local, global, count) for the longest runs that are consecutive both in the rank's own
  // tensor and in the whole one, flattened row-major, of local elements [begin, end), ascending.
  void ForEachRun(
      int64_t begin, int64_t end,
      const std::function<void(int64_t local, int64_t global, int64_t count)>& fn) const;
};

// Who has what of parameters that are cut and shared alike. Gradients are summed over a group of
// ranks (every one of them computed a part of the sum) and optimizer state is dealt out among them.
// All ranks begin their collectives in the order of this list.
enum class PlacementClass : uint8_t {
  kStage,   // whole on all ranks of a pipeline stage
  kTensor,  // cut by tensor rank: summed over data x ring x ulysses
  kExpert,  // cut by expert rank: summed over the expert mesh's data axis
  kTied,    // on the first and the last stage, cut by tensor rank: summed over those of both stages
            // with the same tensor rank
  kEncoder,  // whole (or gathered) on every rank of the job
};
inline constexpr int32_t kNumPlacementClasses = 5;
inline constexpr std::array<PlacementClass, kNumPlacementClasses> kPlacementClasses = {
    PlacementClass::kStage, PlacementClass::kTensor, PlacementClass::kExpert, PlacementClass::kTied,
    PlacementClass::kEncoder};
absl::string_view Name(PlacementClass placement);  // "stage": as in bucket names

// One parameter as a rank holds it.
struct Placement {
  ParameterSpec spec;  // global
  PlacementClass placement = PlacementClass::kStage;
  Shard shard;
  // Units (of tensor_dim) that this many tensor ranks hold alike, one entry a stacked matrix: 1 but
  // for KV heads when they are fewer than tensor ranks. Holders are neighbours. Their gradients are
  // summed over the holders first, and count once in norms.
  std::vector<int32_t> copies = {};
  int32_t tensor_rank = 0, tensor = 1;  // among which tensor ranks it is cut; 1: it is not
  int32_t chunk = -1;  // of the pipeline, where chunks' gradients are reduced apart; set by callers

  ParameterSpec local() const;  // the spec with shape and stack_rows of the rank's own tensor
  int32_t num_copies(size_t stack) const { return copies.empty() ? 1 : copies[stack]; }
};

// The whole parameter on every rank that has it.
Placement PlaceWhole(const ParameterSpec& spec, PlacementClass whole_class);

// How `tensor_rank` of `tensor` ranks and `expert_rank` of `expert` ranks hold this one. Encoders'
// parameters are never cut. One number of units, or several equal ones, are cut evenly, to sizes
// that may differ by a unit; CHECK-fails where stacked matrices of different numbers would not stay
// aligned (each must divide among the ranks or the ranks among it), where experts do not divide, or
// where columns are fewer than ranks.
Placement Place(const ParameterSpec& spec, PlacementClass whole_class, int32_t tensor_rank,
                int32_t tensor, int32_t expert_rank, int32_t expert);

// The rows (columns, if tensor_dim is 1) of stacked matrix `stack` that a tensor rank holds, within
// that matrix.
IndexRange TensorPart(const ParameterSpec& spec, size_t stack, int32_t tensor_rank, int32_t tensor);

}  // namespace omni::parallel
