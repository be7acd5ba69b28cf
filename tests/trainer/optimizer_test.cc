// AdamW and Muon against PyTorch and against formulas written out in fp64 here; ZeRO-1 on several
// ranks against one; clipping, schedules and what is frozen when.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <map>
#include <mutex>
#include <optional>

#include "runtime/base/rng.h"
#include "runtime/device/args/elementwise.h"
#include "tests/support/checkpoints.h"
#include "tests/support/run_ranks.h"
#include "tests/support/test_device.h"
#include "trainer/optimizer/sharded_optimizer.h"

namespace omni::trainer {
namespace {

using parallel::FlatStorage;
using parallel::InitKind;
using parallel::OptimizerClass;
using parallel::ParameterSpec;
using parallel::ParameterStore;
using parallel::PlacementGroups;
using testing::TestDevice;
using Values = std::vector<double>;

// ---- one rank, one parameter ----

// A storage with one parameter of given value, and its optimizer.
class OneParameter {
 public:
  OneParameter(const OptimizerConfig& config, ParameterSpec spec, const Values& value, DType dtype)
      : spec_(spec) {
    ExecContext ctx = device_.ctx();
    storage_ =
        FlatStorage::Create(ctx, {&spec_, 1},
                            {.dtype = dtype,
                             .module_of = [](const std::string&) { return "m"; },
                             .rule_of = [&](const ParameterSpec& s) { return config.RuleOf(s); },
                             .ever_trained = [](const std::string&) { return true; }});
    weight_ = storage_->Store([](const std::string&) { return true; }).Get(spec_.path);
    Set(weight_.value, value);
    optimizer_ = std::make_unique<ShardedOptimizer>(ctx, *storage_, PlacementGroups(), config,
                                                    absl::Seconds(10));
  }
  void Step(const Values& grad, double lr) {
    ExecContext ctx = device_.ctx();
    Set(weight_.grad, grad);
    ASSERT_TRUE(optimizer_->ReduceGradients(ctx, [](const std::string&) { return true; }).ok());
    summary_ = *optimizer_->Agree(ctx);
    ASSERT_TRUE(optimizer_->Update(ctx, summary_, [lr](const std::string&) { return lr; }).ok());
    ASSERT_TRUE(optimizer_->GatherParameters(ctx).ok());
    optimizer_->ZeroGradients(ctx);
  }
  Values Value() { return device_.ReadDoubles(weight_.value); }
  Values Grad() { return device_.ReadDoubles(weight_.grad); }
  const GradientSummary& summary() const { return summary_; }

 private:
  void Set(const TensorView& view, const Values& values) {
    ExecContext ctx = device_.ctx();
    const TensorView source =
        device_.UploadAs(DType::kFloat64, values, view.shape(), device_.arena());
    Launch(ctx, OpId::kCopyCast, DType::kFloat64, CopyCastArgs{source, view});
  }

  TestDevice device_;
  ParameterSpec spec_;
  std::unique_ptr<FlatStorage> storage_;
  std::unique_ptr<ShardedOptimizer> optimizer_;
  Weight weight_;
  GradientSummary summary_;
};

OptimizerConfig AdamWConfig() {
  return {.kind = OptimizerConfig::Kind::kAdamW,
          .beta1 = 0.9,
          .beta2 = 0.98,
          .eps = 1e-8,
          .weight_decay = 0.05,
          .clip = 0.0};
}
OptimizerConfig MuonConfig() {
  OptimizerConfig config = AdamWConfig();
  config.kind = OptimizerConfig::Kind::kMuon;
  return config;
}

void ExpectNear(const Values& a, const Values& b, double tolerance) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], tolerance) << i;
}

// Golden values: tools/golden/optimizers.py.
TEST(AdamWTest, IsPyTorchs) {
  // fp32: five steps of two roundings, each of half the 1.2e-7 between numbers near 2.
  for (const auto& [dtype, tolerance] :
       {std::pair{DType::kFloat64, 1e-14}, std::pair{DType::kFloat32, 6e-7}}) {
    OneParameter parameter(AdamWConfig(),
                           {.path = "w", .shape = {5}, .optimizer = OptimizerClass::kEmbedding},
                           {0.5, -1.25, 2.0, 0.0, -0.03125}, dtype);
    for (int t = 1; t <= 5; ++t)
      parameter.Step({0.1 * t, -0.2, 0.3 / t, t % 2 == 0 ? 1e-3 : -1e-3, 4.0}, 0.01);
    ExpectNear(parameter.Value(),
               {0.45054730855777625, -1.1969281009416417, 1.9507638839028032, 0.014327019194008429,
                -0.08112197795482287},
               tolerance);
    EXPECT_EQ(parameter.Grad(), Values(5, 0.0));
  }
}

