#include "parallel/flat_storage.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "runtime/device/args/elementwise.h"
#include "tests/support/test_device.h"

namespace omni::parallel {
namespace {

using testing::TestDevice;

std::vector<ParameterSpec> Specs() {
  const auto matrix = OptimizerClass::kMatrix;
  return {
      {.path = "vision.patch", .shape = {6, 12}, .optimizer = OptimizerClass::kEmbedding},
      {.path = "vision.qkv", .shape = {12, 6}, .optimizer = matrix, .num_stacked = 3},
      {.path = "vision.norm",
       .shape = {6},
       .init = InitKind::kOnes,
       .optimizer = OptimizerClass::kVector},
      {.path = "decoder.qkv", .shape = {8, 4}, .optimizer = matrix, .stack_rows = {4, 2, 2}},
      {.path = "decoder.conv", .shape = {4, 2, 3}, .init_std = 0.5, .optimizer = matrix},
      {.path = "decoder.up", .shape = {40, 4}, .optimizer = matrix},
      {.path = "decoder.bias",
       .shape = {5},
       .init = InitKind::kZeros,
       .optimizer = OptimizerClass::kVector},
      {.path = "decoder.norm",
       .shape = {3},
       .init = InitKind::kOnes,
       .optimizer = OptimizerClass::kVector},
  };
}

FlatStorageOptions Options(int32_t num_ranks, DType dtype = DType::kFloat32) {
  return {.dtype = dtype,
          .num_ranks = num_ranks,
          .seed = 5,
          .module_of = [](const std::string& path) { return path.substr(0, path.find('.')); },
          .rule_of =
              [](const ParameterSpec& spec) {
                return spec.optimizer == OptimizerClass::kMatrix   ? UpdateRule::kMuon
                       : spec.optimizer == OptimizerClass::kVector ? UpdateRule::kAdamWNoDecay
                                                                   : UpdateRule::kAdamW;
              },
          .ever_trained = [](const std::string&) { return true; }};
}

class FlatStorageTest : public ::testing::Test {
 protected:
  std::unique_ptr<FlatStorage> Make(const FlatStorageOptions& options,
                                    std::vector<ParameterSpec> specs = Specs()) {
    ExecContext ctx = device_.ctx();
    return FlatStorage::Create(ctx, specs, options);
  }
  TestDevice device_;
};

TEST_F(FlatStorageTest, BucketsHoldEveryParameterOnceByModuleAndRule) {
  const auto storage = Make(Options(1));
  std::set<std::string> paths, names;
  for (const Bucket& bucket : storage->buckets()) {
    EXPECT_TRUE(names.insert(bucket.name).second) << bucket.name;
    int64_t end = 0;
    for (const PlacedParameter& parameter : bucket.parameters) {
      EXPECT_TRUE(paths.insert(parameter.place.spec.path).second);
      EXPECT_EQ(parameter.place.spec.path.rfind(bucket.module + ".", 0), 0u);
      EXPECT_EQ(parameter.offset, end);
      end += parameter.place.spec.num_elements();
    }
    EXPECT_EQ(end, bucket.num_elements);
    EXPECT_EQ(bucket.values.num_elements(), end);
    EXPECT_EQ(bucket.grads.num_elements(), end);
  }
  EXPECT_EQ(paths.size(), Specs().size());
  EXPECT_EQ(names.size(), 5u);
  EXPECT_EQ(storage->num_parameters(), 72 + 72 + 6 + 32 + 24 + 160 + 5 + 3);
}

TEST_F(FlatStorageTest, StackedMatricesAndConvolutionsAreCutIntoMatrices) {
  const auto storage = Make(Options(1));
  for (const Bucket& bucket : storage->buckets()) {
    if (bucket.name != "decoder/muon") continue;
    std::vector<std::array<int64_t, 3>> found;
    for (const Matrix2d& m : bucket.matrices) found.push_back({m.offset, m.rows, m.cols});
    EXPECT_EQ(found, (std::vector<std::array<int64_t, 3>>{
                         {0, 4, 4}, {16, 2, 4}, {24, 2, 4}, {32, 4, 6}, {56, 40, 4}}));
    return;
  }
  FAIL() << "no bucket decoder/muon";
}

TEST_F(FlatStorageTest, ShardsCoverEveryBucketOnAnyNumberOfRanks) {
  for (int32_t num_ranks = 1; num_ranks <= 9; ++num_ranks) {
    SCOPED_TRACE(num_ranks);
    const auto storage = Make(Options(num_ranks));
    for (const Bucket& bucket : storage->buckets()) {
      const std::vector<int64_t>& counts = bucket.shard_counts;
      ASSERT_EQ(counts.size(), static_cast<size_t>(num_ranks));
      EXPECT_EQ(std::accumulate(counts.begin(), counts.end(), int64_t{0}), bucket.num_elements);
      EXPECT_GE(*std::min_element(counts.begin(), counts.end()), 0);
      if (bucket.rule != UpdateRule::kMuon) {
        const auto [least, most] = std::minmax_element(counts.begin(), counts.end());
        EXPECT_LE(*most - *least, 1) << bucket.name;
        continue;
      }
      // No bound inside a matrix.
      for (int32_t rank = 0; rank < num_ranks; ++rank) {
        const int64_t bound = bucket.ShardBegin(rank);
        for (const Matrix2d& m : bucket.matrices) {
          EXPECT_FALSE(m.offset < bound && bound < m.offset + m.rows * m.cols)
              << bucket.name << " is cut at " << bound;
        }
      }
    }
  }
}

TEST_F(FlatStorageTest, EqualMatricesAreDealtEvenly) {
  std::vector<ParameterSpec> specs;
  for (int i = 0; i < 12; ++i)
    specs.push_back({.path = "m.w" + std::to_string(i), .shape = {8, 8}});
  for (const int32_t num_ranks : {1, 2, 3, 4, 6, 12}) {
    const auto storage = Make(Options(num_ranks), specs);
    EXPECT_EQ(storage->buckets()[0].shard_counts,
              std::vector<int64_t>(num_ranks, 12 * 64 / num_ranks));
  }
}

TEST_F(FlatStorageTest, InitialValuesDoNotDependOnLayout) {
  const auto one = Make(Options(1));
  std::vector<ParameterSpec> reversed = Specs();
  std::reverse(reversed.begin(), reversed.end());
  FlatStorageOptions joined = Options(3);
  joined.module_of = [](const std::string&) { return "all"; };
  joined.rule_of = [](const ParameterSpec&) { return UpdateRule::kAdamW; };
  const auto other = Make(joined, reversed);
  const auto trains = [](const std::string&) { return true; };
  const ParameterStore a = one->Store(trains), b = other->Store(trains);
  for (const ParameterSpec& spec : Specs()) {
    const std::vector<float> values = device_.Read<float>(a.Get(spec.path).value);
    EXPECT_EQ(values, device_.Read<float>(b.Get(spec.path).value)) << spec.path;
    for (size_t i = 0; i < values.size(); ++i)
      EXPECT_EQ(values[i], static_cast<float>(InitialValue(spec, 5, static_cast<int64_t>(i))));
  }
}

TEST_F(FlatStorageTest, InitialValuesHaveTheirDistribution) {
  const auto storage =
      Make(Options(1), {{.path = "m.normal", .shape = {200, 100}, .init_std = 0.5},
                        {.path = "m.other", .shape = {200, 100}, .init_std = 0.5},
                        {.path = "m.ones", .shape = {3}, .init = InitKind::kOnes},
                        {.path = "m.zeros", .shape = {3}, .init = InitKind::kZeros}});
  const ParameterStore store = storage->Store([](const std::string&) { return true; });
  const auto read = [&](const char* path) { return device_.Read<float>(store.Get(path).value); };
  EXPECT_EQ(read("m.ones"), std::vector<float>(3, 1.0f));
  EXPECT_EQ(read("m.zeros"), std::vector<float>(3, 0.0f));
  EXPECT_NE(read("m.normal"), read("m.other"));  // the path seeds them
  double sum = 0, squares = 0;
  for (const float v : read("m.normal")) {
    sum += v;
    squares += double{v} * v;
  }
  // 20000 draws: the mean within 4 sigma, the deviation within 2 %.
  EXPECT_LT(std::abs(sum / 20000), 4 * 0.5 / std::sqrt(20000.0));
  EXPECT_NEAR(std::sqrt(squares / 20000), 0.5, 0.01);
}

TEST_F(FlatStorageTest, GradientsAreWideAndOnlyWhereTrained) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat32, DType::kFloat64}) {
    FlatStorageOptions options = Options(1, dtype);
    options.ever_trained = [](const std::string& module) { return module == "decoder"; };
    const auto storage = Make(options);
    const ParameterStore now = storage->Store([](const std::string&) { return true; });
    EXPECT_TRUE(now.Get("decoder.up").trainable());
    EXPECT_FALSE(now.Get("vision.qkv").trainable());
    EXPECT_EQ(now.Get("decoder.up").value.dtype, dtype);
    EXPECT_EQ(now.Get("decoder.up").grad.dtype,
              dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32);
    EXPECT_EQ(now.Get("decoder.conv").grad.DebugString().substr(4), "[4, 2, 3]");
    EXPECT_EQ(device_.ReadDoubles(now.Get("decoder.up").grad), std::vector<double>(160, 0.0));
    const ParameterStore frozen = storage->Store([](const std::string&) { return false; });
    EXPECT_FALSE(frozen.Get("decoder.up").trainable());
  }
}

