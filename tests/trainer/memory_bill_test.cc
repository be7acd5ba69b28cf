#include "trainer/memory_bill.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "tests/support/run_ranks.h"
#include "tests/support/tiny_job.h"
#include "trainer/trainer.h"

namespace omni::trainer {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int64_t kGiB = int64_t{1} << 30, kMiB = int64_t{1} << 20;

TEST(MemoryBillTest, EveryPartIsSaid) {
  const MemoryBill bill{.pool = 4 * kGiB,
                        .weights = kGiB + kGiB / 2,
                        .loader = 300 * kMiB,
                        .plans = 12 * kMiB,
                        .tables = 40 * kMiB,
                        .checkpoint = kGiB,
                        .process = 100 * kMiB};
  EXPECT_EQ(bill.total(), 5 * kGiB + 452 * kMiB);
  EXPECT_EQ(FormatBill(bill),
            "memory a rank, at most: 5.44 GiB; 4.00 GiB reserved (1.50 GiB weights, gradients, "
            "optimizer), loader 300 MiB, plans 12 MiB, tables 40 MiB, a save 1.00 GiB, process 100 "
            "MiB");
  EXPECT_EQ(FormatBill(MemoryBill::FromDoubles(bill.ToDoubles())), FormatBill(bill));
}

TEST(MemoryBillTest, AHostThatIsTooSmallIsSaid) {
  EXPECT_EQ(CheckHost(4, 8 * kGiB, 8 * kGiB, "/proc/meminfo"), "");
  EXPECT_EQ(CheckHost(4, 8 * kGiB, 0, ""), "");  // nobody knows
  EXPECT_THAT(CheckHost(4, 9 * kGiB, 8 * kGiB, "/sys/fs/cgroup/job/memory.max"),
              AllOf(HasSubstr("4 ranks here may take 9.00 GiB, there are 8.00 GiB"),
                    HasSubstr("(/sys/fs/cgroup/job/memory.max)"),
                    HasSubstr("runtime.reserve_gib")));
}

// What rank 0 tells of a job of two.
class Listener : public WorkerLink {
 public:
  void Notice(const std::string& kind, const std::string& text) override {
    notices += absl::StrCat(kind, ": ", text, "\n");
  }
  std::string notices;
};

TEST(MemoryBillTest, AJobTellsItsBill) {
  test::TinyRecipe tiny{.steps = 1, .workers = 2, .sources = "[image]"};
  const auto recipe = ParseRecipe(test::TinyRecipeYaml(tiny), "bill.yaml");
  ASSERT_TRUE(recipe.ok()) << recipe.status();
  KernelRegistry kernels;
  RegisterCpuKernels(kernels);
  Listener listeners[2];
  MemoryBill bills[2];
  const absl::Status status =
      test::RunRanks(2, "shm", [&](Communicator& comm, int32_t rank) -> absl::Status {
        OMNI_ASSIGN_OR_RETURN(const auto trainer, Trainer::Create({.recipe = *recipe,
                                                                   .comm = &comm,
                                                                   .link = &listeners[rank],
                                                                   .kernels = &kernels}));
        bills[rank] = trainer->Bill();
        return trainer->RunStep().status();
      });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_THAT(listeners[0].notices, HasSubstr("info: memory a rank, at most: "));
  EXPECT_EQ(listeners[1].notices, "");
  for (const MemoryBill& bill : bills) {
    EXPECT_EQ(bill.pool, 2 * kGiB);
    EXPECT_GT(bill.weights, 100 << 10);
    EXPECT_GE(bill.loader, 2 * 64 * kMiB);  // memory_mib: 64
    EXPECT_GT(bill.plans, 4 * 12 * 400);    // lanes x window
    EXPECT_LT(bill.plans, 4 * 12 * 4000);
    EXPECT_EQ(bill.checkpoint, 0);  // no run directory
  }
}

}  // namespace
}  // namespace omni::trainer
