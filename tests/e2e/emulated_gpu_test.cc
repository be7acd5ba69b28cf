// `runtime.device: cuda_emulated` as a user starts it: the plugin that is opened, what is said
// where one can't be, and jobs that learn, are killed, resumed and resumed with other workers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <filesystem>
#include <fstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "tests/e2e/process.h"
#include "tests/support/checkpoints.h"
#include "tests/support/test_device.h"
#include "tests/support/tiny_job.h"

namespace omni::test {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class EmulatedGpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!testing::HasEmulatedGpu()) GTEST_SKIP() << "there is no emulated GPU in this build";
  }
};

std::string Folder(const std::string& name) {
  const std::string folder = absl::StrCat(TinyData(), "-gpu-runs/", name);
  fs::remove_all(folder);
  fs::create_directories(fs::path(folder).parent_path());
  return folder;
}

std::vector<std::string> Train(const std::string& dir, TinyRecipe recipe,
                               const std::string& device = "cuda_emulated") {
  recipe.device = device;
  const std::string path = dir + ".yaml";
  std::ofstream(path) << TinyRecipeYaml(recipe);
  return {"train", path, "--run-dir", dir};
}

std::vector<double> Losses(const std::string& dir) {
  std::vector<double> losses;
  for (const auto& [step, values] : ReadMetrics(dir + "/metrics.jsonl")) {
    double loss = 0;
    EXPECT_TRUE(absl::SimpleAtod(values.at("loss"), &loss));
    losses.push_back(loss);
  }
  return losses;
}

TEST_F(EmulatedGpuTest, LearnsAsTheCpuDoes) {
  const TinyRecipe recipe{.steps = 20, .workers = 2, .dtype = "bf16"};
  const std::string cpu_dir = Folder("cpu"), gpu_dir = Folder("gpu");
  OmnitrainProcess cpu(Train(cpu_dir, recipe, "cpu")), gpu(Train(gpu_dir, recipe));
  EXPECT_EQ(cpu.Wait(), 0) << cpu.output();
  EXPECT_EQ(gpu.Wait(), 0) << gpu.output();
  const std::vector<double> expected = Losses(cpu_dir), found = Losses(gpu_dir);
  ASSERT_EQ(expected.size(), 20u);
  ASSERT_EQ(found.size(), 20u);
  for (size_t i = 0; i < found.size(); ++i) EXPECT_NEAR(found[i], expected[i], 0.01 * expected[i]);
}

TEST_F(EmulatedGpuTest, AKilledJobGoesOnToTheBit) {
  const TinyRecipe recipe{.steps = 12, .workers = 2, .dtype = "bf16", .checkpoint_every = 3};
  const std::string whole_dir = Folder("whole"), dir = Folder("killed");
  OmnitrainProcess whole(Train(whole_dir, recipe));
  EXPECT_EQ(whole.Wait(), 0) << whole.output();
  {
    OmnitrainProcess killed(Train(dir, recipe));
    ASSERT_TRUE(WaitFor([&] { return ReadMetrics(dir + "/metrics.jsonl").size() >= 5; }))
        << killed.output();
    kill(killed.pid(), SIGKILL);
    killed.Wait();
  }
  OmnitrainProcess resumed(Train(dir, recipe));
  EXPECT_EQ(resumed.Wait(), 0) << resumed.output();
  EXPECT_THAT(resumed.output(), HasSubstr("resuming from step"));
  EXPECT_EQ(Losses(dir), Losses(whole_dir));
}

// Saved by two ranks of a GPU, gone on with by one of the CPU: in fp64 the numbers are one rank's.
TEST_F(EmulatedGpuTest, ACheckpointGoesToAnotherLayoutAndDevice) {
  TinyRecipe recipe{.steps = 6, .workers = 2, .dtype = "fp64", .checkpoint_every = 3};
  const std::string dir = Folder("layout"), other_dir = Folder("other");
  std::vector<std::string> half = Train(dir, recipe);
  half.insert(half.end(), {"--steps", "3"});
  OmnitrainProcess first(half);
  EXPECT_EQ(first.Wait(), 0) << first.output();
  recipe.workers = 1;
  std::vector<std::string> rest = Train(dir, recipe, "cpu");
  rest.insert(rest.end(), {"--steps", "6"});
  OmnitrainProcess second(rest);
  EXPECT_EQ(second.Wait(), 0) << second.output();
  OmnitrainProcess unbroken(Train(other_dir, recipe, "cpu"));
  EXPECT_EQ(unbroken.Wait(), 0) << unbroken.output();
  const std::vector<double> expected = Losses(other_dir), found = Losses(dir);
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) EXPECT_NEAR(found[i], expected[i], 1e-9 * expected[i]);
}

TEST_F(EmulatedGpuTest, WhatIsMissingIsSaidInOneSentence) {
  const TinyRecipe recipe{.steps = 2, .dtype = "fp32"};
  const std::string dir = Folder("missing");
  ASSERT_EQ(setenv("OMNITRAIN_CUDA_EMULATED_PLUGIN", "/nowhere/libomni.so", 1), 0);
  OmnitrainProcess no_plugin(Train(dir, recipe));
  EXPECT_EQ(no_plugin.Wait(), 1);
  unsetenv("OMNITRAIN_CUDA_EMULATED_PLUGIN");
  EXPECT_THAT(no_plugin.output(), HasSubstr("cuda_emulated: there is no plugin for it (tried "
                                            "/nowhere/libomni.so (no such file))"));
  std::vector<std::string> greedy = Train(Folder("greedy"), recipe);
  greedy.insert(greedy.end(), {"--set", "runtime.reserve_gib=64"});
  OmnitrainProcess too_much(greedy);
  EXPECT_EQ(too_much.Wait(), 1);
  EXPECT_THAT(too_much.output(), HasSubstr("can't reserve 68719476736 bytes of GPU memory"));
  EXPECT_THAT(too_much.output(), HasSubstr("lower runtime.reserve_gib"));
}

}  // namespace
}  // namespace omni::test
