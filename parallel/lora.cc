#include "parallel/lora.h"

#include <array>
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace omni::parallel {
namespace {

// How fused weights come apart, by the last part of their path.
struct Fused {
  const char* suffix;
  std::array<const char*, 3> parts;
  size_t num_parts;
};
constexpr Fused kFused[] = {
    {".qkv", {"q", "k", "v"}, 3}, {".qv", {"q", "v"}, 2}, {".gate_up", {"gate", "up"}, 2}};

// One, or the experts in a weight.
int64_t NumGroups(const ParameterSpec& spec) { return spec.is_expert ? spec.shape[0] : 1; }

// Rows of the matrices one above the other in a weight, or in each of its experts.
std::vector<int64_t> StackedRows(const ParameterSpec& spec) {
  std::vector<int64_t> rows = spec.StackRows();
  rows.resize(rows.size() / NumGroups(spec));
  return rows;
}

// Names of the linear maps one above the other in a weight; empty if it is none that adapts.
std::vector<std::string> PartNames(const ParameterSpec& spec) {
  absl::string_view stem = spec.path;
  if (spec.shape.size() != (spec.is_expert ? 3 : 2)) return {};
  if (!absl::ConsumeSuffix(&stem, ".weight")) return {};
  // A patch embedding is a convolution as others see it.
  for (const char* kind : {".embedding", ".head", ".router", ".shared_gate", ".positions",
                           ".patch_embed", ".position_embed"}) {
    if (absl::EndsWith(stem, kind)) return {};
  }
  for (const Fused& fused : kFused) {
    absl::string_view prefix = stem;
    if (!absl::ConsumeSuffix(&prefix, fused.suffix)) continue;
    if (StackedRows(spec).size() != fused.num_parts) continue;
    std::vector<std::string> names;
    for (size_t i = 0; i < fused.num_parts; ++i) {
      names.push_back(absl::StrCat(prefix, ".", fused.parts[i]));
    }
    return names;
  }
  return {std::string(stem)};
}

bool Matches(const std::string& target, const std::string& name) {
  return absl::StrContains(absl::StrCat(".", name, "."), absl::StrCat(".", target, "."));
}

// The adapter is cut as its map is: where the map's rows are, B's; where its columns are, A's.
void DeclareCuts(const ParameterSpec& map, const std::vector<size_t>& parts, LoraTarget* target) {
  if (map.tensor_dim == 1) {
    target->a.tensor_dim = 1;
    target->a.tensor_units = map.tensor_units;
  } else if (map.tensor_dim == 0) {
    target->b.tensor_dim = 0;
    target->b.num_stacked = static_cast<int32_t>(parts.size());
    for (size_t i = 0; i < parts.size(); ++i) {
      target->b.stack_rows.push_back(target->parts[i].num_rows);
      target->b.tensor_units.push_back(map.tensor_units[parts[i]]);
    }
  }
}

// Each expert has an adapter's matrix of its own, and they lie where the experts do.
void SpreadOverExperts(const ParameterSpec& map, ParameterSpec* matrix) {
  matrix->shape.insert(matrix->shape.begin(), map.shape[0]);
  matrix->row_dims = 2;
  matrix->num_stacked = static_cast<int32_t>(map.shape[0]);
  matrix->is_expert = true;
}

}  // namespace

absl::Status Read(const ConfigNode& node, LoraConfig* out) {
  ConfigReader reader(node);
  reader.Read("rank", &out->rank, AtLeast(1));
  reader.Require("rank");
  reader.Read("alpha", &out->alpha, Positive());
  reader.Read("targets", &out->targets);
  reader.Require("targets");
  return reader.Finish();
}

absl::StatusOr<std::vector<LoraTarget>> FindLoraTargets(const LoraConfig& config,
                                                        const std::vector<ParameterSpec>& specs) {
  std::vector<LoraTarget> found;
  std::vector<std::string> all_names;
  std::vector<bool> is_used(config.targets.size());
  for (const ParameterSpec& spec : specs) {
    const std::vector<std::string> names = PartNames(spec);
    const std::vector<int64_t> rows = names.size() == 1
                                          ? std::vector<int64_t>{spec.shape[spec.shape.size() - 2]}
                                          : StackedRows(spec);
    LoraTarget target{.path = spec.path, .names = {}, .parts = {}, .a = {}, .b = {}};
    std::vector<size_t> part_indices;
    int64_t row_begin = 0, adapted_rows = 0;
    for (size_t i = 0; i < names.size(); ++i) {
      all_names.push_back(names[i]);
      bool is_target = false;
      for (size_t t = 0; t < config.targets.size(); ++t) {
        if (!Matches(config.targets[t], names[i])) continue;
        is_target = is_used[t] = true;
      }
      if (is_target) {
        target.names.push_back(names[i]);
        target.parts.push_back({.row_begin = row_begin, .num_rows = rows[i]});
        part_indices.push_back(i);
        adapted_rows += rows[i];
      }
      row_begin += rows[i];
    }
    if (target.parts.empty()) continue;
    const int64_t in = spec.shape.back();
    const auto num_parts = static_cast<int64_t>(target.parts.size());
    // A as PEFT starts it: uniform within 1/sqrt(in), here normal of that deviation.
    target.a = {.path = absl::StrCat("lora.", spec.path, ".a"),
                .shape = {num_parts * config.rank, in},
                .init_std = 1.0 / std::sqrt(3.0 * static_cast<double>(in)),
                .optimizer = OptimizerClass::kEmbedding};
    target.b = {.path = absl::StrCat("lora.", spec.path, ".b"),
                .shape = {adapted_rows, config.rank},
                .init = InitKind::kZeros,
                .optimizer = OptimizerClass::kEmbedding};
    if (spec.is_expert) {
      SpreadOverExperts(spec, &target.a);
      SpreadOverExperts(spec, &target.b);
    } else {
      DeclareCuts(spec, part_indices, &target);
    }
    found.push_back(std::move(target));
  }
  for (size_t t = 0; t < config.targets.size(); ++t) {
    if (is_used[t]) continue;
    std::vector<std::string> candidates = all_names;
    for (const std::string& name : all_names) {  // also the ends people write
      const size_t last = name.rfind('.', name.rfind('.') - 1);
      if (last != std::string::npos) candidates.push_back(name.substr(last + 1));
    }
    const std::string nearest = NearestName(config.targets[t], candidates);
    return absl::InvalidArgumentError(
        absl::StrCat("target \"", config.targets[t], "\" matches no linear map of the model",
                     nearest.empty() ? "" : absl::StrCat("; the nearest is \"", nearest, "\"")));
  }
  return found;
}

}  // namespace omni::parallel