TEST(AdamWTest, VectorsDoNotDecay) {
  OneParameter parameter(AdamWConfig(),
                         {.path = "w", .shape = {2}, .optimizer = OptimizerClass::kVector},
                         {3.0, -3.0}, DType::kFloat64);
  parameter.Step({0.0, 0.0}, 0.1);
  EXPECT_EQ(parameter.Value(), (Values{3.0, -3.0}));
}

// Steps far below bf16's resolution of the value add up in the master weights.
TEST(AdamWTest, MastersRememberWhatBfloat16Rounds) {
  OneParameter parameter(AdamWConfig(),
                         {.path = "w", .shape = {1}, .optimizer = OptimizerClass::kVector}, {1.0},
                         DType::kBFloat16);
  for (int t = 0; t < 100; ++t) parameter.Step({1.0}, 1e-4);  // each step is -1e-4
  EXPECT_NEAR(parameter.Value()[0], 0.99, 1.0 / 256);
  EXPECT_LT(parameter.Value()[0], 0.995);
}

// Muon written out: rows x cols, no BLAS, no transposing.
struct ReferenceMuon {
  int64_t rows, cols;
  Values weight, buffer;

  static Values Multiply(const Values& a, const Values& b, int64_t n, int64_t k, int64_t m) {
    Values c(n * m, 0.0);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t l = 0; l < k; ++l)
        for (int64_t j = 0; j < m; ++j) c[i * m + j] += a[i * k + l] * b[l * m + j];
    return c;
  }
  static Values Transpose(const Values& a, int64_t n, int64_t m) {
    Values t(n * m);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < m; ++j) t[j * n + i] = a[i * m + j];
    return t;
  }
  // X <- a X + b (X X^T) X + c (X X^T)^2 X, on X as it lies: the same for X and its transpose.
  static Values Orthogonalise(Values x, int64_t n, int64_t m, int steps) {
    double squares = 0;
    for (const double v : x) squares += v * v;
    for (double& v : x) v /= std::sqrt(squares) + 1e-7;
    for (int s = 0; s < steps; ++s) {
      const Values gram = Multiply(x, Transpose(x, n, m), n, m, n);
      const Values cubic = Multiply(gram, x, n, n, m), quintic = Multiply(gram, cubic, n, n, m);
      for (size_t i = 0; i < x.size(); ++i)
        x[i] = 3.4445 * x[i] - 4.7750 * cubic[i] + 2.0315 * quintic[i];
    }
    return x;
  }
  void Step(const Values& grad, const OptimizerConfig& config, double lr) {
    buffer.resize(grad.size(), 0.0);
    Values direction(grad.size());
    for (size_t i = 0; i < grad.size(); ++i) {
      buffer[i] = config.momentum * buffer[i] + grad[i];
      direction[i] = grad[i] + config.momentum * buffer[i];
    }
    direction = Orthogonalise(direction, rows, cols, config.newton_schulz_steps);
    const double scale = 0.2 * std::sqrt(static_cast<double>(std::max(rows, cols)));
    for (size_t i = 0; i < grad.size(); ++i)
      weight[i] = weight[i] * (1 - lr * config.weight_decay) - lr * scale * direction[i];
  }
};

Values Draws(int64_t count, uint64_t stream) {
  const CounterRng rng(11, stream);
  Values values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = rng.Normal(i);
  return values;
}

TEST(MuonTest, FollowsTheFormulaOnWideTallAndStackedMatrices) {
  struct Case {
    std::vector<int64_t> shape;
    std::vector<int64_t> stack;  // rows of each
    int64_t cols;
  };
  const Case cases[] = {{{3, 5}, {3}, 5},     {{5, 3}, {5}, 3},        {{1, 4}, {1}, 4},
                        {{7, 1}, {7}, 1},     {{4, 2, 3}, {4}, 6},     {{10, 4}, {6, 2, 2}, 4},
                        {{200, 7}, {200}, 7}, {{205, 210}, {205}, 210}};
  for (const Case& c : cases) {
    for (const auto& [dtype, tolerance] :
         {std::pair{DType::kFloat64, 1e-11}, std::pair{DType::kFloat32, 1e-4}}) {
      OptimizerConfig config = MuonConfig();
      config.newton_schulz_steps = 4;
      int64_t count = 1;
      for (const int64_t size : c.shape) count *= size;
      Values value = Draws(count, 1);
      OneParameter parameter(config, {.path = "w", .shape = c.shape, .stack_rows = c.stack}, value,
                             dtype);
      std::vector<ReferenceMuon> references;
      int64_t at = 0;
      for (const int64_t rows : c.stack) {
        references.push_back(
            {rows, c.cols, Values(value.begin() + at, value.begin() + at + rows * c.cols), {}});
        at += rows * c.cols;
      }
      for (int t = 0; t < 3; ++t) {
        const Values grad = Draws(count, 10 + t);
        parameter.Step(grad, 0.02);
        Values expected;
        at = 0;
        for (ReferenceMuon& reference : references) {
          const int64_t size = reference.rows * reference.cols;
          reference.Step(Values(grad.begin() + at, grad.begin() + at + size), config, 0.02);
          expected.insert(expected.end(), reference.weight.begin(), reference.weight.end());
          at += size;
        }
        SCOPED_TRACE(count);
        ExpectNear(parameter.Value(), expected, tolerance);
      }
    }
  }
}

