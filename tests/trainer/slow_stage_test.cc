// A pipeline stage that computes for longer than the deadline is slow, not dead; one whose thread
// hangs is named, though other threads of its process go on.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "runtime/base/status.h"
#include "runtime/device/args/elementwise.h"
#include "tests/support/run_ranks.h"
#include "tests/support/tiny_job.h"
#include "trainer/trainer.h"

namespace omni::trainer {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr double kDeadlineSeconds = 1.0;
constexpr int64_t kSteps = 3;

// Two stages; before its first forward of step 2 the second does `interlude`.
absl::Status Train(const std::function<void(Trainer&, Communicator&)>& interlude) {
  const std::string yaml =
      test::TinyRecipeYaml({.steps = kSteps, .dtype = "fp32", .sources = "[text]"});
  OMNI_ASSIGN_OR_RETURN(const Recipe recipe,
                        LoadRecipeText(yaml, "slow.yaml",
                                       {"parallel={workers: 2, pipeline: 2}",
                                        absl::StrCat("runtime.deadline_s=", kDeadlineSeconds)}));
  KernelRegistry kernels;
  RegisterCpuKernels(kernels);
  return test::RunRanks(2, "shm",
                        [&](Communicator& comm, int32_t rank) -> absl::Status {
                          Trainer* self = nullptr;
                          bool done = false;
                          OMNI_ASSIGN_OR_RETURN(
                              const auto trainer,
                              Trainer::Create({.recipe = recipe,
                                               .comm = &comm,
                                               .kernels = &kernels,
                                               .on_action = [&](const parallel::Action& action) {
                                                 if (rank != 1 || done || self->step() != 1) return;
                                                 if (action.kind != parallel::ActionKind::kForward)
                                                   return;
                                                 done = true;
                                                 interlude(*self, comm);
                                               }}));
                          self = trainer.get();
                          return trainer->Run();
                        },
                        {.deadline = absl::Seconds(kDeadlineSeconds)});
}

TEST(SlowStageTest, OneThatComputesForLongerThanTheDeadlineIsWaitedFor) {
  std::atomic<bool> was_slow{false};
  const absl::Status status = Train([&](Trainer& trainer, Communicator&) {
    const auto stream = trainer.device().NewStream();
    TensorArena arena(trainer.device());
    ExecContext ctx{.device = trainer.device(), .stream = *stream, .arena = &arena};
    const TensorView out = ctx.New(DType::kFloat32, {4});
    for (int i = 0; i < 25; ++i) {  // kernels of 0.1 s, two and a half deadlines in all
      absl::SleepFor(absl::Milliseconds(100));
      Launch(ctx, OpId::kFill, out.dtype, FillArgs{.out = out, .value = 0.0});
    }
    was_slow = true;
  });
  EXPECT_EQ(status, absl::OkStatus());
  EXPECT_TRUE(was_slow);
}

TEST(SlowStageTest, OneThatHangsIsNamedWithWhatItWasAt) {
  const absl::Status status = Train([&](Trainer&, Communicator& comm) {
    while (comm.status().ok()) absl::SleepFor(absl::Milliseconds(5));
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("rank 1 is behind"), HasSubstr("at \"step 2, forward")));
}

}  // namespace
}  // namespace omni::trainer
