#include "parallel/sharded_weights.h"

#include <gtest/gtest.h>

#include "runtime/base/status.h"
#include "runtime/device/args/elementwise.h"
#include "tests/support/run_ranks.h"
#include "tests/support/test_device.h"

namespace omni::parallel {
namespace {

using testing::TestDevice;

constexpr int32_t kRanks = 3;
constexpr int64_t kRows = 200, kCols = 100;  // 80 kB in fp32; values and gradients alike

// One encoder in one sequence group of all ranks.
struct Encoder {
  Encoder(TestDevice& device, Communicator& comm, WeightStorage kind) {
    groups.shardings = {
        {.module = "vision", .weights = kind, .within = Group{&device.Reach(comm)}}};
    ExecContext ctx = device.ctx();
    const ParameterSpec spec = {.path = "vision.merger.map", .shape = {kRows, kCols}};
    storage =
        FlatStorage::Create(ctx, std::vector<Placement>{PlaceWhole(spec, PlacementClass::kEncoder)},
                            {.num_ranks = kRanks,
                             .seed = 3,
                             .module_of = [](const std::string&) { return "vision.merger"; },
                             .rule_of = [](const ParameterSpec&) { return UpdateRule::kAdamW; },
                             .ever_trained = [](const std::string&) { return true; },
                             .shardings = groups.shardings});
    weights = std::make_unique<ShardedWeights>(*storage, groups);
    weight = storage->Store([](const std::string&) { return true; }).Get(spec.path);
  }
  const Bucket& bucket() const { return storage->buckets()[0]; }

  PlacementGroups groups;
  std::unique_ptr<FlatStorage> storage;
  std::unique_ptr<ShardedWeights> weights;
  Weight weight;
};

class ShardedWeightsTest : public ::testing::TestWithParam<DeviceKind> {
 protected:
  void Run(WeightStorage weights,
           const std::function<void(TestDevice& device, Encoder& encoder, int32_t rank)>& fn) {
    const absl::Status status =
        test::RunRanks(kRanks, "shm", [&](Communicator& comm, int32_t rank) {
          TestDevice device(GetParam(), {.reserved_bytes = 4 << 20, .num_threads = 1});
          Encoder encoder(device, comm, weights);
          fn(device, encoder, rank);
          return absl::OkStatus();
        });
    EXPECT_TRUE(status.ok()) << status;
  }
};

TEST_P(ShardedWeightsTest, ValuesAreWholeOnlyBetweenGatherAndDrop) {
  Run(WeightStorage::kZero3, [](TestDevice& device, Encoder& encoder, int32_t) {
    ExecContext ctx = device.ctx();
    const int64_t whole = kRows * kCols * 4, apart = device.used_bytes();
    EXPECT_LT(apart, whole);  // a third of values, and of gradients
    for (int round = 0; round < 2; ++round) {
      encoder.weights->Gather(ctx, {"vision"});
      EXPECT_GE(device.used_bytes(), apart + whole);
      const std::vector<float> values = device.Read<float>(encoder.weight.value);
      const ParameterSpec& spec = encoder.bucket().parameters[0].place.spec;
      for (int64_t i = 0; i < kRows * kCols; ++i) {
        ASSERT_EQ(values[i], static_cast<float>(InitialValue(spec, 3, i))) << i;
      }
      encoder.weights->Drop(ctx, {"vision"});
      EXPECT_EQ(device.used_bytes(), apart);
    }
  });
}

TEST_P(ShardedWeightsTest, GradientsOfEachBackwardAddUpInTheKeptPart) {
  for (const WeightStorage weights : {WeightStorage::kZero2, WeightStorage::kZero3}) {
    Run(weights, [](TestDevice& device, Encoder& encoder, int32_t rank) {
      ExecContext ctx = device.ctx();
      const int64_t apart = device.used_bytes();
      for (int backward = 0; backward < 2; ++backward) {
        encoder.weights->BeginGradients(ctx, {"vision"});
        std::vector<double> grads(kRows * kCols);
        for (size_t i = 0; i < grads.size(); ++i) {
          grads[i] = static_cast<double>(i % 97) + 100.0 * rank + 1000.0 * backward;
        }
        TensorArena arena(device.device());
        const TensorView source = device.UploadAs(DType::kFloat32, grads, {kRows, kCols}, arena);
        Launch(ctx, OpId::kAdd, DType::kFloat32,
               AddArgs{.a = encoder.weight.grad, .b = source, .out = encoder.weight.grad});
        encoder.weights->ReduceGradients(ctx, {"vision"});
      }
      EXPECT_EQ(device.used_bytes(), apart);
      const Bucket& bucket = encoder.bucket();
      const std::vector<float> kept = device.Read<float>(bucket.kept_grads);
      ASSERT_EQ(static_cast<int64_t>(kept.size()), bucket.kept_counts[rank]);
      for (size_t i = 0; i < kept.size(); ++i) {
        const int64_t at = bucket.kept.begin + static_cast<int64_t>(i);
        ASSERT_EQ(kept[i], 6.0f * static_cast<float>(at % 97) + 600.0f + 3000.0f) << at;
      }
    });
  }
}

TEST_P(ShardedWeightsTest, ReplicatedWeightsAreLeftAlone) {
  Run(WeightStorage::kReplicated, [](TestDevice& device, Encoder& encoder, int32_t) {
    ExecContext ctx = device.ctx();
    const int64_t used = device.used_bytes();
    encoder.weights->Gather(ctx, {"vision"});
    encoder.weights->BeginGradients(ctx, {"vision"});
    encoder.weights->ReduceGradients(ctx, {"vision"});
    encoder.weights->Drop(ctx, {"vision"});
    EXPECT_EQ(device.used_bytes(), used);
    EXPECT_EQ(encoder.bucket().kept.size(), kRows * kCols);
    EXPECT_EQ(device.Read<float>(encoder.weight.grad), std::vector<float>(kRows * kCols, 0.0f));
  });
}

INSTANTIATE_TEST_SUITE_P(Devices, ShardedWeightsTest, testing::TestDevices(), testing::DeviceName);

}  // namespace
}  // namespace omni::parallel