TEST(MuonTest, IsPyTorchsToTheAccuracyOfItsBfloat16) {
  Values value, change;
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 5; ++j) value.push_back(((3 * i + 2 * j) % 7 - 3.0) / 4);
  OptimizerConfig config = MuonConfig();
  config.newton_schulz_steps = 5;
  OneParameter parameter(config, {.path = "w", .shape = {3, 5}}, value, DType::kFloat32);
  for (int t = 1; t <= 3; ++t) {
    Values grad;
    for (int i = 0; i < 3; ++i)
      for (int j = 0; j < 5; ++j) grad.push_back((((i * 5 + j) * (t + 2)) % 11 - 5.0) / 8);
    parameter.Step(grad, 0.02);
  }
  // Golden values: tools/golden/optimizers.py. Updates are about 0.01 large; bf16 has 8 bits.
  ExpectNear(parameter.Value(),
             {-0.7299852967262268, -0.24504773318767548, 0.23919671773910522, 0.7463997602462769,
              -0.4943174123764038, -0.0003311983309686184, 0.4954565763473511, -0.7632571458816528,
              -0.2557857632637024, 0.2583082318305969, 0.7402657270431519, -0.478293776512146,
              0.00498412549495697, 0.49118536710739136, -0.7507824897766113},
             5e-4);
}

TEST(MuonTest, AZeroGradientDecaysOnly) {
  OneParameter parameter(MuonConfig(), {.path = "w", .shape = {2, 2}}, {1, 2, 3, 4},
                         DType::kFloat64);
  parameter.Step(Values(4, 0.0), 0.1);
  ExpectNear(parameter.Value(), {0.995, 1.99, 2.985, 3.98}, 1e-15);
}

TEST(MuonTest, VectorsAndEmbeddingsGetAdamW) {
  const OptimizerConfig config = MuonConfig();
  using parallel::UpdateRule;
  EXPECT_EQ(config.RuleOf({.path = "w", .shape = {2, 2}}), UpdateRule::kMuon);
  EXPECT_EQ(config.RuleOf({.path = "w", .shape = {2, 2}, .optimizer = OptimizerClass::kEmbedding}),
            UpdateRule::kAdamW);
  EXPECT_EQ(config.RuleOf({.path = "w", .shape = {2}, .optimizer = OptimizerClass::kVector}),
            UpdateRule::kAdamWNoDecay);
  EXPECT_EQ(config.RuleOf({.path = "w", .shape = {2, 2}, .optimizer = OptimizerClass::kFixed}),
            UpdateRule::kFixed);
  EXPECT_EQ(AdamWConfig().RuleOf({.path = "w", .shape = {2, 2}}), UpdateRule::kAdamW);
}

TEST(ClippingTest, ScalesTheWholeGradientToTheNorm) {
  // Muon's momentum buffer shows the scale: with one step and no decay the direction is the
  // same, so use AdamW's eps: m / (sqrt(v) + eps) depends on the scale when eps is large.
  OptimizerConfig config = AdamWConfig();
  config.eps = 1.0;
  config.weight_decay = 0.0;
  const auto step = [&](double clip, const Values& grad) {
    config.clip = clip;
    OneParameter parameter(config, {.path = "w", .shape = {2}}, {0, 0}, DType::kFloat64);
    parameter.Step(grad, 1.0);
    EXPECT_NEAR(parameter.summary().norm, std::hypot(grad[0], grad[1]), 1e-12);
    return parameter.Value();
  };
  ExpectNear(step(1.0, {3, 4}), step(0.0, {0.6, 0.8}), 1e-12);
  ExpectNear(step(10.0, {3, 4}), step(0.0, {3, 4}), 1e-12);
  ExpectNear(step(0.0, {3, 4}), {-3.0 / 4.0, -4.0 / 5.0}, 1e-12);
}

TEST(NonFiniteTest, IsSeen) {
  for (const double bad : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
    OneParameter parameter(AdamWConfig(), {.path = "w", .shape = {3}}, {1, 2, 3}, DType::kFloat32);
    parameter.Step({0.0, bad, 1.0}, 0.0);
    EXPECT_FALSE(parameter.summary().finite);
    parameter.Step({0.0, 2.0, 1.0}, 0.0);
    EXPECT_TRUE(parameter.summary().finite);
  }
}

// ---- ZeRO-1 ----

