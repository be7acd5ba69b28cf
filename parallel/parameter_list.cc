#include "parallel/parameter_list.h"

#include <cmath>

namespace omni::parallel {

double InitConfig::Std(int64_t fan_in) const {
  return kind == Kind::kFanIn ? 1.0 / std::sqrt(static_cast<double>(fan_in)) : std;
}

double InitConfig::ResidualStd(int64_t fan_in, int32_t num_layers) const {
  return Std(fan_in) * (scale_residual ? 1.0 / std::sqrt(2.0 * num_layers) : 1.0);
}

absl::Status Read(const ConfigNode& node, InitConfig* out) {
  ConfigReader reader(node);
  const InitConfig::Kind inherited = out->kind;
  reader.ReadEnum("kind", &out->kind,
                  {{"fan_in", InitConfig::Kind::kFanIn}, {"normal", InitConfig::Kind::kNormal}});
  reader.Read("std", &out->std, Positive());
  if (out->kind == InitConfig::Kind::kFanIn) {
    if (reader.Has("std")) {
      reader.Keep(reader.Error("std", "only kind: normal has a std; fan_in derives it"));
    }
    if (inherited != out->kind) *out = InitConfig{};
  } else if (inherited != out->kind || reader.Has("std")) {
    out->embedding_std = out->std;
    out->projector_scale = out->head_scale = 1.0;
  }
  reader.Read("embedding_std", &out->embedding_std, Positive());
  reader.Read("projector_scale", &out->projector_scale, Positive());
  reader.Read("head_scale", &out->head_scale, Positive());
  reader.Read("scale_residual", &out->scale_residual);
  return reader.Finish();
}

ParameterSpec Matrix(std::string path, int64_t out, int64_t in, double std) {
  return {.path = std::move(path), .shape = {out, in}, .init_std = std};
}

ParameterSpec Stem(std::string path, std::vector<int64_t> shape, double std) {
  return {.path = std::move(path),
          .shape = std::move(shape),
          .init_std = std,
          .optimizer = OptimizerClass::kEmbedding};
}

ParameterSpec Bias(std::string path, int64_t size) {
  return {.path = std::move(path),
          .shape = {size},
          .init = InitKind::kZeros,
          .optimizer = OptimizerClass::kVector};
}

ParameterSpec Scale(std::string path, int64_t size) {
  return {.path = std::move(path),
          .shape = {size},
          .init = InitKind::kOnes,
          .optimizer = OptimizerClass::kVector};
}

ParameterSpec Cut(ParameterSpec spec, int32_t dim, std::vector<int64_t> units) {
  spec.tensor_dim = dim;
  spec.tensor_units = std::move(units);
  return spec;
}

std::vector<ParameterSpec> ParameterList::specs() const {
  std::vector<ParameterSpec> specs;
  specs.reserve(entries_.size());
  for (const Entry& entry : entries_) specs.push_back(entry.spec);
  return specs;
}

namespace {

bool Fits(const ParameterSpec& spec, absl::Span<const int64_t> shape) {
  if (shape.size() != spec.shape.size()) return false;
  const int32_t cut_dim = spec.is_expert ? 0 : spec.tensor_dim;
  for (size_t dim = 0; dim < shape.size(); ++dim) {
    const bool may_be_less = static_cast<int32_t>(dim) == cut_dim;
    if (may_be_less ? shape[dim] > spec.shape[dim] : shape[dim] != spec.shape[dim]) return false;
  }
  return true;
}

}  // namespace

void ParameterList::Bind(const ParameterStore& store) const {
  for (const Entry& entry : entries_) {
    const Weight& weight = store.Get(entry.spec.path);
    if (!Fits(entry.spec, weight.value.shape())) {
      CheckFailed(__FILE__, __LINE__,
                  entry.spec.path + " is stored as " + weight.value.DebugString());
    }
    *entry.weight = weight;
  }
}

}  // namespace omni::parallel
