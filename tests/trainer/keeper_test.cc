// Saves beside the step: ranks as uneven as they like, commits that wait for nobody's step, chores
// that no save waits for, and storage that stalls for good.
#include "trainer/keeper.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <mutex>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "runtime/base/status.h"
#include "runtime/comm/progress_of.h"
#include "tests/support/checkpoints.h"
#include "tests/support/run_ranks.h"

namespace omni::trainer {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr double kDeadlineSeconds = 0.7;
const absl::Duration kDeadline = absl::Seconds(kDeadlineSeconds);

class KeeperTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "/keeper_" +
              ::testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }

  using Body = std::function<absl::Status(Keeper& keeper, Communicator& comm, int32_t rank)>;

  // Two ranks with a keeper each. `on_block`, by rank, of every block of a file.
  absl::Status Run(
      const std::function<absl::Status(int32_t rank, absl::string_view path)>& on_block,
      const Body& body) {
    return test::RunRanks(
        2, "shm",
        [&](Communicator& comm, int32_t rank) -> absl::Status {
          OMNI_ASSIGN_OR_RETURN(auto own, comm.Split({0, 1}, "keeper"));
          KeeperOptions options = {
              .folder = folder_,
              .rank = rank,
              .num_ranks = 2,
              .keep = 2,
              .comm = std::move(own),
              .limits = Limits::From(kDeadlineSeconds),
              .progress = ProgressOf(comm),
              .export_checkpoint = rank == 0 ? export_ : nullptr,
              .warn =
                  [&](const std::string& text) {
                    const std::lock_guard<std::mutex> lock(mutex_);
                    warnings_.push_back(absl::StrCat("rank ", rank, ": ", text));
                  },
              .stops = [&] { return stops_.load(); },
              .on_block = [&on_block, rank](absl::string_view path,
                                            absl::string_view) { return on_block(rank, path); }};
          Keeper keeper(std::move(options));
          return body(keeper, comm, rank);
        },
        {.deadline = kDeadline});
  }

  void Save(Keeper& keeper, int32_t rank, int64_t step) {
    values_[rank].assign(3, static_cast<float>(step));
    keeper.Save(step,
                {{"w",
                  {6},
                  3 * rank,
                  TensorView::Dense(values_[rank].data(), DType::kFloat32, DeviceKind::kCpu, {3})}},
                "{}");
  }
  static absl::Status Finish(Keeper& keeper, Communicator& comm) {
    return keeper.FinishSave([&] { return comm.Barrier()->WaitHost(kDeadline); });
  }
  std::vector<int64_t> Steps() const {
    std::vector<int64_t> steps;
    for (const auto& [step, path] : CheckpointsIn(folder_)) steps.push_back(step);
    return steps;
  }
  std::vector<std::string> WarningsWith(const std::string& what) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<std::string> found;
    for (const std::string& warning : warnings_) {
      if (absl::StrContains(warning, what)) found.push_back(warning);
    }
    return found;
  }

  std::string folder_;
  std::function<absl::Status(const std::string&, const OnBlock&)> export_;
  std::atomic<bool> stops_{false};
  std::vector<float> values_[2];
  std::mutex mutex_;
  std::vector<std::string> warnings_;
};

absl::Status Quickly(int32_t, absl::string_view) { return absl::OkStatus(); }

// Waits with a limit that only a broken test meets.
bool Eventually(const std::function<bool()>& holds) {
  for (int i = 0; i < 6000 && !holds(); ++i) absl::SleepFor(absl::Milliseconds(10));
  return holds();
}

TEST_F(KeeperTest, TheLastSaveTakesAsLongAsItsSlowestRank) {
  const absl::Time begin = absl::Now();
  const absl::Status status = Run(
      [](int32_t rank, absl::string_view) {
        if (rank == 1) absl::SleepFor(kDeadline * 2 / 3);  // a block; there are several
        return absl::OkStatus();
      },
      [&](Keeper& keeper, Communicator& comm, int32_t rank) -> absl::Status {
        Save(keeper, rank, 10);
        OMNI_RETURN_IF_ERROR(Finish(keeper, comm));
        EXPECT_EQ(keeper.saved_step(), 10);
        return absl::OkStatus();
      });
  EXPECT_EQ(status, absl::OkStatus());
  EXPECT_GT(absl::Now() - begin, kDeadline);
  EXPECT_EQ(Steps(), std::vector<int64_t>{10});
  EXPECT_TRUE(Checkpoint::Open(CheckpointsIn(folder_).back().second).ok());
  EXPECT_THAT(WarningsWith("was not saved"), IsEmpty());
}

TEST_F(KeeperTest, ASaveIsCommittedThoughNoRankComesBackToIt) {
  const absl::Status status =
      Run(Quickly, [&](Keeper& keeper, Communicator& comm, int32_t rank) -> absl::Status {
        Save(keeper, rank, 10);
        EXPECT_TRUE(Eventually([&] { return !Steps().empty(); }));
        return Finish(keeper, comm);
      });
  EXPECT_EQ(status, absl::OkStatus());
  EXPECT_EQ(Steps(), std::vector<int64_t>{10});
}