TEST_F(FlatStorageTest, FixedTablesHaveValuesButNoGradients) {
  FlatStorageOptions options = Options(2);
  options.rule_of = [](const ParameterSpec& spec) {
    return spec.optimizer == OptimizerClass::kFixed ? UpdateRule::kFixed : UpdateRule::kAdamW;
  };
  std::vector<ParameterSpec> specs = Specs();
  specs.push_back({.path = "vision.positions",
                   .shape = {3, 8},
                   .init = InitKind::kSinusoid,
                   .optimizer = OptimizerClass::kFixed});
  const auto storage = Make(options, specs);
  ParameterStore store = storage->Store([](const std::string&) { return true; });
  EXPECT_FALSE(store.Get("vision.positions").trainable());
  EXPECT_TRUE(store.Get("vision.patch").trainable());
  const std::vector<double> table = device_.ReadDoubles(store.Get("vision.positions").value);
  ASSERT_EQ(table.size(), 24u);
  for (int64_t i = 0; i < 24; ++i) {
    EXPECT_FLOAT_EQ(static_cast<float>(table[i]), static_cast<float>(Sinusoid(i / 8, i % 8, 8)));
  }
  for (const Bucket& bucket : storage->buckets()) {
    EXPECT_EQ(bucket.grads.empty(), bucket.name == "vision/fixed") << bucket.name;
  }
}