std::vector<ParameterSpec> ModelSpecs() {
  return {{.path = "vision.patch", .shape = {7, 3}, .optimizer = OptimizerClass::kEmbedding},
          {.path = "vision.qkv", .shape = {12, 6}, .num_stacked = 3},
          {.path = "vision.norm",
           .shape = {6},
           .init = InitKind::kOnes,
           .optimizer = OptimizerClass::kVector},
          {.path = "decoder.up", .shape = {20, 4}},
          {.path = "decoder.down", .shape = {4, 10}},
          {.path = "decoder.norm",
           .shape = {1},
           .init = InitKind::kOnes,
           .optimizer = OptimizerClass::kVector}};
}

struct Outcome {
  std::map<std::string, Values> values;  // after the steps
  std::map<std::string, Values> state;   // whole tensors, from all ranks' ranges
  std::vector<double> norms;
  std::map<std::string, int64_t> update_counts;
  std::map<std::string, DType> dtypes;  // of `state`
  int64_t copied_bytes = 0;             // by a save, over all ranks
};

// Gradients of a step, in 64ths: sums of parts are exact, so any number of ranks has the same.
double WholeGradient(const std::string& path, int step, int64_t element) {
  const CounterRng rng(3, StreamOf(path) + step);
  return (static_cast<double>(rng.Below(element, 2001)) - 1000.0) / 64.0;
}
double PartOfRank(double whole, int32_t rank, int32_t num_ranks) {
  const double others = std::trunc(whole / num_ranks * 4) / 4;
  return rank == 0 ? whole - others * (num_ranks - 1) : others;
}

struct RunOptions {
  DeviceKind device = DeviceKind::kCpu;
  DType dtype = DType::kFloat32;
  double clip = 0.0;
  bool (*active)(const std::string& module, int step) = nullptr;
  bool (*ever_trained)(const std::string& module) = [](const std::string&) { return true; };
  int first_step = 0, end_step = 4;
  std::string load_from = {};  // a checkpoint folder, before the first step
  std::string save_to = {};    // after the last
  std::map<std::string, int64_t> update_counts = {};
};

// Some steps on `num_ranks` ranks, as threads.
Outcome Train(int32_t num_ranks, const RunOptions& options) {
  Outcome run;
  std::mutex mutex;
  OptimizerConfig config = MuonConfig();
  config.clip = options.clip;
  const auto rank_main = [&](Communicator* comm, int32_t rank) -> absl::Status {
    TestDevice device(options.device, {.reserved_bytes = 64 << 20, .num_threads = 1});
    ExecContext ctx = device.ctx();
    const auto storage = FlatStorage::Create(
        ctx, ModelSpecs(),
        {.dtype = options.dtype,
         .num_ranks = num_ranks,
         .seed = 2,
         .module_of = [](const std::string& path) { return path.substr(0, path.find('.')); },
         .rule_of = [&](const ParameterSpec& spec) { return config.RuleOf(spec); },
         .ever_trained = options.ever_trained});
    if (comm != nullptr) comm = &device.Reach(*comm);
    ShardedOptimizer optimizer(ctx, *storage, PlacementGroups::DataParallel(comm), config,
                               absl::Seconds(60));
    const ParameterStore store = storage->Store([](const std::string&) { return true; });
    if (!options.load_from.empty()) {
      const auto checkpoint = Checkpoint::Open(CheckpointsIn(options.load_from).back().second);
      if (!checkpoint.ok()) return checkpoint.status();
      if (auto status = optimizer.Load(ctx, **checkpoint); !status.ok()) return status;
      optimizer.set_update_counts(options.update_counts);
    }
    for (int step = options.first_step; step < options.end_step; ++step) {
      for (const ParameterSpec& spec : ModelSpecs()) {
        if (store.Get(spec.path).grad.empty()) continue;
        Values grad(spec.num_elements());
        for (size_t i = 0; i < grad.size(); ++i)
          grad[i] = PartOfRank(WholeGradient(spec.path, step, i), rank, num_ranks);
        TensorArena temporary(device.device());
        const TensorView source = device.UploadAs(DType::kFloat64, grad, spec.shape, temporary);
        Launch(ctx, OpId::kCopyCast, DType::kFloat64,
               CopyCastArgs{source, store.Get(spec.path).grad});
      }
      const auto active = [&](const std::string& module) {
        return options.active == nullptr || options.active(module, step);
      };
      if (auto status = optimizer.ReduceGradients(ctx, active); !status.ok()) return status;
      const auto summary = optimizer.Agree(ctx);
      if (!summary.ok()) return summary.status();
      const auto lr_of = [](const std::string& module) { return module == "vision" ? 0.01 : 0.02; };
      if (auto status = optimizer.Update(ctx, *summary, lr_of); !status.ok()) return status;
      if (auto status = optimizer.GatherParameters(ctx); !status.ok()) return status;
      optimizer.ZeroGradients(ctx);
      if (rank == 0) run.norms.push_back(summary->norm);
    }
    const std::vector<TensorRange> ranges = optimizer.StateRanges(ctx);
    if (!options.save_to.empty()) {
      CheckpointWriter writer(options.save_to, rank, num_ranks, /*keep=*/1);
      writer.Begin(options.end_step, ranges, "{}", [&](const TensorView& from, void* to) {
        return device.device().CopyOut(device.stream(), from, to);
      });
      writer.WaitWritten();
      if (comm != nullptr) {
        const absl::Status all_written = comm->Barrier()->WaitHost(absl::Seconds(60));
        if (!all_written.ok()) return all_written;
      }
      if (rank == 0) {
        if (auto status = writer.Commit(); !status.ok()) return status;
      }
      if (auto status = writer.Finish(); !status.ok()) return status;
    }
    const std::lock_guard lock(mutex);
    run.update_counts = optimizer.update_counts();
    run.copied_bytes += Snapshot::BytesOf(ranges);
    for (const ParameterSpec& spec : ModelSpecs()) {
      const Values values = device.ReadDoubles(store.Get(spec.path).value);
      const auto [it, fresh] = run.values.emplace(spec.path, values);
      EXPECT_EQ(it->second, values) << "rank " << rank << " has other values of " << spec.path;
    }
    for (const TensorRange& range : ranges) {
      int64_t count = 1;
      for (const int64_t size : range.shape) count *= size;
      Values& whole = run.state.try_emplace(range.name, Values(count, std::nan(""))).first->second;
      run.dtypes[range.name] = range.data.dtype;
      const Values piece = device.ReadDoubles(range.data);
      for (size_t i = 0; i < piece.size(); ++i) {
        EXPECT_TRUE(std::isnan(whole[range.begin + i])) << range.name << " saved twice";
        whole[range.begin + i] = piece[i];
      }
    }
    return absl::OkStatus();
  };
  if (num_ranks == 1) {
    EXPECT_TRUE(rank_main(nullptr, 0).ok());
  } else {
    const absl::Status status = test::RunRanks(
        num_ranks, "shm", [&](Communicator& comm, int32_t rank) { return rank_main(&comm, rank); });
    EXPECT_TRUE(status.ok()) << status;
  }
  return run;
}

