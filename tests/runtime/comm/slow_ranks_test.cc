// A deadline says dead, never slow: a rank that gets on is waited for however long it takes; one
// that doesn't is named within the limit, also behind others that wait for it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <vector>

#include "absl/time/clock.h"
#include "runtime/base/limits.h"
#include "runtime/base/status.h"
#include "runtime/comm/progress_of.h"
#include "runtime/device/args/elementwise.h"
#include "runtime/device/exec_context.h"
#include "runtime/device/work_count.h"
#include "tests/support/run_ranks.h"

namespace omni {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr absl::Duration kDeadline = absl::Seconds(1);
constexpr absl::Duration kPiece = absl::Milliseconds(50);
constexpr int kPieces = 40;  // two deadlines in all

// Work longer than the deadline, which shows progress after each piece.
void WorkSlowly(Progress& progress, int pieces = kPieces) {
  for (int i = 0; i < pieces; ++i) {
    absl::SleepFor(kPiece);
    progress.Tick();
  }
}

class SlowRanksTest : public testing::TestWithParam<const char*> {
 protected:
  absl::Status Run(int32_t world, const test::RankFn& fn) {
    return test::RunRanks(world, GetParam(), fn, {.deadline = kDeadline});
  }
};

TEST_P(SlowRanksTest, OneThatGetsOnIsWaitedFor) {
  EXPECT_EQ(Run(3,
                [](Communicator& comm, int32_t rank) {
                  if (rank == 1) WorkSlowly(*ProgressOf(comm));
                  return comm.Barrier()->WaitHost(kDeadline);
                }),
            absl::OkStatus());
}

// Rank 0 waits for 1, which waits for 2 in another group.
TEST_P(SlowRanksTest, AlsoBehindAnotherThatWaits) {
  EXPECT_EQ(Run(3,
                [](Communicator& comm, int32_t rank) -> absl::Status {
                  OMNI_ASSIGN_OR_RETURN(auto pair, comm.Split({1, 2}, "pair"));
                  comm.SetActivity(absl::StrCat("forward of ", rank));
                  if (rank == 2) WorkSlowly(*ProgressOf(comm));
                  if (pair != nullptr) OMNI_RETURN_IF_ERROR(pair->Barrier()->WaitHost(kDeadline));
                  return comm.Barrier()->WaitHost(absl::InfiniteDuration());
                }),
            absl::OkStatus());
}

// It works a while, then no more: what it did before counts only until then.
TEST_P(SlowRanksTest, OneThatStopsGettingOnIsNamed) {
  std::atomic<int64_t> last_sign_ns{0};
  std::vector<absl::Status> results(3);
  std::vector<absl::Duration> after(3);
  (void)Run(3, [&](Communicator& comm, int32_t rank) {
    comm.SetActivity(absl::StrCat("forward of ", rank));
    if (rank == 1) {
      WorkSlowly(*ProgressOf(comm), 25);
      last_sign_ns = absl::ToUnixNanos(absl::Now());
      while (comm.status().ok()) absl::SleepFor(absl::Milliseconds(5));  // hangs
      return results[rank] = comm.status();
    }
    results[rank] = comm.Barrier()->WaitHost(absl::InfiniteDuration());
    after[rank] = absl::Now() - absl::FromUnixNanos(last_sign_ns);
    return results[rank];
  });
  for (const int32_t rank : {0, 2}) {
    EXPECT_EQ(results[rank].code(), absl::StatusCode::kDeadlineExceeded);
    EXPECT_THAT(std::string(results[rank].message()),
                AllOf(HasSubstr("rank 1 is behind"), HasSubstr("at \"forward of 1\"")));
    EXPECT_GT(after[rank], kDeadline / 2);
  }
}

// Somebody else's work is no excuse: rank 2 gets on, and nobody waits for it.
TEST_P(SlowRanksTest, TheDeadOneIsNamedThoughAnotherIsSlow) {
  std::vector<absl::Status> results(3);
  (void)Run(3, [&](Communicator& comm, int32_t rank) {
    if (rank == 1) {
      while (comm.status().ok()) absl::SleepFor(absl::Milliseconds(5));
      return results[rank] = comm.status();
    }
    while (rank == 2 && comm.status().ok()) WorkSlowly(*ProgressOf(comm), 1);
    return results[rank] = comm.Barrier()->WaitHost(absl::InfiniteDuration());
  });
  EXPECT_THAT(std::string(results[0].message()), HasSubstr("rank 1 is behind"));
}

INSTANTIATE_TEST_SUITE_P(Engines, SlowRanksTest, testing::Values("shm", "tcp"),
                         [](const auto& info) { return std::string(info.param); });

// A kernel that ends is progress, and so is a task of one that has not ended.
TEST(WorkCountTest, GrowsWithKernelsAndWithTheirTasks) {
  KernelRegistry kernels;
  kernels.Register({.op = OpId::kFill,
                    .device = DeviceKind::kCpu,
                    .dtype = DType::kFloat32,
                    .name = "fp32_fill_counting",
                    .run = [](const void*, const KernelContext* context) -> int32_t {
                      int64_t seen = WorkCount::OfThread()->count();
                      context->parallel_for(
                          context->pool, 3,
                          [](void* seen, int64_t task) {
                            const int64_t before = *static_cast<int64_t*>(seen);
                            EXPECT_EQ(WorkCount::OfThread()->count(), before + task);
                          },
                          &seen);
                      return 0;
                    }});
  auto device = Device::Create({.reserved_bytes = 1 << 20, .kernels = &kernels});
  ASSERT_TRUE(device.ok()) << device.status();
  const auto stream = (*device)->NewStream();
  TensorArena arena(**device);
  ExecContext ctx{.device = **device, .stream = *stream, .arena = &arena};
  const TensorView out = ctx.New(DType::kFloat32, {4});
  const auto progress = std::make_shared<Progress>();
  {
    const WorkCount scope(progress);
    Launch(ctx, OpId::kFill, out.dtype, FillArgs{.out = out, .value = 0.0});
  }
  EXPECT_EQ(progress->count(), 3 + 1);
  EXPECT_EQ(WorkCount::OfThread(), nullptr);
}

TEST(LimitsTest, TheInnerWaitEndsFirst) {
  for (const double deadline_s : {0.5, 3.0, 30.0}) {
    const Limits limits = Limits::From(deadline_s);
    EXPECT_LT(limits.data, limits.collective);
    EXPECT_EQ(limits.collective, absl::Seconds(deadline_s));
    EXPECT_LT(limits.collective, limits.step);
    EXPECT_LT(limits.step, limits.heartbeat);
    EXPECT_LT(limits.heartbeat, limits.storage);
  }
}

}  // namespace
}  // namespace omni
