// Run directories that can't be locked or written: each gets its own answer.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "tests/e2e/process.h"
#include "tests/support/tiny_job.h"

namespace omni::test {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

std::string Recipe() {
  const std::string path = TinyData() + "-run-directory.yaml";
  std::ofstream(path) << TinyRecipeYaml({.steps = 2, .dtype = "fp32", .sources = "[text]"});
  return path;
}

std::string Folder(const std::string& name) {
  const std::string path = TinyData() + "-run-directory-" + name;
  fs::remove_all(path);
  return path;
}

TEST(RunDirectoryTest, TrainsWhereThereIsNoFlockAndSaysSo) {
  const std::string dir = Folder("noflock"), recipe = Recipe();
  const std::vector<std::string> train = {
      absl::StrCat("LD_PRELOAD=", OMNI_NO_FLOCK), OMNI_BINARY, "train", recipe, "--run-dir", dir};
  std::vector<std::string> endless = train;
  endless.insert(endless.end(), {"--steps", "1000000"});
  {
    ChildProcess first("env", endless);
    ASSERT_TRUE(WaitFor([&] { return !ReadMetrics(dir + "/metrics.jsonl").empty(); }))
        << first.output();
    ChildProcess second("env", train);
    EXPECT_EQ(second.Wait(), 1);
    EXPECT_THAT(second.output(),
                HasSubstr(absl::StrCat("in use by another job: pid ", first.pid(), " on ")));
  }
  // The first was killed; who is dead does not hold the directory.
  ChildProcess third("env", {absl::StrCat("LD_PRELOAD=", OMNI_NO_FLOCK), OMNI_BINARY, "train",
                             recipe, "--run-dir", Folder("noflock2")});
  EXPECT_EQ(third.Wait(), 0) << third.output();
  EXPECT_THAT(third.output(),
              AllOf(HasSubstr("has no file locks"), HasSubstr("finished at step 2")));
}

TEST(RunDirectoryTest, SomebodyElsesIsNotInUse) {
  const std::string dir = Folder("foreign"), recipe = Recipe();
  fs::create_directories(dir);
  std::string refused;
  if (geteuid() == 0) {
    // Nobody may read what the test made for itself.
    ChildProcess open("chmod", {"-R", "a+rX", TinyData(), recipe});
    ASSERT_EQ(open.Wait(), 0);
    ChildProcess train("setpriv", {"--reuid=65534", "--regid=65534", "--clear-groups", OMNI_BINARY,
                                   "train", recipe, "--run-dir", dir});
    EXPECT_EQ(train.Wait(), 1);
    refused = train.output();
    EXPECT_THAT(refused, HasSubstr("belongs to root"));
  } else {
    fs::permissions(dir, fs::perms::owner_read | fs::perms::owner_exec);
    OmnitrainProcess train({"train", recipe, "--run-dir", dir});
    EXPECT_EQ(train.Wait(), 1);
    refused = train.output();
    fs::permissions(dir, fs::perms::owner_all);
  }
  EXPECT_THAT(refused, AllOf(HasSubstr("may not write there"), Not(HasSubstr("in use"))));
}

TEST(RunDirectoryTest, AReadOnlyFileSystemIsNotInUse) {
  const std::string dir = Folder("readonly"), recipe = Recipe();
  fs::create_directories(dir);
  ChildProcess probe("unshare", {"--mount", "mount", "-t", "tmpfs", "-o", "ro", "none", dir});
  if (probe.Wait() != 0) GTEST_SKIP() << "nothing can be mounted here: " << probe.output();
  ChildProcess train("unshare",
                     {"--mount", "sh", "-c",
                      absl::StrCat("mount -t tmpfs -o ro none ", dir, " && exec ", OMNI_BINARY,
                                   " train ", recipe, " --run-dir ", dir, "/run")});
  EXPECT_EQ(train.Wait(), 1);
  EXPECT_THAT(train.output(),
              AllOf(HasSubstr("read-only"), HasSubstr(dir), Not(HasSubstr("in use"))));
}

}  // namespace
}  // namespace omni::test