class ZeroTest : public ::testing::TestWithParam<DeviceKind> {};

TEST_P(ZeroTest, AnyNumberOfRanksHasTheBitsOfOne) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat64, DType::kBFloat16}) {
    const Outcome one = Train(1, {.device = GetParam(), .dtype = dtype});
    // 6 parameters, 2 moments for 3 of them, 1 momentum for the others; nothing is missing.
    EXPECT_EQ(one.state.size(), 6u + 2 * 3 + 3);
    for (const auto& [name, values] : one.state) {
      for (const double v : values) ASSERT_TRUE(std::isfinite(v)) << name;
    }
    for (const int32_t num_ranks : {2, 3, 4, 5}) {
      SCOPED_TRACE(num_ranks);
      const Outcome many = Train(num_ranks, {.device = GetParam(), .dtype = dtype});
      EXPECT_EQ(many.values, one.values);
      EXPECT_EQ(many.state, one.state);
      for (int step = 0; step < 4; ++step)
        EXPECT_NEAR(many.norms[step], one.norms[step], 1e-12 * one.norms[step]);
    }
  }
}

TEST_P(ZeroTest, TheNormCountsEachElementOnce) {
  double squares = 0;
  for (const ParameterSpec& spec : ModelSpecs())
    for (int64_t i = 0; i < spec.num_elements(); ++i)
      squares += std::pow(WholeGradient(spec.path, 0, i), 2);
  for (const int32_t num_ranks : {1, 3})
    EXPECT_NEAR(Train(num_ranks, {.device = GetParam()}).norms[0], std::sqrt(squares), 1e-9);
}

TEST_P(ZeroTest, ClippingIsTheSameOnAnyNumberOfRanks) {
  const RunOptions options{.device = GetParam(), .dtype = DType::kFloat64, .clip = 1.0};
  const Outcome one = Train(1, options), three = Train(3, options);
  for (const auto& [name, values] : one.state) {
    ExpectNear(three.state.at(name), values, 1e-12);
  }
}

TEST_P(ZeroTest, AnInactiveBucketIsLeftAlone) {
  const auto only_decoder = [](const std::string& module, int) { return module == "decoder"; };
  for (const int32_t num_ranks : {1, 3}) {
    const Outcome run = Train(num_ranks, {.device = GetParam(), .active = only_decoder});
    for (const ParameterSpec& spec : ModelSpecs()) {
      Values initial(spec.num_elements());
      for (size_t i = 0; i < initial.size(); ++i)
        initial[i] = static_cast<float>(parallel::InitialValue(spec, 2, i));
      EXPECT_EQ(run.values.at(spec.path) == initial, spec.path.rfind("vision", 0) == 0)
          << spec.path;
    }
  }
}

