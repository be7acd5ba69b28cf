// Which part of a parameter a rank holds, and with whom it shares the gradient.
//
// A shard is a product: along every dim a list of index ranges, in the order in which they lie in
// the rank's own dense tensor. That covers everything cut here: slices of columns, of each of
// several stacked matrices (QKV by heads, gate and up), of experts.
#pragma once

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

// Who has what of parameters that are cut and shared alike. Gradients are summed over `ranks`
// (every one of them computed a part of the sum) and optimizer state is dealt out among them.
enum class PlacementClass : uint8_t {
  kStage,    // whole on all ranks of a pipeline stage
  kTensor,   // cut by tensor rank: summed over data x ring x ulysses
  kExpert,   // cut by expert rank: summed over the expert mesh's data axis
  kTied,     // cut by tensor rank, on the first and the last stage
  kEncoder,  // whole (or gathered) on every rank of the job
};
absl::string_view Name(PlacementClass placement);  // "stage": as in bucket names

// One parameter as a rank holds it.
struct Placement {
  ParameterSpec spec;  // global
  PlacementClass placement = PlacementClass::kStage;
  Shard shard;
  // Units (of tensor_dim) that this many tensor ranks hold alike, one entry a stacked matrix: 1 but
  // for KV heads when they are fewer than tensor ranks. Their gradients are summed over the holders
  // first, and count once in norms.
  std::vector<int32_t> copies = {};

  ParameterSpec local() const;  // the spec with shape and stack_rows of the rank's own tensor
};

// How `tensor_rank` of `tensor` ranks and `expert_rank` of `expert` ranks hold this one.
// CHECK-fails where units neither divide among the ranks nor the ranks among the units.
Placement Place(const ParameterSpec& spec, PlacementClass whole_class, int32_t tensor_rank,
                int32_t tensor, int32_t expert_rank, int32_t expert);

}  // namespace omni::parallel
