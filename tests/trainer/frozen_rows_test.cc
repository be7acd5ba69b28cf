// Rows of towers that do not train are freed when their group's last backward is done, also in a
// group that is shorter than others or has microbatches that are empty on this rank.
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "tests/support/run_ranks.h"
#include "tests/support/tiny_job.h"
#include "trainer/trainer.h"

namespace omni::trainer {
namespace {

struct Case {
  const char* name;
  int32_t workers, lanes;
  const char* parallel;
};

class FrozenRowsTest : public ::testing::TestWithParam<Case> {};

TEST_P(FrozenRowsTest, AreFreedBeforeTheStepEnds) {
  const Case& job = GetParam();
  const test::TinyRecipe tiny{
      .steps = 3,
      .workers = job.workers,
      .lanes = job.lanes,
      .sources = "[image, audio]",
      .extra_training = "  modules: {vision: {frozen: true}, audio: {frozen: true}}\n"};
  auto recipe = LoadRecipeText(test::TinyRecipeYaml(tiny), "tiny.yaml",
                               {absl::StrCat("parallel=", job.parallel)});
  ASSERT_TRUE(recipe.ok()) << recipe.status();
  KernelRegistry kernels;
  RegisterCpuKernels(kernels);
  std::vector<int64_t> most(job.workers), at_end(job.workers);
  const absl::Status status =
      test::RunRanks(job.workers, "shm", [&](Communicator& comm, int32_t rank) -> absl::Status {
        Trainer* self = nullptr;
        OMNI_ASSIGN_OR_RETURN(const auto trainer,
                              Trainer::Create({.recipe = *recipe,
                                               .comm = &comm,
                                               .kernels = &kernels,
                                               .on_action = [&](const parallel::Action& action) {
                                                 const int64_t held =
                                                     self->executor().groups_held();
                                                 most[rank] = std::max(most[rank], held);
                                                 // All backwards are behind it, the end of the step
                                                 // is not.
                                                 if (action.kind == parallel::ActionKind::kAgree) {
                                                   at_end[rank] = std::max(at_end[rank], held);
                                                 }
                                               }}));
        self = trainer.get();
        for (int step = 0; step < 3; ++step) OMNI_RETURN_IF_ERROR(trainer->RunStep().status());
        return absl::OkStatus();
      });
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_GT(most[0], 0);  // rows came at all
  for (int32_t rank = 0; rank < job.workers; ++rank) EXPECT_EQ(at_end[rank], 0) << rank;
}

INSTANTIATE_TEST_SUITE_P(
    Layouts, FrozenRowsTest,
    ::testing::Values(Case{"whole_groups", 2, 4, "{workers: 2, pipeline: 2}"},
                      Case{"short_last_group", 2, 3, "{workers: 2, pipeline: 2}"},
                      // The second replica has a lane less: its last microbatch is empty.
                      Case{"empty_microbatch", 4, 3, "{workers: 4, pipeline: 2}"},
                      Case{"zero_bubble", 2, 5, "{workers: 2, pipeline: 2, schedule: zb_h1}"},
                      Case{"first_stage", 2, 3,
                           "{workers: 2, pipeline: 2, joint: {kind: first_stage, q: 2}}"}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace omni::trainer