// Rank 0 writes quickly and goes on to the next save while rank 1 is at the first.
TEST_F(KeeperTest, ASaveWhileAnotherIsUnderWayWaitsForItOnly) {
  const absl::Status status = Run(
      [](int32_t rank, absl::string_view path) {
        if (rank == 1 && absl::StrContains(path, "step-00000010")) {
          absl::SleepFor(kDeadline * 2 / 3);
        }
        return absl::OkStatus();
      },
      [&](Keeper& keeper, Communicator& comm, int32_t rank) -> absl::Status {
        for (const int64_t step : {10, 20}) {
          OMNI_RETURN_IF_ERROR(Finish(keeper, comm));
          Save(keeper, rank, step);
        }
        return Finish(keeper, comm);
      });
  EXPECT_EQ(status, absl::OkStatus());
  EXPECT_EQ(Steps(), (std::vector<int64_t>{10, 20}));
}

TEST_F(KeeperTest, NoSaveWaitsForAnExportOrARemoval) {
  std::atomic<bool> may_export{false};
  std::atomic<int> exported{0};
  export_ = [&](const std::string& path, const OnBlock& tick) {
    while (!may_export) absl::SleepFor(absl::Milliseconds(5));
    ++exported;
    return tick(path, {});
  };
  const absl::Status status = Run(
      [&](int32_t, absl::string_view path) {
        while (absl::StrContains(path, ".old.partial") && !may_export) {
          absl::SleepFor(absl::Milliseconds(5));
        }
        return absl::OkStatus();
      },
      [&](Keeper& keeper, Communicator& comm, int32_t rank) -> absl::Status {
        for (const int64_t step : {1, 2, 3, 4, 5}) {
          Save(keeper, rank, step);
          OMNI_RETURN_IF_ERROR(Finish(keeper, comm));
          EXPECT_EQ(keeper.saved_step(), step);
        }
        if (rank == 0) {
          EXPECT_EQ(exported, 0);
          may_export = true;
        }
        keeper.FinishChores();
        return absl::OkStatus();
      });
  EXPECT_EQ(status, absl::OkStatus());
  EXPECT_EQ(Steps(), (std::vector<int64_t>{4, 5}));
  EXPECT_GE(exported,
            2);  // the first, which was under way, and the last; in between as there was room
}

TEST_F(KeeperTest, OnceTheJobIsToStopAnExportThatGoesOnIsLeftOut) {
  export_ = [&](const std::string& path, const OnBlock& tick) {
    for (;;) {
      OMNI_RETURN_IF_ERROR(tick(path, {}));
      absl::SleepFor(absl::Milliseconds(5));
    }
  };
  stops_ = true;
  const absl::Status status =
      Run(Quickly, [&](Keeper& keeper, Communicator& comm, int32_t rank) -> absl::Status {
        Save(keeper, rank, 1);
        OMNI_RETURN_IF_ERROR(Finish(keeper, comm));
        keeper.FinishChores();
        return absl::OkStatus();
      });
  EXPECT_EQ(status, absl::OkStatus());
  EXPECT_EQ(Steps(), std::vector<int64_t>{1});
  EXPECT_EQ(WarningsWith("the export of the checkpoint of step 1 failed").size(), 1u);
}

// A hard-mounted file system whose server is gone, on one rank: the save fails within its limit, on
// all ranks, and the job goes on; what had been saved stays.
TEST_F(KeeperTest, StorageThatStallsCostsTheSaveAndNotTheJob) {
  std::atomic<bool> stalls{false};
  const absl::Status status = Run(
      [&](int32_t rank, absl::string_view) {
        while (rank == 1 && stalls) absl::SleepFor(absl::Milliseconds(5));
        return absl::OkStatus();
      },
      [&](Keeper& keeper, Communicator& comm, int32_t rank) -> absl::Status {
        Save(keeper, rank, 1);
        OMNI_RETURN_IF_ERROR(Finish(keeper, comm));
        stalls = true;
        OMNI_RETURN_IF_ERROR(comm.Barrier()->WaitHost(kDeadline));
        Save(keeper, rank, 2);
        OMNI_RETURN_IF_ERROR(Finish(keeper, comm));
        EXPECT_EQ(keeper.saved_step(), 1);
        stalls = false;
        return comm.Barrier()->WaitHost(kDeadline);
      });
  EXPECT_EQ(status, absl::OkStatus());
  EXPECT_EQ(Steps(), std::vector<int64_t>{1});
  EXPECT_FALSE(fs::exists(folder_ + "/step-00000002.partial"));
  ASSERT_EQ(WarningsWith("checkpoint of step 2 was not saved").size(), 1u);
  const std::string why = WarningsWith("checkpoint of step 2 was not saved")[0];
  EXPECT_THAT(why, HasSubstr("rank 1: "));
  EXPECT_THAT(why, HasSubstr("to be written here (rank-00001.safetensors); nothing has moved"));
  // It said before what it waits for.
  EXPECT_FALSE(WarningsWith("the checkpoint of step 2 waits since").empty());
}

// A rank that dies while others wait for its part ends them all.
TEST_F(KeeperTest, ARankThatLeavesIsNotWaitedFor) {
  std::vector<absl::Status> results(2);
  (void)Run(Quickly, [&](Keeper& keeper, Communicator& comm, int32_t rank) -> absl::Status {
    Save(keeper, rank, 1);
    if (rank == 1) {
      comm.Abort("rank 1 has had enough");
      return results[rank] = comm.status();
    }
    return results[rank] = Finish(keeper, comm);
  });
  EXPECT_EQ(results[0].code(), absl::StatusCode::kAborted);
}

}  // namespace
}  // namespace omni::trainer