// A module skipped for some steps continues as if they had not been (its own update count).
TEST_P(ZeroTest, SkippedStepsDoNotCountInTheBiasCorrection) {
  const auto last_only = [](const std::string&, int step) { return step == 3; };
  const Outcome run =
      Train(2, {.device = GetParam(), .dtype = DType::kFloat64, .active = last_only});
  // AdamW's first update is lr * sign(g), whichever step it comes in.
  const double grad = WholeGradient("decoder.norm", 3, 0);
  ASSERT_NE(grad, 0.0);
  EXPECT_NEAR(run.values.at("decoder.norm")[0], 1.0 - 0.02 * (grad > 0 ? 1 : -1), 1e-8);
}

TEST_P(ZeroTest, WhatSomeRanksSavedAnyNumberGoesOnWith) {
  const std::string folder = ::testing::TempDir() + "/optimizer_" + std::to_string(getpid());
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    const RunOptions options{.device = GetParam(), .dtype = dtype};
    const Outcome unbroken = Train(1, options);
    for (const auto& [savers, loaders] : {std::pair{3, 1}, {1, 3}, {4, 3}, {2, 5}}) {
      SCOPED_TRACE(::testing::Message() << savers << " ranks, then " << loaders);
      std::filesystem::remove_all(folder);
      RunOptions before = options, after = options;
      before.end_step = 2;
      before.save_to = folder;
      const Outcome half = Train(savers, before);
      after.first_step = 2;
      after.load_from = folder;
      after.update_counts = half.update_counts;
      const Outcome resumed = Train(loaders, after);
      EXPECT_EQ(resumed.values, unbroken.values);
      EXPECT_EQ(resumed.state, unbroken.state);
    }
  }
  std::filesystem::remove_all(folder);
}

bool TrainsTheDecoder(const std::string& module) { return module == "decoder"; }

// 7 x 3, 12 x 6 and 6 elements of the tower.
constexpr int64_t kTowerElements = 21 + 72 + 6;

TEST_P(ZeroTest, WhatNeverTrainsCostsItsValuesAlone) {
  for (const int32_t num_ranks : {1, 3}) {
    SCOPED_TRACE(num_ranks);
    RunOptions options{.device = GetParam(), .dtype = DType::kBFloat16};
    const Outcome all = Train(num_ranks, options);
    options.ever_trained = TrainsTheDecoder;
    const Outcome frozen = Train(num_ranks, options);
    for (const char* path : {"vision.patch", "vision.qkv", "vision.norm"}) {
      EXPECT_EQ(frozen.dtypes.at(path), DType::kBFloat16) << path;
      EXPECT_EQ(frozen.state.at(path), frozen.values.at(path)) << path;
      for (const char* moment : {"#momentum", "#first_moment", "#second_moment"}) {
        EXPECT_EQ(frozen.state.count(std::string(path) + moment), 0u) << path << moment;
      }
    }
    EXPECT_EQ(frozen.dtypes.at("decoder.up"), DType::kFloat32);
    // A save copies only what may change: without masters and moments of the tower. From a GPU it
    // copies the tower's values as well, in bf16.
    const int64_t values = IsHostMemory(GetParam()) ? 0 : kTowerElements * 2;
    EXPECT_EQ(all.copied_bytes - frozen.copied_bytes, (2 * 72 + 3 * (21 + 6)) * 4 - values);
    EXPECT_EQ(frozen.values.at("decoder.up"), all.values.at("decoder.up"));
  }
}

TEST(FrozenTest, NoMasterIsMade) {
  TestDevice device(DeviceKind::kCpu, {.reserved_bytes = 64 << 20, .num_threads = 1});
  ExecContext ctx = device.ctx();
  const ParameterSpec spec{.path = "w", .shape = {1024, 1024}};
  const OptimizerConfig config = AdamWConfig();
  const auto storage =
      FlatStorage::Create(ctx, {&spec, 1},
                          {.dtype = DType::kBFloat16,
                           .module_of = [](const std::string&) { return "m"; },
                           .rule_of = [&](const ParameterSpec& s) { return config.RuleOf(s); },
                           .ever_trained = [](const std::string&) { return false; }});
  const int64_t before = device.device().pool().stats().used_bytes;
  EXPECT_EQ(before, 2 << 20);
  ShardedOptimizer optimizer(ctx, *storage, PlacementGroups(), config, absl::Seconds(10));
  EXPECT_LT(device.device().pool().stats().used_bytes - before, 64 << 10);
}

TEST_P(ZeroTest, AFrozenPartGetsItsMasterWhenItTrains) {
  const std::string folder = ::testing::TempDir() + "/frozen_" + std::to_string(getpid());
  for (const bool was_frozen : {true, false}) {
    std::filesystem::remove_all(folder);
    RunOptions before{.device = GetParam(), .dtype = DType::kBFloat16};
    before.end_step = 2;
    before.save_to = folder;
    if (was_frozen) before.ever_trained = TrainsTheDecoder;
    const Outcome half = Train(3, before);
    // Frozen goes on as frozen with the same bits, and so does what a checkpoint has masters of.
    RunOptions after{.device = GetParam(), .dtype = DType::kBFloat16};
    after.first_step = after.end_step = 2;
    after.load_from = folder;
    after.update_counts = half.update_counts;
    after.ever_trained = TrainsTheDecoder;
    const Outcome resumed = Train(2, after);
    EXPECT_EQ(resumed.values, half.values) << was_frozen;
    EXPECT_EQ(resumed.dtypes.at("vision.qkv"), DType::kBFloat16);
  }
  std::filesystem::remove_all(folder);
}

