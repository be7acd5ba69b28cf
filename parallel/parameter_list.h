// How a module declares its parameters: once, with the Weight each will be bound to, so that
// the list of specs and the binding can't disagree.
//
//   list_.Add(Matrix("vision.merger.fc2.weight", out, in, init.Std(in)), &fc2_.weight);
//   ...
//   list_.specs();  list_.Bind(store);
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "parallel/parameter.h"
#include "runtime/base/config.h"

namespace omni::parallel {

// How matrices start (model.init in a recipe; any module's own `init` overrides it).
//   kind: fan_in   N(0, 1/in), residual outputs x 1/sqrt(2 layers), projectors and head smaller:
//                  what small models learned fastest with
//   kind: normal   N(0, std), all alike, residual outputs scaled: GPT-2's
struct InitConfig {
  enum class Kind : uint8_t { kFanIn, kNormal };
  Kind kind = Kind::kFanIn;
  double std = 0.02;             // kNormal
  double embedding_std = 0.1;    // kNormal: `std`
  double projector_scale = 0.2;  // last map of an encoder's projector; kNormal: 1
  double head_scale = 0.5;       // kNormal: 1
  bool scale_residual = true;

  // Standard deviation of a matrix with `fan_in` inputs.
  double Std(int64_t fan_in) const;
  // The same for a matrix whose output is added to the residual stream of `num_layers` layers.
  double ResidualStd(int64_t fan_in, int32_t num_layers) const;
};
absl::Status Read(const ConfigNode& node, InitConfig* out);

// Specs of the usual kinds.
ParameterSpec Matrix(std::string path, int64_t out, int64_t in, double std);
ParameterSpec Stem(std::string path, std::vector<int64_t> shape, double std);  // AdamW's
ParameterSpec Bias(std::string path, int64_t size);                            // zeros
ParameterSpec Scale(std::string path, int64_t size);                           // ones
// `spec`, which tensor parallelism may cut along `dim` between `units` (see ParameterSpec).
ParameterSpec Cut(ParameterSpec spec, int32_t dim, std::vector<int64_t> units);

class ParameterList {
 public:
  // `weight` must stay where it is as long as the list is used.
  void Add(ParameterSpec spec, Weight* weight) { entries_.push_back({std::move(spec), weight}); }

  std::vector<ParameterSpec> specs() const;
  // Copies every weight out of the store; CHECK-fails on a missing path or another shape. Along
  // the dim in which a parameter may be cut, a weight may hold less than the spec says.
  void Bind(const ParameterStore& store) const;

 private:
  struct Entry {
    ParameterSpec spec;
    Weight* weight;
  };
  std::vector<Entry> entries_;
};

// A linear map or norm with its optional bias, as modules keep them.
struct Affine {
  Weight weight;
  Weight bias;

  const Weight* bias_or_null() const { return bias.value.empty() ? nullptr : &bias; }
};

}  // namespace omni::parallel
