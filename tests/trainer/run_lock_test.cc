// Why a run directory can't be taken has different answers.
#include "trainer/run_lock.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "runtime/base/address.h"
#include "runtime/base/file.h"

namespace omni::trainer {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class RunLockTest : public ::testing::Test {
 protected:
  RunLockTest() {
    dir_ = absl::StrCat(::testing::TempDir(), "/run-lock-", getpid(), "-",
                        ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(dir_);
  }
  ~RunLockTest() override { fs::remove_all(dir_); }

  static RunLockOptions LockFails(int error) {
    return {.beat = absl::Milliseconds(20), .watch = absl::Milliseconds(400), .lock = [error](int) {
              errno = error;
              return -1;
            }};
  }
  std::string MessageOf(const RunLockOptions& options) {
    return std::string(RunLock::Take(dir_, options).status().message());
  }
  std::string InFile() const { return *ReadFile(dir_ + "/.lock"); }

  std::string dir_;
};

TEST_F(RunLockTest, ASecondJobHearsWhoHoldsIt) {
  auto first = RunLock::Take(dir_);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ((*first)->note(), "");
  const auto second = RunLock::Take(dir_);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(second.status().message()),
              HasSubstr(absl::StrCat("in use by another job: pid ", getpid(), " on ", MachineName(),
                                     " since 2")));
  first->reset();
  EXPECT_THAT(InFile(), HasSubstr("left: yes"));
  EXPECT_TRUE(RunLock::Take(dir_).ok());
}

class MissingFlockTest : public RunLockTest, public ::testing::WithParamInterface<int> {};

TEST_P(MissingFlockTest, TrainsWithAWeakerGuardAndSaysSo) {
  auto first = RunLock::Take(dir_, LockFails(GetParam()));
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_THAT((*first)->note(), HasSubstr("has no file locks"));
  EXPECT_THAT(MessageOf(LockFails(GetParam())),
              HasSubstr(absl::StrCat("in use by another job: pid ", getpid(), " on ")));
  first->reset();
  EXPECT_TRUE(RunLock::Take(dir_, LockFails(GetParam())).ok());
}

INSTANTIATE_TEST_SUITE_P(Errnos, MissingFlockTest,
                         ::testing::Values(ENOSYS, ENOTSUP, EOPNOTSUPP, ENOLCK));

TEST_F(RunLockTest, WithoutFlockTheDeadOfThisMachineDoNotHold) {
  {
    const auto crashed = RunLock::Take(dir_, LockFails(ENOSYS));
    ASSERT_TRUE(crashed.ok());
  }
  std::string text = InFile();  // as a process with this id that began at another time left it
  text.replace(text.find("left: yes"), 9, "left: no");
  text.replace(text.find("started: ") + 9, 1, "9999");
  std::ofstream(dir_ + "/.lock") << text;
  EXPECT_TRUE(RunLock::Take(dir_, LockFails(ENOSYS)).ok());
}

// Its process can't be asked: whether it still writes is looked at.
TEST_F(RunLockTest, WithoutFlockAHolderOnAnotherMachineIsWatched) {
  RunLockOptions there = LockFails(ENOSYS), here = LockFails(ENOSYS);
  there.boot = "another machine";
  here.watch = absl::Minutes(5);  // ended by what it sees
  auto holder = RunLock::Take(dir_, there);
  ASSERT_TRUE(holder.ok());
  EXPECT_THAT(MessageOf(here), HasSubstr("in use by another job: pid "));
  const std::string while_alive = InFile();
  holder->reset();
  EXPECT_TRUE(RunLock::Take(dir_, here).ok());
  std::ofstream(dir_ + "/.lock") << while_alive;  // as if it had been killed
  EXPECT_TRUE(RunLock::Take(dir_, LockFails(ENOSYS)).ok());
}

// NFS and Lustre may grant flock on every machine by itself.
TEST_F(RunLockTest, AFlockThatMeansThisMachineOnlyIsNotTrusted) {
  RunLockOptions there{.beat = absl::Milliseconds(20),
                       .watch = absl::Minutes(5),
                       .lock = [](int) { return 0; },
                       .locks_by_itself = [](int) { return false; },
                       .boot = "another machine"};
  RunLockOptions here = there;
  here.boot = "";
  const auto holder = RunLock::Take(dir_, there);
  ASSERT_TRUE(holder.ok()) << holder.status();
  EXPECT_THAT(MessageOf(here), HasSubstr("in use by another job: pid "));
  here.locks_by_itself = [](int) { return true; };  // a file system of this machine
  EXPECT_TRUE(RunLock::Take(dir_, here).ok());
}

TEST_F(RunLockTest, AReadOnlyFileSystemIsNotAnotherJob) {
  const RunLockOptions options{.open = [](const char*, int) {
    errno = EROFS;
    return -1;
  }};
  EXPECT_EQ(RunLock::Take(dir_, options).status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(MessageOf(options), AllOf(HasSubstr("file system is read-only"), HasSubstr(dir_),
                                        Not(HasSubstr("in use"))));
}

TEST_F(RunLockTest, SomebodyElsesDirectoryNamesBoth) {
  const RunLockOptions options{.open = [](const char*, int) {
    errno = EACCES;
    return -1;
  }};
  EXPECT_EQ(RunLock::Take(dir_, options).status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(MessageOf(options), AllOf(HasSubstr("may not write there"), HasSubstr("belongs to "),
                                        Not(HasSubstr("in use"))));
}

TEST_F(RunLockTest, AFaultOfTheStorageIsItself) {
  EXPECT_EQ(RunLock::Take(dir_, LockFails(EIO)).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(MessageOf(LockFails(EIO)),
              AllOf(HasSubstr("Input/output error"), HasSubstr(".lock"), Not(HasSubstr("in use"))));
}

TEST_F(RunLockTest, AFileInTheWayIsNamed) {
  std::ofstream(dir_) << "a file";
  EXPECT_THAT(MessageOf({}), HasSubstr(dir_));
  EXPECT_THAT(MessageOf({}), Not(HasSubstr("in use")));
}

}  // namespace
}  // namespace omni::trainer
