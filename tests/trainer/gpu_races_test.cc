// Whole steps of several ranks on the emulated GPU with every access looked at: no race within a
// kernel, between kernels or between streams; and one wait for an event left out is seen.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "tests/support/run_ranks.h"
#include "tests/support/tiny_job.h"
#include "trainer/trainer.h"

namespace omni::trainer {
namespace {

using ::testing::IsEmpty;

// What the plugin says of two steps. Each process opens one plugin, so all tests here have this
// one.
std::string ReportsOf(test::TinyRecipe tiny) {
  setenv("OMNITRAIN_CUDA_EMULATED_PLUGIN", OMNI_RACES_PLUGIN, 1);
  tiny.steps = 2;
  tiny.device = "cuda_emulated";
  const auto recipe = ParseRecipe(test::TinyRecipeYaml(tiny), "tiny.yaml");
  EXPECT_TRUE(recipe.ok()) << recipe.status();
  ::testing::internal::CaptureStderr();
  KernelRegistry kernels;
  const absl::Status status =
      test::RunRanks(tiny.workers, "shm", [&](Communicator& comm, int32_t) -> absl::Status {
        OMNI_ASSIGN_OR_RETURN(
            const auto trainer,
            Trainer::Create({.recipe = *recipe, .comm = &comm, .kernels = &kernels}));
        while (!trainer->finished()) OMNI_RETURN_IF_ERROR(trainer->RunStep().status());
        return absl::OkStatus();
      });
  const std::string reports = ::testing::internal::GetCapturedStderr();
  EXPECT_TRUE(status.ok()) << status;
  return reports;
}

test::TinyRecipe MediaModel(const char* gpu_comm) {
  return {.workers = 2, .lanes = 2, .gpu_comm = gpu_comm, .dtype = "bf16"};
}
test::TinyRecipe ExpertsModel() {
  return {.workers = 2,
          .lanes = 2,
          .gpu_comm = "nccl",
          .dtype = "fp32",
          .sources = "[text, image]",
          .moe = "{experts: 4, top_k: 2, ffn: 24, dense_layers: [0], z_loss: 1e-3}"};
}
test::TinyRecipe PipelinedModel() {
  return {.workers = 2,
          .lanes = 2,
          .gpu_comm = "nccl",
          .dtype = "bf16",
          .sources = "[text]",
          .extra_parallel = "pipeline: 2, "};
}

TEST(GpuRacesTest, WholeStepsHaveNone) {
  EXPECT_THAT(ReportsOf(MediaModel("nccl")), IsEmpty());
  EXPECT_THAT(ReportsOf(MediaModel("host")), IsEmpty());
  EXPECT_THAT(ReportsOf(ExpertsModel()), IsEmpty());
  EXPECT_THAT(ReportsOf(PipelinedModel()), IsEmpty());
}

// Of those that tell a stream something new many guard what the host has waited for as well, and no
// two runs number them alike; so some of the first are left out in turn, and several must be
// missed.
TEST(GpuRacesTest, AWaitLeftOutIsSeen) {
  int num_seen = 0;
  for (int64_t wait = 7; wait <= 22; ++wait) {
    setenv("OMNI_EMULATED_LEAVE_OUT_WAIT", absl::StrCat(wait).c_str(), 1);
    num_seen += absl::StrContains(ReportsOf(PipelinedModel()), "race on global memory");
    unsetenv("OMNI_EMULATED_LEAVE_OUT_WAIT");
  }
  EXPECT_GE(num_seen, 2);
}

}  // namespace
}  // namespace omni::trainer
