#include "runtime/base/file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <filesystem>

namespace omni {
namespace {

using ::testing::HasSubstr;

class FileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "/file_test_" + std::to_string(getpid());
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string Path(const std::string& name) const { return folder_ + "/" + name; }
  int64_t NumFiles() const {
    return std::distance(std::filesystem::directory_iterator(folder_), {});
  }

  std::string folder_;
};

TEST_F(FileTest, WhatIsWrittenIsReadBack) {
  for (const std::string& contents :
       {std::string(), std::string("a\0b\n", 4), std::string(200'001, 'x')}) {
    ASSERT_TRUE(WriteFileAtomically(Path("a"), contents).ok());
    absl::StatusOr<std::string> back = ReadFile(Path("a"));
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_EQ(*back, contents);
  }
  EXPECT_EQ(NumFiles(), 1);
}

TEST_F(FileTest, WithoutCommitNothingIsLeft) {
  { ASSERT_TRUE(AtomicFile::Create(Path("dropped"))->Write("x", 1).ok()); }
  EXPECT_EQ(NumFiles(), 0);
}

TEST_F(FileTest, TheLastToCommitStays) {
  absl::StatusOr<AtomicFile> first = AtomicFile::Create(Path("a"));
  absl::StatusOr<AtomicFile> second = AtomicFile::Create(Path("a"));
  ASSERT_TRUE(first.ok() && second.ok());
  ASSERT_TRUE(first->Write("first", 5).ok());
  ASSERT_TRUE(second->Write("second", 6).ok());
  ASSERT_TRUE(second->Commit().ok());
  EXPECT_EQ(ReadFile(Path("a")).value(), "second");
  ASSERT_TRUE(first->Commit().ok());
  EXPECT_EQ(ReadFile(Path("a")).value(), "first");
  EXPECT_EQ(NumFiles(), 1);
}

// A limit on the size of files stands for a full disk.
TEST_F(FileTest, AFullDiskIsResourceExhausted) {
  absl::StatusOr<AtomicFile> file = AtomicFile::Create(Path("full"));
  ASSERT_TRUE(file.ok()) << file.status();
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit old_limit{};
  getrlimit(RLIMIT_FSIZE, &old_limit);
  const rlimit limit{.rlim_cur = 5, .rlim_max = old_limit.rlim_max};
  setrlimit(RLIMIT_FSIZE, &limit);
  const absl::Status status = file->Write("seven b", 7);
  setrlimit(RLIMIT_FSIZE, &old_limit);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("full: writing failed after 5 bytes"));
}

TEST_F(FileTest, ErrorsNameThePathAndSayWhatToDo) {
  EXPECT_TRUE(absl::IsNotFound(ReadFile(Path("none")).status()));
  EXPECT_THAT(std::string(ReadFile(Path("none")).status().message()), HasSubstr(Path("none")));
  EXPECT_TRUE(absl::IsNotFound(WriteFileAtomically(Path("none/a"), "x")));
  const absl::Status folder = ReadFile(folder_).status();
  EXPECT_TRUE(absl::IsInvalidArgument(folder));
  EXPECT_THAT(std::string(folder.message()), HasSubstr("is a folder, expected a file"));
  EXPECT_TRUE(absl::IsPermissionDenied(FileError(EACCES, "a", "can't be opened")));
  EXPECT_TRUE(absl::IsUnavailable(FileError(EIO, "a", "reading failed")));
  EXPECT_EQ(FileError(ENOSPC, "a", "writing failed"),
            absl::ResourceExhaustedError("a: writing failed: No space left on device"));
}

TEST_F(FileTest, RenamingOverAFolderLeavesNothing) {
  std::filesystem::create_directories(Path("folder/full"));
  EXPECT_FALSE(WriteFileAtomically(Path("folder"), "x").ok());
  EXPECT_EQ(NumFiles(), 1);
}

}  // namespace
}  // namespace omni