// One bucket for each module, rule, class and chunk; updates are counted by module and rule alone.
TEST_F(FlatStorageTest, CutParametersLieInBucketsOfTheirClass) {
  ParameterSpec qkv = {.path = "decoder.layers.0.qkv", .shape = {8, 4}, .stack_rows = {4, 2, 2}};
  qkv.tensor_dim = 0;
  qkv.tensor_units = {4, 2, 2};
  const ParameterSpec conv = {.path = "decoder.conv", .shape = {4, 4}};
  const ParameterSpec later = {
      .path = "decoder.embedding", .shape = {5, 4}, .optimizer = OptimizerClass::kEmbedding};
  std::vector<Placement> placements = {Place(qkv, PlacementClass::kStage, 1, 4, 0, 1),
                                       Place(conv, PlacementClass::kStage, 1, 4, 0, 1),
                                       Place(qkv, PlacementClass::kTied, 3, 4, 0, 1)};
  placements[0].chunk = 3;
  placements[2].spec.path = "decoder.tied.qkv";
  FlatStorageOptions options = Options(2);
  options.num_ranks.counts[static_cast<size_t>(PlacementClass::kTied)] = 3;
  options.elsewhere = {later};
  ExecContext ctx = device_.ctx();
  const auto storage = FlatStorage::Create(ctx, placements, options);
  std::vector<std::string> names, keys;
  for (const Bucket& bucket : storage->buckets()) names.push_back(bucket.name);
  EXPECT_EQ(names, (std::vector<std::string>{"decoder/muon/tensor/chunk 3", "decoder/muon",
                                             "decoder/muon/tied"}));
  for (const UpdateKey& key : storage->update_keys()) keys.push_back(key.name);
  EXPECT_EQ(keys, (std::vector<std::string>{"decoder/muon", "decoder/adamw"}));

  // Rank 1 of 4: one row of q, and of k and v a row each that rank 0 has too, and saves.
  const Bucket& cut = storage->buckets()[0];
  EXPECT_EQ(cut.num_elements, 12);
  EXPECT_EQ(cut.shard_counts.size(), 2u);
  EXPECT_EQ(storage->buckets()[2].shard_counts.size(), 3u);
  ASSERT_EQ(cut.matrices.size(), 3u);
  EXPECT_EQ(cut.matrices[1].rows, 1);
  EXPECT_EQ(cut.matrices[1].whole_rows, 2);
  EXPECT_EQ(cut.matrices[1].parts, (std::vector<IndexRange>{{0, 1}, {0, 1}, {1, 2}, {1, 2}}));
  EXPECT_EQ(CountedOnce(cut, 0, 12), (std::vector<IndexRange>{{0, 4}}));
  EXPECT_EQ(CountedOnce(cut, 2, 3), (std::vector<IndexRange>{{2, 3}}));
  EXPECT_TRUE(CountedOnce(cut, 5, 12).empty());
  EXPECT_EQ(FlatStorage::Ranges(cut, 0, cut.values, "", /*to_save=*/true).size(), 1u);
  const auto ranges = FlatStorage::Ranges(cut, 0, cut.values, "#x");
  ASSERT_EQ(ranges.size(), 3u);
  EXPECT_EQ(ranges[2].name, "decoder.layers.0.qkv#x");
  EXPECT_EQ(ranges[2].shape, (std::vector<int64_t>{8, 4}));
  EXPECT_EQ(ranges[2].begin, 24);
  // The values are those of the whole there, and the store has them in the rank's own shape.
  const Weight weight =
      storage->Store([](const std::string&) { return true; }).Get("decoder.layers.0.qkv");
  EXPECT_EQ(weight.value.DebugString(), "fp32[3, 4]");
  const std::vector<float> values = device_.Read<float>(weight.value);
  for (const auto& [local, global] : {std::pair{0, 4}, {4, 16}, {8, 24}}) {
    for (int i = 0; i < 4; ++i) {
      EXPECT_EQ(values[local + i], static_cast<float>(InitialValue(qkv, 5, global + i)));
    }
  }
}

