#include "parallel/flat_storage.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "runtime/base/rng.h"
#include "runtime/device/args/elementwise.h"

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
  const double n = static_cast<double>(std::min(matrix.rows, matrix.cols));
  const double m = static_cast<double>(std::max(matrix.rows, matrix.cols));
  return n * n * (2 * m + n);
}

std::vector<int64_t> EvenCounts(int64_t num_elements, int32_t num_ranks) {
  std::vector<int64_t> counts;
  for (int64_t rank = 0; rank < num_ranks; ++rank) {
    counts.push_back(num_elements * (rank + 1) / num_ranks - num_elements * rank / num_ranks);
  }
  return counts;
}

// Matrices in order, each to the rank in whose share of the cost its middle falls.
std::vector<int64_t> WholeMatrixCounts(absl::Span<const Matrix2d> matrices, int32_t num_ranks) {
  double total = 0;
  for (const Matrix2d& matrix : matrices) total += OrthogonaliseCost(matrix);
  std::vector<int64_t> counts(num_ranks, 0);
  double before = 0;
  for (const Matrix2d& matrix : matrices) {
    const double cost = OrthogonaliseCost(matrix);
    const double share = total == 0 ? 0 : (before + cost / 2) / total * num_ranks;
    counts[std::min<int32_t>(num_ranks - 1, static_cast<int32_t>(share))] +=
        matrix.rows * matrix.cols;
    before += cost;
  }
  return counts;
}

void PlaceParameter(Bucket& bucket, const ParameterSpec& spec) {
  bucket.parameters.push_back({spec, bucket.num_elements});
  if (bucket.rule == UpdateRule::kMuon) {
    int64_t offset = bucket.num_elements;
    const int64_t cols = spec.num_elements() / std::max<int64_t>(1, spec.num_rows());
    for (const int64_t rows : spec.StackRows()) {
      bucket.matrices.push_back({offset, rows, cols});
      offset += rows * cols;
    }
  }
  bucket.num_elements += spec.num_elements();
}

}  // namespace

int64_t Bucket::ShardBegin(int32_t rank) const {
  int64_t begin = 0;
  for (int32_t r = 0; r < rank; ++r) begin += shard_counts[r];
  return begin;
}

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

std::unique_ptr<FlatStorage> FlatStorage::Create(ExecContext& ctx,
                                                 absl::Span<const ParameterSpec> specs,
                                                 const FlatStorageOptions& options) {
  std::unique_ptr<FlatStorage> storage(new FlatStorage(ctx.device));
  storage->dtype_ = options.dtype;
  for (const ParameterSpec& spec : specs) {
    const std::string module = options.module_of(spec.path);
    const UpdateRule rule = options.rule_of(spec);
    auto bucket =
        std::find_if(storage->buckets_.begin(), storage->buckets_.end(),
                     [&](const Bucket& b) { return b.module == module && b.rule == rule; });
    if (bucket == storage->buckets_.end()) {
      storage->buckets_.push_back(
          {.name = absl::StrCat(module, "/", RuleName(rule)), .module = module, .rule = rule});
      bucket = std::prev(storage->buckets_.end());
    }
    PlaceParameter(*bucket, spec);
  }
  for (Bucket& bucket : storage->buckets_) {
    bucket.shard_counts = bucket.rule == UpdateRule::kMuon
                              ? WholeMatrixCounts(bucket.matrices, options.num_ranks)
                              : EvenCounts(bucket.num_elements, options.num_ranks);
    bucket.values = storage->arena_.New(options.dtype, {bucket.num_elements});
    if (bucket.rule != UpdateRule::kFixed && options.ever_trained(bucket.module)) {
      bucket.grads = storage->arena_.New(storage->master_dtype(), {bucket.num_elements});
      Launch(ctx, OpId::kFill, bucket.grads.dtype, FillArgs{.out = bucket.grads, .value = 0.0});
    }
  }
  storage->Initialise(ctx, options);
  return storage;
}

void FlatStorage::Initialise(ExecContext& ctx, const FlatStorageOptions& options) {
  constexpr int64_t kAtOnce = int64_t{1} << 20;  // bounds the staging, whatever the parameter
  std::vector<double> initial;
  for (const Bucket& bucket : buckets_) {
    for (const PlacedParameter& parameter : bucket.parameters) {
      if (options.is_given != nullptr && options.is_given(parameter.spec.path)) continue;
      const int64_t num_elements = parameter.spec.num_elements();
      for (int64_t begin = 0; begin < num_elements; begin += kAtOnce) {
        const int64_t count = std::min(kAtOnce, num_elements - begin);
        initial.resize(count);
        for (int64_t i = 0; i < count; ++i) {
          initial[i] = InitialValue(parameter.spec, options.seed, begin + i);
        }
        TensorArena staging(ctx.device);
        const TensorView source = staging.New(DType::kFloat64, {count});
        Upload(ctx, initial.data(), source.num_bytes(), source);
        const TensorView target = bucket.values.Rows(parameter.offset + begin, count);
        Launch(ctx, OpId::kCopyCast, DType::kFloat64, CopyCastArgs{.in = source, .out = target});
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
      const int64_t count = parameter.spec.num_elements();
      Weight weight;
      weight.value = bucket.values.Rows(parameter.offset, count).Reshape(parameter.spec.shape);
      if (trained) {
        weight.grad = bucket.grads.Rows(parameter.offset, count).Reshape(parameter.spec.shape);
      }
      store.Put(parameter.spec.path, weight);
    }
  }
  return store;
}

std::vector<TensorRange> FlatStorage::Ranges(const Bucket& bucket, int64_t begin,
                                             const TensorView& data, const std::string& suffix) {
  std::vector<TensorRange> ranges;
  const int64_t end = begin + data.num_elements();
  for (const PlacedParameter& parameter : bucket.parameters) {
    const int64_t first = std::max(begin, parameter.offset);
    const int64_t last = std::min(end, parameter.offset + parameter.spec.num_elements());
    if (first >= last) continue;
    ranges.push_back({.name = parameter.spec.path + suffix,
                      .shape = parameter.spec.shape,
                      .begin = first - parameter.offset,
                      .data = data.Rows(first - begin, last - first)});
  }
  return ranges;
}

}  // namespace omni::parallel
