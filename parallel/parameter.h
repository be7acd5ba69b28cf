// Parameters as models declare them, before anything says where they live.
//
// A model lists its ParameterSpecs; the trainer places them in storage and hands back a
// ParameterStore from which the model binds its Weights by path. Initial values depend on
// (seed, path, element index) only, never on layout.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "runtime/base/check.h"
#include "runtime/ops/tape.h"

namespace omni::parallel {

enum class InitKind : uint8_t {
  kZeros,
  kOnes,
  kNormal,
  kSinusoid  // [positions, channels]: Sinusoid of each
};

// Whisper's positions: the first half of the channels sin, the second cos, of
// position * 10000^(-i / (channels / 2 - 1)), i the channel within its half.
double Sinusoid(int64_t position, int64_t channel, int64_t channels);

// Which update rule suits the parameter; the recipe can override by path.
enum class OptimizerClass : uint8_t {
  kMatrix,     // a hidden [out, in] map: Muon or AdamW, with weight decay
  kEmbedding,  // embedding, head, input stems: AdamW, with weight decay
  kVector,     // norms and biases: AdamW, no weight decay
  kFixed       // a table that is loaded or computed, never trained
};

struct ParameterSpec {
  std::string path;  // canonical: "vision.blocks.3.attention.qkv.weight"
  std::vector<int64_t> shape;
  InitKind init = InitKind::kNormal;
  double init_std = 0.02;  // kNormal
  OptimizerClass optimizer = OptimizerClass::kMatrix;
  int32_t num_stacked = 1;  // this many matrices lie one above the other (gate_up): Muon
                            // orthogonalises each by itself
  std::vector<int64_t> stack_rows = {};  // the rows of each, where they differ (QKV with grouped
                                         // query heads); overrides num_stacked
  int32_t row_dims = 1;  // the first so many dims are the rows (2: experts' [E, out, in]), the
                         // others the columns (convolutions)
  // How it may be cut; where nothing is said every rank that uses it holds it whole.
  int32_t tensor_dim = -1;  // tensor parallelism cuts along this dim (0 or 1)
  // tensor_dim is cut between these many equal units (heads, columns). Along stacked rows each of
  // the matrices is cut by itself, so one number each. A matrix with fewer units than ranks is cut
  // into its units and each of them is held by several ranks.
  std::vector<int64_t> tensor_units = {};
  bool is_expert = false;  // dim 0 counts experts; expert parallelism cuts along it

  int64_t num_rows() const {
    int64_t n = 1;
    for (size_t dim = 0; dim < shape.size() && dim < static_cast<size_t>(row_dims); ++dim) {
      n *= shape[dim];
    }
    return n;
  }
  // Rows of each of the stacked matrices, in order; they sum to num_rows().
  std::vector<int64_t> StackRows() const {
    if (!stack_rows.empty()) return stack_rows;
    return std::vector<int64_t>(num_stacked, num_rows() / num_stacked);
  }
  int64_t num_elements() const {
    int64_t n = 1;
    for (const int64_t s : shape) n *= s;
    return n;
  }
};

class ParameterStore {
 public:
  void Put(const std::string& path, const Weight& weight) { weights_[path] = weight; }
  // CHECK-fails on a path nobody declared.
  const Weight& Get(const std::string& path) const {
    const auto it = weights_.find(path);
    if (it == weights_.end()) CheckFailed(__FILE__, __LINE__, "no parameter " + path);
    return it->second;
  }

 private:
  absl::flat_hash_map<std::string, Weight> weights_;
};

}  // namespace omni::parallel
