// Where parameters live: flat buckets, one per (module, update rule, placement class, chunk of the
// pipeline), planned once.
//
// A rank holds all values of its parts of parameters (compute dtype) and all gradients (fp32; fp64
// in fp64). Of the optimizer's state it holds a shard (ZeRO-1, Rajbhandari et al. 2020): each
// bucket is cut into one contiguous range per rank of the group that shares it. Buckets of vectors
// and of AdamW matrices are cut evenly, wherever the bound falls; buckets of Muon's matrices
// between matrices, balanced by the cost of orthogonalising them, for a matrix is updated at once.
//
//   bucket "decoder/matrix"   | wq | wk | wv | wo | gate | up | down | ...
//   3 ranks (Muon)            |<--- rank 0 --->|<-- rank 1 -->|<- rank 2 ->|
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "parallel/parameter.h"
#include "parallel/placement.h"
#include "parallel/placement_groups.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/device/elastic_memory.h"
#include "runtime/device/exec_context.h"

namespace omni::parallel {

enum class UpdateRule : uint8_t {
  kMuon,   // whole matrices
  kAdamW,  // with weight decay
  kAdamWNoDecay,
  kFixed  // never updated: no gradients, no state
};

struct PlacedParameter {
  Placement place;
  int64_t offset = 0;  // of its first element in the bucket
  int64_t count = 0;   // of the rank's own elements
};

// One matrix that Muon orthogonalises, or this rank's rows or columns of it.
struct Matrix2d {
  int64_t offset, rows, cols;  // in the bucket, elements
  int64_t whole_rows, whole_cols;
  int32_t owner = 0;     // in the bucket's group: whose shard it is in
  int32_t cut_dim = -1;  // cut over the tensor ranks along its rows (0), its columns (1)
  std::vector<IndexRange> parts = {};  // then: which, by tensor rank; holders of copies alike
};

// Elements of the bucket that neighbouring tensor ranks hold too.
struct CopiedRange {
  int64_t offset, count;
  bool is_first;  // this rank is the first of the holders: it saves them and counts them in norms
};

// A bucket is kept whole, or each rank of a group keeps a part and has the whole only at times:
// sharded_weights.h. Buckets of Muon's matrices are then cut
// between matrices here too.
struct Bucket {
  std::string name;  // "decoder/muon"; "decoder/muon/tensor/chunk 1" where it is cut so
  std::string module;
  UpdateRule rule = UpdateRule::kAdamW;
  PlacementClass placement = PlacementClass::kStage;
  int32_t chunk = -1;
  std::vector<PlacedParameter> parameters;
  std::vector<Matrix2d> matrices;     // kMuon: what is orthogonalised, in order
  std::vector<CopiedRange> copied;    // ascending
  int64_t num_elements = 0;           // of this rank's parts
  std::vector<int64_t> shard_counts;  // elements per rank of the group; they sum to kept.size()
  TensorView values;                  // [num_elements], compute dtype
  TensorView grads;                   // [num_elements], master dtype; empty if never trained

  WeightStorage weights = WeightStorage::kReplicated;
  int32_t sharding = -1;               // in FlatStorageOptions::shardings
  std::vector<int64_t> kept_counts;    // then: elements kept, by rank of WeightSharding::within
  IndexRange kept;                     // what this rank keeps: all, or its part
  TensorView kept_values, kept_grads;  // [kept.size()]: rows of values and grads where those stay