// Every cut of a bucket names each element once, by parameter and place in it.
TEST_F(FlatStorageTest, RangesNameEveryElementOnce) {
  const auto storage = Make(Options(1));
  for (const Bucket& bucket : storage->buckets()) {
    for (int64_t cut = 0; cut <= bucket.num_elements; ++cut) {
      std::map<std::string, std::vector<float>> seen;
      for (const auto& [begin, count] :
           {std::pair{int64_t{0}, cut}, std::pair{cut, bucket.num_elements - cut}}) {
        for (const TensorRange& range :
             FlatStorage::Ranges(bucket, begin, bucket.values.Rows(begin, count), "#x")) {
          std::vector<float>& values = seen[range.name];
          ASSERT_EQ(static_cast<int64_t>(values.size()), range.begin);
          const std::vector<float> piece = device_.Read<float>(range.data);
          ASSERT_FALSE(piece.empty());
          values.insert(values.end(), piece.begin(), piece.end());
        }
      }
      ASSERT_EQ(seen.size(), bucket.parameters.size());
      for (const PlacedParameter& p : bucket.parameters) {
        ASSERT_EQ(seen.at(p.place.spec.path + "#x"),
                  device_.Read<float>(bucket.values.Rows(p.offset, p.place.spec.num_elements())));
      }
    }
  }
}

}  // namespace
}  // namespace omni::parallel
