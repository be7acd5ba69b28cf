#include "parallel/placement.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"

namespace omni::parallel {
namespace {

// Where element `index` of a dim's own order lies in the whole, and how many follow it there.
std::pair<int64_t, int64_t> Locate(const std::vector<IndexRange>& ranges, int64_t index) {
  for (const IndexRange& range : ranges) {
    if (index < range.size()) return {range.begin + index, range.size() - index};
    index -= range.size();
  }
  CheckFailed(__FILE__, __LINE__, "an index beyond a shard");
}

bool Covers(const std::vector<IndexRange>& ranges, int64_t size) {
  int64_t next = 0;
  for (const IndexRange& range : ranges) {
    if (range.begin != next) return false;
    next = range.end;
  }
  return next == size;
}

int64_t Total(const std::vector<IndexRange>& ranges) {
  int64_t total = 0;
  for (const IndexRange& range : ranges) total += range.size();
  return total;
}

// Sizes along tensor_dim of the matrices that are cut by themselves.
std::vector<int64_t> CutSizes(const ParameterSpec& spec) {
  OMNI_CHECK(spec.tensor_dim == 0 || spec.tensor_dim == 1);
  OMNI_CHECK_EQ(spec.row_dims, 1);
  if (spec.tensor_dim == 1) return {spec.shape[1]};
  return spec.StackRows();
}

void CheckUnits(const ParameterSpec& spec, int32_t tensor) {
  const std::vector<int64_t>& units = spec.tensor_units;
  const std::vector<int64_t> sizes = CutSizes(spec);
  OMNI_CHECK_EQ(units.size(), sizes.size());
  const bool all_equal =
      std::all_of(units.begin(), units.end(), [&](int64_t count) { return count == units[0]; });
  for (size_t stack = 0; stack < units.size(); ++stack) {
    OMNI_CHECK(units[stack] > 0 && sizes[stack] % units[stack] == 0);
    const bool even = units[stack] % tensor == 0;
    const bool copied = tensor % units[stack] == 0 && spec.tensor_dim == 0;
    if (even || copied || (all_equal && units[stack] > tensor)) continue;
    CheckFailed(__FILE__, __LINE__,
                absl::StrCat(spec.path, ": ", units[stack], " units do not lie over ", tensor,
                             " tensor ranks"));
  }
}

}  // namespace

IndexRange EvenPart(int64_t count, int64_t part, int64_t parts) {
  return {count * part / parts, count * (part + 1) / parts};
}

Shard Shard::Whole(const std::vector<int64_t>& shape) {
  Shard shard{.global_shape = shape, .dims = {}};
  for (const int64_t size : shape) shard.dims.push_back({{0, size}});
  return shard;
}

bool Shard::is_whole() const {
  for (size_t dim = 0; dim < dims.size(); ++dim) {
    if (!Covers(dims[dim], global_shape[dim])) return false;
  }
  return true;
}

std::vector<int64_t> Shard::shape() const {
  std::vector<int64_t> sizes;
  for (const std::vector<IndexRange>& ranges : dims) sizes.push_back(Total(ranges));
  return sizes;
}

int64_t Shard::num_elements() const {
  int64_t count = 1;
  for (const std::vector<IndexRange>& ranges : dims) count *= Total(ranges);
  return count;
}

void Shard::ForEachRun(
    int64_t begin, int64_t end,
    const std::function<void(int64_t local, int64_t global, int64_t count)>& fn) const {
  // Dims behind the last one that is cut are whole: blocks of `inner` elements.
  size_t outer = dims.size();
  int64_t inner = 1;
  while (outer > 0 && Covers(dims[outer - 1], global_shape[outer - 1])) {
    inner *= global_shape[--outer];
  }
  if (outer == 0) {
    if (begin < end) fn(begin, begin, end - begin);
    return;
  }
  const std::vector<int64_t> sizes = shape();
  // What is found is held back until it is known not to go on.
  int64_t run_local = begin, run_global = 0, run_count = 0;
  for (int64_t local = begin; local < end;) {
    int64_t rest = local / inner, stride = inner, global = local % inner, count = 0;
    for (size_t dim = outer; dim-- > 0;) {
      const auto [index, follow] = Locate(dims[dim], rest % sizes[dim]);
      if (dim + 1 == outer) count = follow * inner - local % inner;
      global += index * stride;
      rest /= sizes[dim];
      stride *= global_shape[dim];
    }
    count = std::min(count, end - local);
    if (run_count > 0 && run_global + run_count == global) {
      run_count += count;
    } else {
      if (run_count > 0) fn(run_local, run_global, run_count);
      run_local = local;
      run_global = global;
      run_count = count;
    }
    local += count;
  }
  if (run_count > 0) fn(run_local, run_global, run_count);
}

absl::string_view Name(PlacementClass placement) {
  switch (placement) {
    case PlacementClass::kStage:
      return "stage";
    case PlacementClass::kTensor:
      return "tensor";
    case PlacementClass::kExpert:
      return "expert";
    case PlacementClass::kTied:
      return "tied";
    case PlacementClass::kEncoder:
      return "encoder";
  }
  return "?";
}

ParameterSpec Placement::local() const {
  ParameterSpec own = spec;
  own.shape = shard.shape();
  if (placement == PlacementClass::kExpert) {
    const int64_t experts = spec.shape[0], held = own.shape[0];
    OMNI_CHECK(spec.stack_rows.empty());
    own.num_stacked = static_cast<int32_t>(spec.num_stacked * held / experts);
  } else if (tensor > 1 && spec.tensor_dim == 0) {
    own.stack_rows.clear();
    for (size_t stack = 0; stack < spec.tensor_units.size(); ++stack) {
      own.stack_rows.push_back(TensorPart(spec, stack, tensor_rank, tensor).size());
    }
  }
  own.tensor_dim = -1;
  own.tensor_units.clear();
  own.is_expert = false;
  return own;
}

Placement PlaceWhole(const ParameterSpec& spec, PlacementClass whole_class) {
  return {.spec = spec, .placement = whole_class, .shard = Shard::Whole(spec.shape)};
}

IndexRange TensorPart(const ParameterSpec& spec, size_t stack, int32_t tensor_rank,
                      int32_t tensor) {
  const int64_t units = spec.tensor_units[stack];
  const int64_t unit_size = CutSizes(spec)[stack] / units;
  // With fewer units than ranks, neighbours have the same one.
  const IndexRange part =
      units < tensor ? IndexRange{tensor_rank * units / tensor, tensor_rank * units / tensor + 1}
                     : EvenPart(units, tensor_rank, tensor);
  return {part.begin * unit_size, part.end * unit_size};
}

Placement Place(const ParameterSpec& spec, PlacementClass whole_class, int32_t tensor_rank,
                int32_t tensor, int32_t expert_rank, int32_t expert) {
  Placement placed = PlaceWhole(spec, whole_class);
  if (whole_class == PlacementClass::kEncoder) return placed;
  if (spec.is_expert) {
    if (expert == 1) return placed;
    OMNI_CHECK_EQ(spec.shape[0] % expert, 0);
    placed.placement = PlacementClass::kExpert;
    placed.shard.dims[0] = {EvenPart(spec.shape[0], expert_rank, expert)};
    return placed;
  }
  if (spec.tensor_dim < 0 || tensor == 1) return placed;
  CheckUnits(spec, tensor);
  if (whole_class == PlacementClass::kStage) placed.placement = PlacementClass::kTensor;
  placed.tensor_rank = tensor_rank;
  placed.tensor = tensor;
  const std::vector<int64_t> sizes = CutSizes(spec);
  std::vector<IndexRange>& ranges = placed.shard.dims[spec.tensor_dim];
  ranges.clear();
  int64_t begin = 0;
  for (size_t stack = 0; stack < sizes.size(); ++stack) {
    const IndexRange part = TensorPart(spec, stack, tensor_rank, tensor);
    ranges.push_back({begin + part.begin, begin + part.end});
    const int64_t units = spec.tensor_units[stack];
    placed.copies.push_back(units < tensor ? static_cast<int32_t>(tensor / units) : 1);
    begin += sizes[stack];
  }
  return placed;
}

}  // namespace omni::parallel
