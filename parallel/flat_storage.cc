#include "parallel/flat_storage.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "runtime/base/rng.h"
#include "runtime/ops/copy.h"

namespace omni::parallel {
namespace {

const char* RuleName(UpdateRule rule) {
  switch (rule) {
    case UpdateRule::kMuon:
      return "muon";
    case UpdateRule::kAdamW:
      return "adamw";
    case UpdateRule::kAdamWNoDecay:
      return "adamw-no-decay";
    case UpdateRule::kFixed:
      return "fixed";
  }
  return "?";
}

// 2 n^2 (2 m + n) FLOPs an iteration, n <= m.
double OrthogonaliseCost(const Matrix2d& matrix) {
  const double n = static_cast<double>(std::min(matrix.whole_rows, matrix.whole_cols));
  const double m = static_cast<double>(std::max(matrix.whole_rows, matrix.whole_cols));
  return n * n * (2 * m + n);
}

std::vector<int64_t> EvenCounts(int64_t num_elements, int32_t num_ranks) {
  std::vector<int64_t> counts;
  for (int64_t rank = 0; rank < num_ranks; ++rank) {
    counts.push_back(num_elements * (rank + 1) / num_ranks - num_elements * rank / num_ranks);
  }
  return counts;
}

int64_t Before(const std::vector<int64_t>& counts, int32_t rank) {
  int64_t sum = 0;
  for (int32_t r = 0; r < rank; ++r) sum += counts[r];
  return sum;
}

// Matrices in order, each to the rank in whose share of the cost its middle falls. Costs are those
// of whole matrices, so that all tensor ranks agree whatever their parts.
std::vector<int64_t> WholeMatrixCounts(const std::vector<Matrix2d*>& matrices, int32_t num_ranks) {
  double total = 0;
  for (const Matrix2d* matrix : matrices) total += OrthogonaliseCost(*matrix);
  std::vector<int64_t> counts(num_ranks, 0);
  double before = 0;
  for (Matrix2d* matrix : matrices) {
    const double cost = OrthogonaliseCost(*matrix);
    const double share = total == 0 ? 0 : (before + cost / 2) / total * num_ranks;
    matrix->owner = std::min<int32_t>(num_ranks - 1, static_cast<int32_t>(share));
    counts[matrix->owner] += matrix->rows * matrix->cols;
    before += cost;
  }
  return counts;
}

void AppendMatrices(const PlacedParameter& parameter, std::vector<Matrix2d>* matrices) {
  const Placement& place = parameter.place;
  const ParameterSpec local = place.local();
  const auto cols_of = [](const ParameterSpec& spec) {
    return spec.num_elements() / std::max<int64_t>(1, spec.num_rows());
  };
  const std::vector<int64_t> rows = local.StackRows(), whole_rows = place.spec.StackRows();
  const bool is_cut = place.tensor > 1;
  int64_t offset = parameter.offset;
  for (size_t stack = 0; stack < rows.size(); ++stack) {
    Matrix2d matrix = {.offset = offset,
                       .rows = rows[stack],
                       .cols = cols_of(local),
                       .whole_rows = is_cut ? whole_rows[stack] : rows[stack],
                       .whole_cols = cols_of(place.spec)};
    if (is_cut) {
      matrix.cut_dim = place.spec.tensor_dim;
      for (int32_t rank = 0; rank < place.tensor; ++rank) {
        // Columns are cut alike in all matrices of a stack.
        matrix.parts.push_back(
            TensorPart(place.spec, matrix.cut_dim == 1 ? 0 : stack, rank, place.tensor));
      }
    }
    offset += matrix.rows * matrix.cols;
    matrices->push_back(std::move(matrix));
  }
}

void AppendCopies(const PlacedParameter& parameter, std::vector<CopiedRange>* copied) {
  const Placement& place = parameter.place;
  if (place.copies.empty() || place.spec.tensor_dim != 0) return;
  const ParameterSpec local = place.local();
  const std::vector<int64_t> rows = local.StackRows();
  const int64_t cols = local.num_elements() / std::max<int64_t>(1, local.num_rows());
  int64_t offset = parameter.offset;
  for (size_t stack = 0; stack < rows.size(); ++stack) {
    const int64_t count = rows[stack] * cols;
    if (place.copies[stack] > 1) {
      copied->push_back({.offset = offset,
                         .count = count,
                         .is_first = place.tensor_rank % place.copies[stack] == 0});
    }
    offset += count;
  }
}

void PlaceParameter(Bucket& bucket, const Placement& place) {
  const PlacedParameter parameter = {
      .place = place, .offset = bucket.num_elements, .count = place.shard.num_elements()};
  if (bucket.rule == UpdateRule::kMuon) AppendMatrices(parameter, &bucket.matrices);
  AppendCopies(parameter, &bucket.copied);
  bucket.num_elements += parameter.count;
  bucket.parameters.push_back(parameter);
}

bool IsTrained(const Bucket& bucket, const FlatStorageOptions& options) {
  return bucket.rule != UpdateRule::kFixed && options.ever_trained(bucket.module);
}

std::string NameOf(const Bucket& bucket) {
  std::string name = UpdateKeyName(bucket.module, bucket.rule);
  const bool is_whole =
      bucket.placement == PlacementClass::kStage || bucket.placement == PlacementClass::kEncoder;
  if (!is_whole) absl::StrAppend(&name, "/", Name(bucket.placement));
  if (bucket.chunk >= 0) absl::StrAppend(&name, "/chunk ", bucket.chunk);
  return name;
}

}  // namespace

int64_t Bucket::ShardBegin(int32_t rank) const { return kept.begin + Before(shard_counts, rank); }

double Sinusoid(int64_t position, int64_t channel, int64_t channels) {
  const int64_t half = channels / 2;
  const double step = std::log(10000.0) / static_cast<double>(half - 1);
  const double frequency = std::exp(-step * static_cast<double>(channel % half));
  const double angle = static_cast<double>(position) * frequency;
  return channel < half ? std::sin(angle) : std::cos(angle);
}

double InitialValue(const ParameterSpec& spec, uint64_t seed, int64_t element) {
  switch (spec.init) {
    case InitKind::kZeros:
      return 0.0;
    case InitKind::kOnes:
      return 1.0;
    case InitKind::kNormal:
      return spec.init_std * CounterRng(seed, StreamOf(spec.path)).Normal(element);
    case InitKind::kSinusoid:
      return Sinusoid(element / spec.shape[1], element % spec.shape[1], spec.shape[1]);
  }
  return 0.0;
}

std::string UpdateKeyName(const std::string& module, UpdateRule rule) {
  return absl::StrCat(module, "/", RuleName(rule));
}

std::unique_ptr<FlatStorage> FlatStorage::Create(ExecContext& ctx,
                                                 absl::Span<const ParameterSpec> specs,
                                                 const FlatStorageOptions& options) {
  std::vector<Placement> placements;
  for (const ParameterSpec& spec : specs) {
    placements.push_back(PlaceWhole(spec, PlacementClass::kStage));
  }
  return Create(ctx, placements, options);
}

std::unique_ptr<FlatStorage> FlatStorage::Create(ExecContext& ctx,
                                                 absl::Span<const Placement> placements,
                                                 const FlatStorageOptions& options) {
  std::unique_ptr<FlatStorage> storage(new FlatStorage(ctx.device));
  storage->dtype_ = options.dtype;
  for (const Placement& place : placements) {
    Bucket wanted = {.module = options.module_of(place.spec.path),
                     .rule = options.rule_of(place.spec),
                     .placement = place.placement,
                     .chunk = place.chunk};
    wanted.name = NameOf(wanted);
    auto bucket =
        std::find_if(storage->buckets_.begin(), storage->buckets_.end(), [&](const Bucket& b) {
          return b.module == wanted.module && b.rule == wanted.rule &&
                 b.placement == wanted.placement && b.chunk == wanted.chunk;
        });
    if (bucket == storage->buckets_.end()) {
      storage->buckets_.push_back(std::move(wanted));
      bucket = std::prev(storage->buckets_.end());
    }
    PlaceParameter(*bucket, place);
    storage->AddUpdateKey(bucket->module, bucket->rule, options);
  }
  for (const ParameterSpec& spec : options.elsewhere) {
    storage->AddUpdateKey(options.module_of(spec.path), options.rule_of(spec), options);
  }
  storage->elastic_.resize(storage->buckets_.size());
  for (Bucket& bucket : storage->buckets_) {
    storage->DealOut(bucket, options);
    storage->AddElastic(bucket, options);
  }
  OMNI_CHECK_OK(storage->value_room_.Map());
  OMNI_CHECK_OK(storage->grad_room_.Map());
  for (const auto& room : storage->grad_rooms_) OMNI_CHECK_OK(room->Map());
  for (Bucket& bucket : storage->buckets_) storage->TakeMemory(ctx, bucket, options);
  storage->Initialise(ctx, options);
  return storage;
}

// Which part the rank keeps, and how that is dealt out to the ranks that share it.
void FlatStorage::DealOut(Bucket& bucket, const FlatStorageOptions& options) {
  const bool by_matrices = bucket.rule == UpdateRule::kMuon;
  int32_t num_ranks = options.num_ranks.of(bucket.placement);
  bucket.kept = {0, bucket.num_elements};
  bucket.sharding = FindSharding(options.shardings, bucket.module, bucket.placement);
  std::vector<Matrix2d*> matrices;
  for (Matrix2d& matrix : bucket.matrices) matrices.push_back(&matrix);
  if (bucket.sharding >= 0) {
    const WeightSharding& sharding = options.shardings[bucket.sharding];
    const int32_t rank = sharding.within.rank(), size = sharding.within.size();
    num_ranks = sharding.across.size();
    bucket.weights = sharding.weights;
    bucket.kept_counts =
        by_matrices ? WholeMatrixCounts(matrices, size) : EvenCounts(bucket.num_elements, size);
    bucket.kept.begin = Before(bucket.kept_counts, rank);
    bucket.kept.end = bucket.kept.begin + bucket.kept_counts[rank];
    matrices.clear();
    for (Matrix2d& matrix : bucket.matrices) {
      if (matrix.owner == rank) matrices.push_back(&matrix);
      matrix.owner = -1;
    }
  }
  bucket.shard_counts = by_matrices ? WholeMatrixCounts(matrices, num_ranks)
                                    : EvenCounts(bucket.kept.size(), num_ranks);
}

void FlatStorage::TakeMemory(ExecContext& ctx, Bucket& bucket, const FlatStorageOptions& options) {
  Elastic& elastic = elastic_[&bucket - buckets_.data()];
  const int64_t count = bucket.num_elements, num_kept = bucket.kept.size();
  if (bucket.weights == WeightStorage::kZero3) {
    bucket.values = ElasticView(dtype_, count, *elastic.values);
    bucket.kept_values = arena_.New(dtype_, {num_kept});
  } else {
    bucket.values = arena_.New(dtype_, {count});
    bucket.kept_values = bucket.values.Rows(bucket.kept.begin, num_kept);
  }
  if (!IsTrained(bucket, options)) return;
  if (bucket.weights != WeightStorage::kReplicated) {
    bucket.grads = ElasticView(master_dtype(), count, *elastic.grads);
    bucket.kept_grads = arena_.New(master_dtype(), {num_kept});
  } else {
    bucket.grads = bucket.kept_grads = arena_.New(master_dtype(), {count});
  }
  FillWith(ctx, 0.0, bucket.kept_grads);
}

TensorView FlatStorage::ElasticView(DType dtype, int64_t num_elements,
                                    const ElasticMemory& memory) const {
  return TensorView::Dense(memory.data(), dtype, device_.kind(), {num_elements});
}

// A turn is what ShardedWeights brings together at once: a WeightPart.
void FlatStorage::AddElastic(const Bucket& bucket, const FlatStorageOptions& options) {
  if (bucket.weights == WeightStorage::kReplicated) return;
  Elastic& elastic = elastic_[&bucket - buckets_.data()];
  std::string part = options.shardings[bucket.sharding].module;
  if (bucket.placement != PlacementClass::kEncoder) absl::StrAppend(&part, "/", bucket.chunk);
  const auto found = std::find(parts_.begin(), parts_.end(), part);
  const auto turn = static_cast<int32_t>(found - parts_.begin());
  if (found == parts_.end()) parts_.push_back(part);
  if (bucket.weights == WeightStorage::kZero3) {
    elastic.values = value_room_.Add(turn, bucket.num_elements * SizeOf(dtype_));
  }
  if (!IsTrained(bucket, options)) return;
  while (!options.gradients_in_turn && grad_rooms_.size() < parts_.size()) {
    grad_rooms_.push_back(std::make_unique<ElasticRoom>(device_.pool()));
  }
  ElasticRoom& room = options.gradients_in_turn ? grad_room_ : *grad_rooms_[turn];
  elastic.grads = room.Add(turn, bucket.num_elements * SizeOf(master_dtype()));
}

void FlatStorage::CommitValues(size_t bucket) { elastic_[bucket].values->Commit(); }
void FlatStorage::CommitGrads(size_t bucket) { elastic_[bucket].grads->Commit(); }
bool FlatStorage::has_grads(size_t bucket) const {
  const ElasticMemory* memory = elastic_[bucket].grads;
  return memory == nullptr ? !buckets_[bucket].grads.empty() : memory->is_committed();
}
void FlatStorage::ReleaseValues(size_t bucket) { elastic_[bucket].values->Release(); }
void FlatStorage::ReleaseGrads(size_t bucket) { elastic_[bucket].grads->Release(); }

void FlatStorage::AddUpdateKey(const std::string& module, UpdateRule rule,
                               const FlatStorageOptions& options) {
  const std::string name = UpdateKeyName(module, rule);
  const bool is_known = std::any_of(update_keys_.begin(), update_keys_.end(),
                                    [&](const UpdateKey& key) { return key.name == name; });
  if (is_known) return;
  update_keys_.push_back({.name = name,
                          .module = module,
                          .trained = rule != UpdateRule::kFixed && options.ever_trained(module)});
}

void FlatStorage::Initialise(ExecContext& ctx, const FlatStorageOptions& options) {
  constexpr int64_t kAtOnce = int64_t{1} << 20;  // bounds the staging, whatever the parameter
  std::vector<double> initial;
  for (const Bucket& bucket : buckets_) {
    for (const PlacedParameter& parameter : bucket.parameters) {
      const ParameterSpec& spec = parameter.place.spec;
      if (options.is_given != nullptr && options.is_given(spec.path)) continue;
      // Where the whole is not always there, only what is kept.
      const bool is_kept_only = bucket.weights == WeightStorage::kZero3;
      const TensorView& values = is_kept_only ? bucket.kept_values : bucket.values;
      const int64_t values_begin = is_kept_only ? bucket.kept.begin : 0;
      const int64_t end =
          std::min(parameter.count, values_begin + values.num_elements() - parameter.offset);
      for (int64_t begin = std::max<int64_t>(0, values_begin - parameter.offset); begin < end;
           begin += kAtOnce) {
        const int64_t count = std::min(kAtOnce, end - begin);
        initial.resize(count);
        parameter.place.shard.ForEachRun(
            begin, begin + count, [&](int64_t local, int64_t global, int64_t length) {
              for (int64_t i = 0; i < length; ++i) {
                initial[local - begin + i] = InitialValue(spec, options.seed, global + i);
              }
            });
        TensorArena staging(ctx.device);
        const TensorView source = staging.New(DType::kFloat64, {count});
        Upload(ctx, initial.data(), source.num_bytes(), source);
        const TensorView target = values.Rows(parameter.offset + begin - values_begin, count);
        CopyTo(ctx, source, target);
      }
    }
  }
}

int64_t FlatStorage::num_parameters() const {
  int64_t count = 0;
  for (const Bucket& bucket : buckets_) count += bucket.num_elements;
  return count;
}

ParameterStore FlatStorage::Store(
    const std::function<bool(const std::string& module)>& trains) const {
  ParameterStore store;
  for (const Bucket& bucket : buckets_) {
    const bool trained = !bucket.grads.empty() && trains(bucket.module);
    for (const PlacedParameter& parameter : bucket.parameters) {
      const std::vector<int64_t> shape = parameter.place.shard.shape();
      Weight weight;
      weight.value = bucket.values.Rows(parameter.offset, parameter.count).Reshape(shape);
      if (trained) {
        weight.grad = bucket.grads.Rows(parameter.offset, parameter.count).Reshape(shape);
      }
      store.Put(parameter.place.spec.path, weight);
    }
  }
  return store;
}

std::vector<IndexRange> CountedOnce(const Bucket& bucket, int64_t begin, int64_t end) {
  std::vector<IndexRange> counted;
  const auto append = [&](int64_t first, int64_t last) {
    if (first < last) counted.push_back({first, last});
  };
  int64_t next = begin;
  for (const CopiedRange& copied : bucket.copied) {
    const int64_t copied_end = copied.offset + copied.count;
    if (copied.is_first || copied_end <= next) continue;
    if (copied.offset >= end) break;
    append(next, copied.offset);
    next = copied_end;
  }
  append(next, end);
  return counted;
}

std::vector<TensorRange> FlatStorage::Ranges(const Bucket& bucket, int64_t begin,
                                             const TensorView& data, const std::string& suffix,
                                             bool to_save) {
  const int64_t end = begin + data.num_elements();
  const std::vector<IndexRange> wanted =
      to_save ? CountedOnce(bucket, begin, end) : std::vector<IndexRange>{{begin, end}};
  std::vector<TensorRange> ranges;
  for (const PlacedParameter& parameter : bucket.parameters) {
    const int64_t offset = parameter.offset;
    for (const IndexRange& range : wanted) {
      const int64_t first = std::max(range.begin, offset);
      const int64_t last = std::min(range.end, offset + parameter.count);
      if (first >= last) continue;
      parameter.place.shard.ForEachRun(
          first - offset, last - offset, [&](int64_t local, int64_t global, int64_t count) {
            ranges.push_back({.name = parameter.place.spec.path + suffix,
                              .shape = parameter.place.spec.shape,
                              .begin = global,
                              .data = data.Rows(offset + local - begin, count)});
          });
    }
  }
  return ranges;
}

}  // namespace omni::parallel
