// A recipe with relative paths, and what is done with its run from elsewhere.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "tests/e2e/process.h"
#include "tests/support/tiny_job.h"

namespace omni::test {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class AnotherDirectoryTest : public ::testing::Test {
 protected:
  AnotherDirectoryTest() : house_(fs::path(TinyData() + "-house").lexically_normal().string()) {
    fs::remove_all(house_);
    fs::create_directories(house_ + "/recipes");
    fs::create_directory_symlink(TinyData(), house_ + "/data");
    const std::string yaml = TinyRecipeYaml({.steps = 2, .dtype = "fp32", .sources = "[text]"});
    std::ofstream(house_ + "/recipes/tiny.yaml")
        << absl::StrReplaceAll(yaml, {{TinyData(), "data"}});
  }
  // The output of `omnitrain words...` started in `folder`.
  std::string Run(const std::string& folder, const std::string& words) {
    ChildProcess process("sh",
                         {"-c", absl::StrCat("cd ", folder, " && exec ", OMNI_BINARY, " ", words)});
    EXPECT_EQ(process.Wait(), 0) << process.output();
    return process.output();
  }

  const std::string house_;
};

TEST_F(AnotherDirectoryTest, ARunIsAskedEvaluatedAndResumedFromAnywhere) {
  EXPECT_THAT(Run(house_, "train recipes/tiny.yaml --run-dir run"),
              HasSubstr("finished at step 2"));
  const std::string run = house_ + "/run";
  Run("/", absl::StrCat("generate ", run, " what --max-tokens 2"));
  const std::string eval = "eval=[{name: text, path: data/heldout/text}]";
  EXPECT_THAT(Run(house_, absl::StrCat("eval run --set 'data.", eval, "'")), HasSubstr("text"));
  EXPECT_THAT(Run("/", absl::StrCat("eval ", run, " --set 'data.",
                                    absl::StrReplaceAll(eval, {{"data/", TinyData() + "/"}}), "'")),
              HasSubstr("text"));
  EXPECT_THAT(
      Run("/", absl::StrCat("train ", house_, "/recipes/tiny.yaml --run-dir ", run, " --steps 4")),
      HasSubstr("finished at step 4"));
}

TEST_F(AnotherDirectoryTest, WorkersMayStartAnywhere) {
  ChildProcess coordinator("sh",
                           {"-c", absl::StrCat("cd ", house_, " && exec ", OMNI_BINARY,
                                               " coordinator recipes/tiny.yaml --run-dir run2")});
  std::string address;
  ASSERT_TRUE(WaitFor([&] {
    const std::string output = coordinator.output(), before = "coordinator at ";
    const size_t at = output.find(before), end = output.find("; start");
    if (at == std::string::npos || end == std::string::npos) return false;
    address = output.substr(at + before.size(), end - at - before.size());
    return true;
  })) << coordinator.output();
  Run("/", "worker --coordinator " + address);
  EXPECT_EQ(coordinator.Wait(), 0) << coordinator.output();
}

// Its resolved.yaml has relative paths, which are found above it.
TEST_F(AnotherDirectoryTest, ARunOfBeforeIsAskedFromAnywhere) {
  Run(house_, "train recipes/tiny.yaml --run-dir runs/old");
  const std::string resolved = house_ + "/runs/old/resolved.yaml";
  std::stringstream text;
  text << std::ifstream(resolved).rdbuf();
  ASSERT_THAT(text.str(), HasSubstr(house_ + "/data/tokenizer.model"));
  std::ofstream(resolved) << absl::StrReplaceAll(text.str(), {{house_ + "/", ""}});
  Run("/", absl::StrCat("generate ", house_, "/runs/old what --max-tokens 2"));
}

}  // namespace
}  // namespace omni::test