INSTANTIATE_TEST_SUITE_P(Devices, ZeroTest, testing::TestDevices(), testing::DeviceName);

TEST(ZeroFailureTest, ANonFiniteValueOnOneRankIsAgreedByAll) {
  const absl::Status status = test::RunRanks(3, "shm", [](Communicator& comm, int32_t rank) {
    TestDevice device(DeviceKind::kCpu, {.reserved_bytes = 64 << 20, .num_threads = 1});
    ExecContext ctx = device.ctx();
    const OptimizerConfig config = AdamWConfig();
    const auto storage = FlatStorage::Create(
        ctx, ModelSpecs(),
        {.num_ranks = 3,
         .module_of = [](const std::string&) { return "m"; },
         .rule_of = [&](const ParameterSpec& spec) { return config.RuleOf(spec); },
         .ever_trained = [](const std::string&) { return true; }});
    comm.SetInputStream(&device.stream());
    ShardedOptimizer optimizer(ctx, *storage, PlacementGroups::DataParallel(&comm), config,
                               absl::Seconds(60));
    if (rank == 1) {
      const TensorView element = storage->buckets()[0].grads.Rows(0, 1);
      Launch(ctx, OpId::kFill, element.dtype, FillArgs{element, std::nan("")});
    }
    if (auto status = optimizer.ReduceGradients(ctx, [](const std::string&) { return true; });
        !status.ok())
      return status;
    const auto summary = optimizer.Agree(ctx);
    if (!summary.ok()) return summary.status();
    return summary->finite ? absl::InternalError("taken for finite") : absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
}

// ---- schedules ----

TEST(ScheduleTest, Values) {
  using Kind = ScheduleConfig::Kind;
  const auto at = [](Kind kind, int64_t step, int64_t decay = 0) {
    return ScheduleFactor(
        {.kind = kind, .warmup_steps = 4, .final_fraction = 0.1, .decay_steps = decay}, step, 25);
  };
  for (const Kind kind : {Kind::kConstant, Kind::kLinear, Kind::kCosine, Kind::kWsd}) {
    EXPECT_DOUBLE_EQ(at(kind, 0, 5), 0.25);
    EXPECT_DOUBLE_EQ(at(kind, 3, 5), 1.0);
    EXPECT_DOUBLE_EQ(at(kind, 4, 5), 1.0);
    EXPECT_DOUBLE_EQ(at(kind, 24, 5), kind == Kind::kConstant ? 1.0 : 0.1);
  }
  EXPECT_DOUBLE_EQ(at(Kind::kLinear, 14), 0.55);
  EXPECT_DOUBLE_EQ(at(Kind::kCosine, 14), 0.55);
  EXPECT_NEAR(at(Kind::kCosine, 9), 0.1 + 0.45 * (1 + std::sqrt(0.5)), 1e-12);
  EXPECT_DOUBLE_EQ(at(Kind::kWsd, 20, 5), 1.0);
  EXPECT_DOUBLE_EQ(at(Kind::kWsd, 22, 5), 0.55);
}

TEST(ScheduleTest, ShortRunsHaveAFactorInEveryStep) {
  for (const int64_t warmup : {0, 1, 5}) {
    for (int64_t num_steps = 1; num_steps <= 4; ++num_steps) {
      for (int64_t step = 0; step < num_steps; ++step) {
        const double factor = ScheduleFactor(
            {.kind = ScheduleConfig::Kind::kCosine, .warmup_steps = warmup}, step, num_steps);
        EXPECT_TRUE(factor >= 0.0 && factor <= 1.0) << warmup << " " << num_steps << " " << step;
      }
    }
  }
}

TEST(LearningRateTest, PhasesHaveSchedulesOfTheirOwn) {
  using Kind = ScheduleConfig::Kind;
  const OptimizerConfig optimizer{.lr = 1.0};
  const ScheduleConfig whole{.kind = Kind::kLinear, .final_fraction = 0.0};
  const std::vector<TrainingPhase> phases = {
      {.until_step = 10,
       .lr = 4.0,
       .schedule =
           ScheduleConfig{.kind = Kind::kCosine, .warmup_steps = 2, .final_fraction = 0.25}},
      {.until_step = 20, .lr = 2.0},
      {.until_step = 30, .schedule = ScheduleConfig{.kind = Kind::kConstant}},
  };
  const auto at = [&](int64_t step) { return LearningRate(optimizer, whole, phases, step, 41); };
  EXPECT_DOUBLE_EQ(at(0), 2.0);
  EXPECT_DOUBLE_EQ(at(1), 4.0);
  EXPECT_DOUBLE_EQ(at(2), 4.0);
  EXPECT_DOUBLE_EQ(at(9), 1.0);
  EXPECT_DOUBLE_EQ(at(10), 1.5);  // the recipe's own, linear over 41 steps, with the phase's rate
  EXPECT_DOUBLE_EQ(at(20), 1.0);
  EXPECT_DOUBLE_EQ(at(29), 1.0);
  EXPECT_DOUBLE_EQ(at(30), 0.25);  // after the last phase
  EXPECT_DOUBLE_EQ(LearningRate(optimizer, whole, {}, 40, 41), 0.0);
}

TEST(TrainingPhaseTest, BadInputIsNamed) {
  const auto read = [](const std::string& yaml, TrainingPhase* phase) {
    return Read(*ConfigNode::Parse(yaml, "recipe.yaml"), phase);
  };
  TrainingPhase phase;
  ASSERT_TRUE(read("{until_tokens: 5, lr: 2e-4, final_lr: 5e-5, schedule: {kind: cosine, "
                   "warmup_steps: 3}, modules: {vision: {frozen: true}}}",
                   &phase)
                  .ok());
  EXPECT_EQ(phase.until_tokens, 5);
  EXPECT_DOUBLE_EQ(phase.schedule->final_fraction, 0.25);
  EXPECT_EQ(phase.schedule->warmup_steps, 3);
  for (const auto& [yaml, expected] : std::map<std::string, std::string>{
           {"{until_step: 3, until_tokens: 5}", "found both"},
           {"{lr: -1}", "lr"},
           {"{final_lr: 1e-5}", "expected both"},
           {"{lr: 1e-5, final_lr: 1e-6}", "expected both"},
           {"{lr: 1e-6, final_lr: 1e-5, schedule: {kind: linear}}", "no more than lr"},
           {"{schedule: {kind: cosin}}", "cosine"},
           {"{steps: 3}", "until_step"}}) {
    TrainingPhase bad;
    const absl::Status status = read(yaml, &bad);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << yaml;
    EXPECT_NE(std::string(status.message()).find(expected), std::string::npos) << status;
  }
}

TEST(ModuleScheduleTest, PhasesLieOnTopAndTheLongestNameWins) {
  const ModuleSchedule schedule({{"vision", {.lr_scale = 0.1}},
                                 {"vision.merger", {.lr_scale = 2.0}},
                                 {"audio", {.frozen = true}}},
                                {{.until_step = 10, .modules = {{"decoder", {.frozen = true}}}},
                                 {.until_step = 20, .modules = {{"vision", {.frozen = true}}}}});
  EXPECT_EQ(schedule.At("vision", 5).lr_scale, 0.1);
  EXPECT_EQ(schedule.At("vision.blocks", 5).lr_scale, 0.1);
  EXPECT_EQ(schedule.At("vision.merger", 5).lr_scale, 2.0);
  EXPECT_EQ(schedule.At("visionary", 5).lr_scale, 1.0);
  EXPECT_TRUE(schedule.At("decoder", 9).frozen);
  EXPECT_FALSE(schedule.At("decoder", 10).frozen);
  EXPECT_TRUE(schedule.At("vision", 10).frozen);
  EXPECT_FALSE(schedule.At("vision", 20).frozen);
  EXPECT_FALSE(schedule.EverTrained("audio", 100));
  EXPECT_TRUE(schedule.EverTrained("decoder", 100));
  EXPECT_TRUE(schedule.ChangesAt(10));
  EXPECT_FALSE(schedule.ChangesAt(11));
}

TEST(OptimizerConfigTest, BadInputIsNamed) {
  const auto read = [](const char* yaml) {
    OptimizerConfig config;
    return Read(*ConfigNode::Parse(yaml, "recipe.yaml"), &config);
  };
  EXPECT_TRUE(read("{kind: muon, lr: 2.5e-3, betas: [0.9, 0.98], newton_schulz_steps: 4}").ok());
  for (const auto& [yaml, expected] :
       std::map<const char*, const char*>{{"{kind: moun}", "muon"},
                                          {"{lr: -1}", "lr"},
                                          {"{betas: [0.9]}", "betas"},
                                          {"{betas: [0.9, 1.0]}", "betas"},
                                          {"{weight_deacy: 0.1}", "weight_decay"},
                                          {"{eps: 0}", "eps"},
                                          {"{newton_schulz_steps: 0}", "newton_schulz_steps"}}) {
    const absl::Status status = read(yaml);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << yaml;
    EXPECT_NE(std::string(status.message()).find(expected), std::string::npos) << status;
  }
}

}  // namespace
}  // namespace omni::trainer
