// Any plan gives the single-rank result (ARCHITECTURE.md, "Contracts"): the same recipe on other
// numbers of workers, engines, devices and threads, in fp64, compared parameter by parameter.
#include "tests/support/equivalence.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "absl/strings/str_format.h"
#include "runtime/base/status.h"
#include "tests/support/run_ranks.h"
#include "tests/support/test_device.h"
#include "tests/support/tiny_job.h"
#include "trainer/trainer.h"

namespace omni::trainer {
namespace {

using test::Outcome;
using ::testing::IsEmpty;
namespace testing = ::omni::testing;

const KernelRegistry& Kernels() {
  static const KernelRegistry registry = [] {
    KernelRegistry r;
    RegisterCpuKernels(r);
    return r;
  }();
  return registry;
}

absl::Status RunOne(const Recipe& recipe, Communicator* comm, Outcome* outcome) {
  OMNI_ASSIGN_OR_RETURN(const auto trainer,
                        Trainer::Create({.recipe = recipe, .comm = comm, .kernels = &Kernels()}));
  while (!trainer->finished()) {
    OMNI_ASSIGN_OR_RETURN(const auto values, trainer->RunStep());
    outcome->losses.push_back(values.at("loss"));
    outcome->grad_norms.push_back(values.at("grad_norm"));
    for (const char* name : {"moe/balance_loss", "moe/z_loss", "moe/load_max_over_mean"}) {
      if (values.count(name) > 0) outcome->parameters[name].push_back(values.at(name));
    }
  }
  for (const parallel::ParameterSpec& spec : trainer->model().Parameters()) {
    outcome->parameters[spec.path] = trainer->ReadParameter(spec.path);
  }
  return absl::OkStatus();
}

Outcome RunJob(const test::TinyRecipe& tiny) {
  const auto recipe = ParseRecipe(test::TinyRecipeYaml(tiny), "tiny.yaml");
  EXPECT_TRUE(recipe.ok()) << recipe.status();
  Outcome outcome;
  if (!recipe.ok()) return outcome;
  if (tiny.workers == 1) {
    const absl::Status status = RunOne(*recipe, nullptr, &outcome);
    EXPECT_TRUE(status.ok()) << status;
    return outcome;
  }
  std::vector<Outcome> outcomes(tiny.workers);
  const absl::Status status = test::RunRanks(
      tiny.workers, tiny.comm,
      [&](Communicator& comm, int32_t rank) { return RunOne(*recipe, &comm, &outcomes[rank]); });
  EXPECT_TRUE(status.ok()) << status;
  for (const Outcome& other : outcomes) {  // every rank ends with the same bits
    EXPECT_EQ(other.losses, outcomes[0].losses);
    EXPECT_EQ(other.parameters, outcomes[0].parameters);
  }
  return outcomes[0];
}

struct Case {
  const char* name;
  int32_t workers;
  const char* comm;
  const char* device;
  int32_t threads;
  bool moe = false;
  int32_t micro_batch_sequences = 1;
  const char* gpu_comm = "auto";
};

test::TinyRecipe RecipeOf(bool moe) {
  test::TinyRecipe recipe = test::EquivalenceRecipe();
  if (moe)
    recipe.moe =
        "{experts: 4, top_k: 2, ffn: 24, shared_ffn: 16, shared_gate: true, dense_layers: [0], "
        "balance_loss: {coefficient: 0.02}, z_loss: 1e-3, bias_update_rate: 1e-3}";
  return recipe;
}

class EquivalenceTest : public ::testing::TestWithParam<Case> {
 protected:
  static const Outcome& OneRank(bool moe) {
    static std::map<bool, Outcome> outcomes;
    if (outcomes.count(moe) == 0) outcomes[moe] = RunJob(RecipeOf(moe));
    return outcomes.at(moe);
  }
};

TEST_P(EquivalenceTest, GivesTheSingleRanksResult) {
  test::TinyRecipe recipe = RecipeOf(GetParam().moe);
  const Outcome& one_rank = OneRank(GetParam().moe);
  recipe.micro_batch_sequences = GetParam().micro_batch_sequences;
  recipe.workers = GetParam().workers;
  recipe.comm = GetParam().comm;
  recipe.device = GetParam().device;
  recipe.gpu_comm = GetParam().gpu_comm;
  recipe.threads = GetParam().threads;
  const Outcome outcome = RunJob(recipe);
  ASSERT_EQ(outcome.losses.size(), 20u);
  EXPECT_LT(outcome.losses.back(), outcome.losses.front());
  EXPECT_THAT(test::Differences(outcome, one_rank, 1e-9, 1e-6), IsEmpty());
  if (GetParam().workers == 1 && recipe.device.rfind("cuda", 0) != 0) {
    EXPECT_EQ(outcome.losses, one_rank.losses);  // threads and devices change no bit
    EXPECT_EQ(outcome.parameters, one_rank.parameters);
  }
}

// The CUDA plugin's sources, with tensors that the host can't reach; between ranks over host
// memory.
std::vector<Case> CasesOnAGpu() {
  if (testing::WantsGpu()) {  // of which there may be one for all ranks
    return {{"OnACudaGpu", 1, "shm", "cuda", 1},
            {"World2ShmOnACudaGpu", 2, "shm", "cuda", 1, false, 1, "host"},
            {"MoeWorld4ShmOnACudaGpu", 4, "shm", "cuda", 1, true, 1, "host"}};
  }
  if (!testing::HasEmulatedGpu()) return {};
  return {{"OnAGpu", 1, "shm", "cuda_emulated", 1},
          {"World2ShmOnGpus", 2, "shm", "cuda_emulated", 1},
          {"World3TcpOnGpus", 3, "tcp", "cuda_emulated", 1},
          {"World4ShmOnGpus", 4, "shm", "cuda_emulated", 1},
          {"World3NcclOnGpus", 3, "shm", "cuda_emulated", 1, false, 1, "nccl"},
          {"MoeWorld4NcclOnGpus", 4, "shm", "cuda_emulated", 1, true, 1, "nccl"},
          {"MoeOnAGpu", 1, "shm", "cuda_emulated", 1, true},
          {"MoeWorld2ShmOnGpus", 2, "shm", "cuda_emulated", 1, true}};
}
INSTANTIATE_TEST_SUITE_P(Gpu, EquivalenceTest, ::testing::ValuesIn(CasesOnAGpu()),
                         [](const auto& info) { return info.param.name; });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(EquivalenceTest);

INSTANTIATE_TEST_SUITE_P(
    Plans, EquivalenceTest,
    ::testing::Values(Case{"Threads3", 1, "shm", "cpu", 3}, Case{"Async", 1, "shm", "cpu_async", 2},
                      Case{"World2Shm", 2, "shm", "cpu", 1}, Case{"World3Shm", 3, "shm", "cpu", 1},
                      Case{"World4Shm", 4, "shm", "cpu", 2}, Case{"World2Tcp", 2, "tcp", "cpu", 1},
                      Case{"World3Tcp", 3, "tcp", "cpu", 1},
                      Case{"World2ShmAsync", 2, "shm", "cpu_async", 1},
                      Case{"World4TcpAsync", 4, "tcp", "cpu_async", 1},
                      Case{"MoeThreads3", 1, "shm", "cpu", 3, true},
                      Case{"MoeWorld2Shm", 2, "shm", "cpu", 1, true},
                      Case{"MoeWorld2Pairs", 2, "shm", "cpu", 1, true, 2},
                      Case{"MoeWorld3Tcp", 3, "tcp", "cpu", 1, true},
                      Case{"MoeWorld4ShmAsync", 4, "shm", "cpu_async", 1, true}),
    [](const auto& info) { return info.param.name; });

TEST(DeterminismTest, TheSamePlanTwiceGivesTheSameBits) {
  const test::TinyRecipe recipe{.steps = 6, .workers = 2, .lanes = 3, .dtype = "fp32"};
  const Outcome a = RunJob(recipe), b = RunJob(recipe);
  EXPECT_EQ(a.losses, b.losses);
  EXPECT_EQ(a.parameters, b.parameters);
}

TEST(DeterminismTest, TheThreadCountChangesNoBit) {
  test::TinyRecipe recipe{.steps = 6, .lanes = 3, .dtype = "fp32"};
  const Outcome one = RunJob(recipe);
  recipe.threads = 4;
  const Outcome four = RunJob(recipe);
  EXPECT_EQ(one.losses, four.losses);
  EXPECT_EQ(one.parameters, four.parameters);
}

// Gradients of the first step, by parameter: AdamW's first moment after it is (1 - beta1) g.
test::Tensors FirstGradients(test::TinyRecipe tiny) {
  tiny.optimizer = "adamw";
  const auto recipe = ParseRecipe(test::TinyRecipeYaml(tiny), "tiny.yaml");
  EXPECT_TRUE(recipe.ok()) << recipe.status();
  const std::string dir =
      absl::StrFormat("%s/gradients-%s-%d", ::testing::TempDir(), tiny.dtype, tiny.workers);
  std::filesystem::remove_all(dir);
  const absl::Status status =
      test::RunRanks(tiny.workers, "shm", [&](Communicator& comm, int32_t) -> absl::Status {
        OMNI_ASSIGN_OR_RETURN(
            const auto trainer,
            Trainer::Create(
                {.recipe = *recipe, .run_dir = dir, .comm = &comm, .kernels = &Kernels()}));
        OMNI_RETURN_IF_ERROR(trainer->RunStep().status());
        OMNI_RETURN_IF_ERROR(trainer->BeginSave());
        return trainer->FinishSave();
      });
  EXPECT_TRUE(status.ok()) << status;
  auto gradients = test::ReadNewestCheckpoint(dir);
  EXPECT_TRUE(gradients.ok()) << gradients.status();
  std::erase_if(*gradients, [](const auto& tensor) {
    return tensor.first.find("#first_moment") == std::string::npos;
  });
  return *std::move(gradients);
}

struct Precision {
  const char* dtype;
  double tolerance, floor;
};
class GradientTest : public ::testing::TestWithParam<Precision> {};

TEST_P(GradientTest, ThreeRanksHaveTheGradientsOfOne) {
  test::TinyRecipe recipe{.steps = 3, .lanes = 5, .dtype = GetParam().dtype};
  const Outcome one{.parameters = FirstGradients(recipe)};
  recipe.workers = 3;
  const Outcome three{.parameters = FirstGradients(recipe)};
  ASSERT_GT(one.parameters.size(), 20u);
  EXPECT_THAT(test::Differences(three, one, GetParam().tolerance, GetParam().floor), IsEmpty());
}
INSTANTIATE_TEST_SUITE_P(Dtypes, GradientTest,
                         ::testing::Values(Precision{"fp64", 1e-9, 1e-6},
                                           Precision{"fp32", 2e-5, 1e-3}),
                         [](const auto& info) { return info.param.dtype; });

TEST(Bf16Test, LossesFollowThoseOfSinglePrecision) {
  const Outcome rounded = RunJob({.steps = 8, .workers = 2, .lanes = 4, .dtype = "bf16"});
  const Outcome exact = RunJob({.steps = 8, .workers = 2, .lanes = 4, .dtype = "fp32"});
  ASSERT_EQ(rounded.losses.size(), 8u);
  for (size_t i = 0; i < 8; ++i)
    EXPECT_NEAR(rounded.losses[i], exact.losses[i], 0.02 * exact.losses[i]);
  EXPECT_NE(rounded.losses, exact.losses);
}

TEST(FreezeTest, FrozenPartsKeepTheirWeightsAndPhasesThawThem) {
  test::TinyRecipe recipe{.steps = 4, .workers = 2, .lanes = 4};
  recipe.extra_training =
      "  modules: {decoder: {frozen: true}}\n"
      "  phases: [{until_step: 4, modules: {vision: {frozen: true}}}]\n";
  const Outcome frozen = RunJob(recipe);
  auto initial = ParseRecipe(test::TinyRecipeYaml({.steps = 1}), "tiny.yaml");
  ASSERT_TRUE(initial.ok());
  auto trainer = Trainer::Create({.recipe = *initial, .kernels = &Kernels()});
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  for (const auto& [path, values] : frozen.parameters) {
    const bool stays = path.rfind("decoder", 0) == 0 || path.rfind("vision", 0) == 0;
    EXPECT_EQ(values == (*trainer)->ReadParameter(path), stays) << path;
  }
}

TEST(MemoryTest, ThePoolStopsGrowingAfterTheFirstSteps) {
  const auto recipe = ParseRecipe(test::TinyRecipeYaml({.steps = 12, .lanes = 2}), "tiny.yaml");
  auto trainer = Trainer::Create({.recipe = *recipe, .kernels = &Kernels()});
  ASSERT_TRUE(trainer.ok());
  const int64_t before = (*trainer)->device().pool().stats().used_bytes;
  while (!(*trainer)->finished()) {
    ASSERT_TRUE((*trainer)->RunStep().ok());
    EXPECT_EQ((*trainer)->device().pool().stats().used_bytes, before);  // a step leaves nothing
  }
  EXPECT_LE((*trainer)->device().pool().stats().high_water_bytes,
            (*trainer)->device().pool().stats().reserved_bytes);
}

}  // namespace
}  // namespace omni::trainer
