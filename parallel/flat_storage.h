// Where parameters live: flat buckets, one per (module, update rule), planned once.
//
// Every rank holds all values (compute dtype) and all gradients (fp32; fp64 in fp64). Of the
// optimizer's state it holds a shard (ZeRO-1, Rajbhandari et al. 2020): each bucket is cut into one
// contiguous range per rank. Buckets of vectors and of AdamW matrices are cut evenly, wherever the
// bound falls; buckets of Muon's matrices between matrices, balanced by the cost of
// orthogonalising them, for a matrix must be whole on the rank that updates it.
//
//   bucket "decoder/matrix"   | wq | wk | wv | wo | gate | up | down | ...
//   3 ranks (Muon)            |<--- rank 0 --->|<-- rank 1 -->|<- rank 2 ->|
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "parallel/parameter.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/device/exec_context.h"

namespace omni::parallel {

enum class UpdateRule : uint8_t {
  kMuon,   // whole matrices
  kAdamW,  // with weight decay
  kAdamWNoDecay,
  kFixed  // never updated: no gradients, no state
};

struct PlacedParameter {
  ParameterSpec spec;
  int64_t offset = 0;  // of its first element in the bucket
};

struct Matrix2d {
  int64_t offset, rows, cols;  // in the bucket, elements
};

struct Bucket {
  std::string name;  // "decoder/matrix"
  std::string module;
  UpdateRule rule = UpdateRule::kAdamW;
  std::vector<PlacedParameter> parameters;
  std::vector<Matrix2d> matrices;  // kMuon: what is orthogonalised, in order
  int64_t num_elements = 0;
  std::vector<int64_t> shard_counts;  // elements per rank; they sum to num_elements
  TensorView values;                  // [num_elements], compute dtype
  TensorView grads;                   // [num_elements], master dtype; empty if never trained

  int64_t ShardBegin(int32_t rank) const;
};

struct FlatStorageOptions {
  DType dtype = DType::kFloat32;  // of the values
  int32_t rank = 0, num_ranks = 1;
  uint64_t seed = 0;
  // Which module a path belongs to, and how it is updated; both from the recipe.
  std::function<std::string(const std::string& path)> module_of;
  std::function<UpdateRule(const ParameterSpec&)> rule_of;
  // False for a module no phase ever trains: it gets no gradients.
  std::function<bool(const std::string& module)> ever_trained;
  // True for a parameter whose values come from elsewhere before they are read: it is not
  // initialised. Null: none.
  std::function<bool(const std::string& path)> is_given = nullptr;
};

class FlatStorage {
 public:
  // Takes its memory from ctx.device's pool for good and sets initial values, each a function of
  // (seed, path, element index) alone.
  static std::unique_ptr<FlatStorage> Create(ExecContext& ctx,
                                             absl::Span<const ParameterSpec> specs,
                                             const FlatStorageOptions& options);

  std::vector<Bucket>& buckets() { return buckets_; }
  const std::vector<Bucket>& buckets() const { return buckets_; }
  DType dtype() const { return dtype_; }
  DType master_dtype() const {
    return dtype_ == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  }
  int64_t num_parameters() const;

  // Weights by path; those of modules for which `trains` is false come without gradient.
  ParameterStore Store(const std::function<bool(const std::string& module)>& trains) const;

  // The pieces of parameters that the flat range [begin, begin + data) of `bucket` covers, named
  // path + suffix: how state is written to and read from checkpoints.
  static std::vector<TensorRange> Ranges(const Bucket& bucket, int64_t begin,
                                         const TensorView& data, const std::string& suffix);

 private:
  explicit FlatStorage(Device& device) : arena_(device) {}
  void Initialise(ExecContext& ctx, const FlatStorageOptions& options);

  TensorArena arena_;
  DType dtype_ = DType::kFloat32;
  std::vector<Bucket> buckets_;
};

// The initial value of one element.
double InitialValue(const ParameterSpec& spec, uint64_t seed, int64_t element);

}  // namespace omni::parallel