  int64_t ShardBegin(int32_t rank) const;  // in the bucket
  TensorView KeptValues(int64_t begin, int64_t count) const {
    return kept_values.Rows(begin - kept.begin, count);
  }
};

// Parameters that are updated together in every layout, whichever rank has them.
struct UpdateKey {
  std::string name;  // "decoder/muon": what counts of updates are saved under
  std::string module;
  bool trained = false;  // ever
};

struct FlatStorageOptions {
  DType dtype = DType::kFloat32;  // of the values
  RanksByClass num_ranks = 1;     // that share a bucket
  uint64_t seed = 0;
  // Which module a path belongs to, and how it is updated; both from the recipe.
  std::function<std::string(const std::string& path)> module_of;
  std::function<UpdateRule(const ParameterSpec&)> rule_of;
  // False for a module no phase ever trains: it gets no gradients.
  std::function<bool(const std::string& module)> ever_trained;
  // Of parts of the model that ranks share out (sharded_weights.h), gradients of one alone are
  // there at a time: so it is unless a schedule parts the halves of a backward.
  bool gradients_in_turn = false;
  // True for a parameter whose values come from elsewhere before they are read: it is not
  // initialised. Null: none.
  std::function<bool(const std::string& path)> is_given = nullptr;
  // The model's parameters that only other ranks have (other stages'): no memory, but update_keys()
  // has them, so that every rank counts all updates.
  std::vector<ParameterSpec> elsewhere = {};
  std::vector<WeightSharding> shardings = {};
};

class FlatStorage {
 public:
  // Takes its memory from ctx.device's pool for good and sets initial values, each a function of
  // (seed, path, element index of the whole) alone. Ranks that share a class must list their
  // parameters of it in the same order.
  static std::unique_ptr<FlatStorage> Create(ExecContext& ctx,
                                             absl::Span<const Placement> placements,
                                             const FlatStorageOptions& options);
  // Every parameter whole on every rank: one rank, or data parallelism alone.
  static std::unique_ptr<FlatStorage> Create(ExecContext& ctx,
                                             absl::Span<const ParameterSpec> specs,
                                             const FlatStorageOptions& options);

  std::vector<Bucket>& buckets() { return buckets_; }
  const std::vector<Bucket>& buckets() const { return buckets_; }
  const std::vector<UpdateKey>& update_keys() const { return update_keys_; }
  DType dtype() const { return dtype_; }
  DType master_dtype() const {
    return dtype_ == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  }
  int64_t num_parameters() const;  // this rank's own

  // Of buckets whose values or gradients are there only at times: brings the memory, at the address
  // that never changes, with contents unspecified, and takes it away. CHECK-fails for what is there
  // already, or is not, and while values (gradients_in_turn: gradients) of another part are there:
  // they take turns in one room, which the pool's reservation has for good.
  void CommitValues(size_t bucket);
  void CommitGrads(size_t bucket);
  void ReleaseValues(size_t bucket);
  void ReleaseGrads(size_t bucket);
  bool has_grads(size_t bucket) const;  // now

  // Weights by path, of the shapes this rank holds; those of modules for which `trains` is false
  // come without gradient.
  ParameterStore Store(const std::function<bool(const std::string& module)>& trains) const;

  // The pieces of whole parameters that the flat range [begin, begin + data) of `bucket` covers,
  // named path + suffix: how state is read from checkpoints and, if `to_save`, written to them:
  // then without copies that another rank saves.
  static std::vector<TensorRange> Ranges(const Bucket& bucket, int64_t begin,
                                         const TensorView& data, const std::string& suffix,
                                         bool to_save = false);

 private:
  explicit FlatStorage(Device& device)
      : arena_(device), device_(device), value_room_(device.pool()), grad_room_(device.pool()) {}
  void DealOut(Bucket& bucket, const FlatStorageOptions& options);
  void TakeMemory(ExecContext& ctx, Bucket& bucket, const FlatStorageOptions& options);
  void AddElastic(const Bucket& bucket, const FlatStorageOptions& options);
  TensorView ElasticView(DType dtype, int64_t num_elements, const ElasticMemory& memory) const;
  void AddUpdateKey(const std::string& module, UpdateRule rule, const FlatStorageOptions& options);
  void Initialise(ExecContext& ctx, const FlatStorageOptions& options);

  struct Elastic {
    ElasticMemory* values = nullptr;  // null: they are always there
    ElasticMemory* grads = nullptr;
  };

  TensorArena arena_;
  Device& device_;
  ElasticRoom value_room_, grad_room_;
  std::vector<std::unique_ptr<ElasticRoom>> grad_rooms_;  // not in turn: a part's each
  std::vector<std::string> parts_;                        // turns, by number
  std::vector<Elastic> elastic_;                          // as buckets_
  DType dtype_ = DType::kFloat32;
  std::vector<Bucket> buckets_;
  std::vector<UpdateKey> update_keys_;
};

// What updates of a bucket are counted under: "decoder/muon".
std::string UpdateKeyName(const std::string& module, UpdateRule rule);

// Ascending parts of [begin, end) outside of copies that other ranks count and save.
std::vector<IndexRange> CountedOnce(const Bucket& bucket, int64_t begin, int64_t end);

// The initial value of one element of the whole parameter.
double InitialValue(const ParameterSpec& spec, uint64_t seed, int64_t element);

}  // namespace omni::parallel
