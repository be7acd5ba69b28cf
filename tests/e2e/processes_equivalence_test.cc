// Any plan gives the single-rank result (ARCHITECTURE.md, "Contracts") as real jobs: `omnitrain
// train` with one to four worker processes, over shm and tcp, on both devices, in fp64. Losses are
// read from metrics.jsonl, weights from the checkpoint the job leaves.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_format.h"
#include "tests/e2e/process.h"
#include "tests/support/equivalence.h"
#include "tests/support/tiny_job.h"

namespace omni::test {
namespace {

namespace fs = std::filesystem;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// Runs the recipe to its end; the run directory.
std::string Train(const TinyRecipe& recipe, const std::string& name) {
  const std::string dir = absl::StrCat(TinyData(), "-runs/", name), path = dir + ".yaml";
  fs::remove_all(dir);
  fs::create_directories(fs::path(dir).parent_path());
  std::ofstream(path) << TinyRecipeYaml(recipe);
  OmnitrainProcess run({"train", path, "--run-dir", dir});
  EXPECT_EQ(run.Wait(), 0) << run.output();
  return dir;
}

Outcome OutcomeOf(const std::string& run_dir) {
  const auto outcome = ReadOutcome(run_dir);
  EXPECT_TRUE(outcome.ok()) << outcome.status();
  return outcome.value_or(Outcome{});
}

const std::string& OneWorker() {
  static const std::string dir = Train(EquivalenceRecipe(), "one");
  return dir;
}

// Without these the comparisons below would say nothing about ranks without media.
TEST(EquivalenceRecipeTest, HasStepsInWhichRanksHaveNoMedia) {
  int64_t no_image = 0, few_images = 0, no_audio = 0, few_audio = 0, only_text = 0;
  const auto steps = ReadMetrics(OneWorker() + "/metrics.jsonl");
  ASSERT_THAT(steps, SizeIs(20));
  for (const auto& [step, values] : steps) {
    const double image = std::stod(values.at("samples/image"));
    const double audio = std::stod(values.at("samples/audio"));
    const double video = std::stod(values.at("samples/video"));
    EXPECT_GT(std::stod(values.at("loss_tokens")), 0) << "step " << step;
    no_image += image == 0 && audio > 0;
    no_audio += audio == 0 && image > 0;
    few_images += image >= 1 && image <= 3;  // so one of four ranks has none
    few_audio += audio >= 1 && audio <= 3;
    only_text += image + audio + video == 0;
  }
  EXPECT_GE(no_image, 1);
  EXPECT_GE(few_images, 1);
  EXPECT_GE(no_audio, 1);
  EXPECT_GE(few_audio, 1);
  EXPECT_GE(only_text, 1);
}

TEST(EquivalenceRecipeTest, TheComparisonSeesOneElement) {
  const Outcome one = OutcomeOf(OneWorker());
  ASSERT_THAT(one.parameters, SizeIs(::testing::Gt(20u)));
  EXPECT_THAT(Differences(one, one, 0, 0), IsEmpty());
  for (const auto& [path, values] : one.parameters) {
    Outcome other = one;
    double norm = 0;
    for (const double v : values) norm += v * v;
    other.parameters[path].back() += 1e-8 * std::max(1.0, std::sqrt(norm));
    EXPECT_THAT(Differences(other, one, 1e-9, 1e-6), Contains(HasSubstr(path)));
  }
  Outcome other = one;
  other.losses[7] *= 1 + 1e-8;
  EXPECT_THAT(Differences(other, one, 1e-9, 1e-6), Contains(HasSubstr("loss of step 8")));
}

struct Case {
  int32_t workers;
  const char* comm;
  const char* device;
};

class ProcessesTest : public ::testing::TestWithParam<Case> {};

TEST_P(ProcessesTest, GiveTheSingleRanksResult) {
  TinyRecipe recipe = EquivalenceRecipe();
  recipe.workers = GetParam().workers;
  recipe.comm = GetParam().comm;
  recipe.device = GetParam().device;
  const std::string dir =
      Train(recipe, absl::StrFormat("%s-%s-%d", recipe.comm, recipe.device, recipe.workers));
  const Outcome outcome = OutcomeOf(dir);
  ASSERT_THAT(outcome.losses, SizeIs(20));
  EXPECT_LT(outcome.losses.back(), outcome.losses.front());
  EXPECT_THAT(Differences(outcome, OutcomeOf(OneWorker()), 1e-9, 1e-6), IsEmpty());
  for (int32_t rank = 0; rank < recipe.workers; ++rank) {  // there were as many processes
    EXPECT_TRUE(fs::exists(absl::StrFormat("%s/logs/rank-%05d.log", dir, rank)));
  }
  EXPECT_FALSE(fs::exists(absl::StrFormat("%s/logs/rank-%05d.log", dir, recipe.workers)));
}

std::vector<Case> Cases() {
  std::vector<Case> cases = {{1, "shm", "cpu_async"}};
  for (const int32_t workers : {2, 3, 4}) {
    for (const char* comm : {"shm", "tcp"}) {
      for (const char* device : {"cpu", "cpu_async"}) cases.push_back({workers, comm, device});
    }
  }
  return cases;
}
INSTANTIATE_TEST_SUITE_P(Plans, ProcessesTest, ::testing::ValuesIn(Cases()), [](const auto& info) {
  return absl::StrFormat("%d_%s_%s", info.param.workers, info.param.comm, info.param.device);
});

// Losses as they are written, and every tensor with the optimizer's state.
void ExpectSameBits(const std::string& a, const std::string& b) {
  const auto lines = ReadMetrics(a + "/metrics.jsonl"), others = ReadMetrics(b + "/metrics.jsonl");
  ASSERT_THAT(lines, SizeIs(20));
  ASSERT_THAT(others, SizeIs(20));
  for (const auto& [step, values] : lines) {
    for (const char* name : {"loss", "grad_norm"}) {
      EXPECT_EQ(values.at(name), others.at(step).at(name)) << name << " in step " << step;
    }
  }
  const auto tensors = ReadNewestCheckpoint(a), other_tensors = ReadNewestCheckpoint(b);
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_TRUE(other_tensors.ok()) << other_tensors.status();
  ASSERT_GT(tensors->size(), 40u);
  EXPECT_EQ(tensors->size(), other_tensors->size());
  for (const auto& [name, values] : *tensors) {
    EXPECT_TRUE(values == other_tensors->at(name)) << name;
  }
}

TEST(DeterminismTest, TheSamePlanTwiceGivesTheSameBits) {
  TinyRecipe recipe = EquivalenceRecipe();
  recipe.dtype = "fp32";
  recipe.workers = 3;
  recipe.comm = "tcp";
  ExpectSameBits(Train(recipe, "twice-a"), Train(recipe, "twice-b"));
}

TEST(DeterminismTest, TheThreadCountChangesNoBit) {
  TinyRecipe recipe = EquivalenceRecipe();
  recipe.dtype = "fp32";
  recipe.workers = 2;
  const std::string one = Train(recipe, "threads-1");
  recipe.threads = 3;
  ExpectSameBits(one, Train(recipe, "threads-3"));
}

}  // namespace
}  // namespace omni::test
