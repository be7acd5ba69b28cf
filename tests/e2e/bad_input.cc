#include "tests/e2e/bad_input.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tests/e2e/process.h"
#include "tests/support/tiny_job.h"

namespace omni::test {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

std::string WriteInput(const std::string& name, const std::string& bytes) {
  const std::string path =
      absl::StrFormat("%sbad-input-%d/%s", ::testing::TempDir(), getpid(), name);
  fs::create_directories(fs::path(path).parent_path());
  std::ofstream(path, std::ios::binary) << bytes;
  return path;
}

void ExpectOneLine(const std::vector<std::string>& arguments, const Bad& bad, int exit_code) {
  OmnitrainProcess run(arguments);
  EXPECT_EQ(run.Wait(), exit_code);
  const std::string output = run.output();
  EXPECT_EQ(std::count(output.begin(), output.end(), '\n'), 1) << output;
  EXPECT_THAT(output, HasSubstr(bad.place));
  EXPECT_THAT(output, HasSubstr(bad.expected));
}

void ExpectTrainRefuses(std::vector<std::string> arguments, const Bad& bad) {
  const std::string dir = absl::StrCat(TinyData(), "-bad-", bad.name);
  arguments.insert(arguments.end(), {"--run-dir", dir});
  ExpectOneLine(arguments, bad);
  EXPECT_FALSE(fs::exists(dir));
}

}  // namespace omni::test
