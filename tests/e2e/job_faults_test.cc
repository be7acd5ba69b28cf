// A worker that crashes, is stopped or hangs at whatever it is doing: every other one ends within
// the deadline and a second, knows who it was and what it did, and nothing is left.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "tests/e2e/process.h"
#include "tests/support/tiny_job.h"

namespace omni::test {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

constexpr int32_t kWorkers = 4;
constexpr int64_t kDeadlineSeconds = 3;
constexpr char kOnPurpose[] = "a fault made on purpose";

struct Fault {
  std::string name;
  TinyRecipe recipe;
  std::string at;
  int32_t rank;
  std::string kind;
};

std::vector<std::string> Lines(const std::string& path) {
  std::vector<std::string> lines;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  return lines;
}

// "2026-01-31 12:00:00.123 E rank 3: text" -> its time.
absl::Time TimeOf(const std::string& line) {
  absl::Time time;
  std::string error;
  EXPECT_TRUE(absl::ParseTime("%Y-%m-%d %H:%M:%E3S", line.substr(0, 23), absl::LocalTimeZone(),
                              &time, &error))
      << line << ": " << error;
  return time;
}

class JobFaultsTest : public ::testing::TestWithParam<Fault> {};

void CheckSurvivor(const std::string& log, int32_t rank, const Fault& fault,
                   const std::string& struck) {
  SCOPED_TRACE(absl::StrCat("rank ", rank));
  const std::vector<std::string> lines = Lines(log);
  ASSERT_FALSE(lines.empty());
  const std::string text = absl::StrJoin(lines, "\n");
  // The first error is the reason, the rest the report.
  size_t first = 0;
  while (first < lines.size() && !absl::StrContains(lines[first], " E rank ")) ++first;
  ASSERT_LT(first, lines.size()) << text;
  const std::string victim = absl::StrCat("rank ", fault.rank);
  EXPECT_THAT(lines[first], HasSubstr(fault.kind == "crash" ? victim + " of world died"
                                                            : victim + " is behind: #"));
  EXPECT_THAT(lines[first], HasSubstr(absl::StrCat("at \"step 2, ", fault.at)));
  if (fault.kind == "stop") {
    EXPECT_THAT(lines[first], HasSubstr("has not answered"));
  }
  EXPECT_THAT(text, HasSubstr(absl::StrCat("this rank, ", rank, ", is at \"step 2, ")));
  EXPECT_THAT(text, HasSubstr(" done in "));
  EXPECT_THAT(lines.back(), HasSubstr(" failed after "));
  const absl::Duration limit = absl::Seconds(1 + (fault.kind == "crash" ? 0 : kDeadlineSeconds));
  EXPECT_LT(TimeOf(lines.back()) - TimeOf(struck), limit);
}

TEST_P(JobFaultsTest, TheOthersEndInTimeAndKnowWhoItWas) {
  const Fault& fault = GetParam();
  const std::string dir = absl::StrCat(TinyData(), "-faults/", fault.name);
  fs::remove_all(dir);
  fs::create_directories(fs::path(dir).parent_path());
  std::ofstream(dir + ".yaml") << TinyRecipeYaml(fault.recipe);
  OmnitrainProcess run({"train", dir + ".yaml", "--run-dir", dir, "--set",
                        absl::StrCat("runtime.deadline_s=", kDeadlineSeconds), "--set",
                        absl::StrFormat("runtime.fault={rank: %d, step: 2, at: %s, kind: %s}",
                                        fault.rank, fault.at, fault.kind)});
  ASSERT_TRUE(WaitFor([&] { return run.children().size() == kWorkers; })) << run.output();
  const std::vector<pid_t> workers = run.children();
  const auto log_of = [&](int32_t rank) {
    return absl::StrFormat("%s/logs/rank-%05d.log", dir, rank);
  };
  std::string struck;
  ASSERT_TRUE(WaitFor([&] {
    for (const std::string& line : Lines(log_of(fault.rank))) {
      if (absl::StrContains(line, kOnPurpose)) struck = line;
    }
    return !struck.empty();
  })) << run.output();
  EXPECT_THAT(struck, HasSubstr(absl::StrCat(" at ", fault.at)));
  EXPECT_NE(run.Wait(), 0);
  EXPECT_THAT(run.output(), HasSubstr(absl::StrCat("rank ", fault.rank)));
  for (const pid_t pid : workers) EXPECT_NE(kill(pid, 0), 0);  // nor their sockets, nor memory
  for (int32_t rank = 0; rank < kWorkers; ++rank) {
    if (rank != fault.rank) CheckSurvivor(log_of(rank), rank, fault, struck);
  }
}

std::vector<Fault> Faults() {
  const TinyRecipe data_parallel = {.steps = 50, .workers = kWorkers, .dtype = "fp32"};
  std::vector<Fault> faults;
  const auto add = [&](const char* layout, const TinyRecipe& recipe,
                       const std::vector<std::string>& places) {
    const std::vector<std::string> kinds = {"crash", "stop", "hang"};
    for (size_t i = 0; i < places.size(); ++i) {
      Fault fault = {.recipe = recipe,
                     .at = places[i],
                     .rank = static_cast<int32_t>((i + i / 3) % kWorkers),
                     .kind = kinds[i % kinds.size()]};
      fault.name = absl::StrCat(layout, "_", fault.kind, "_rank", fault.rank, "_", fault.at);
      for (char& letter : fault.name) letter = isalnum(letter) ? letter : '_';
      faults.push_back(fault);
    }
  };
  add("data", data_parallel,
      {"waiting for data", "forward-backward", "agreeing", "reducing gradients", "updating",
       "gathering parameters"});
  return faults;
}

INSTANTIATE_TEST_SUITE_P(Places, JobFaultsTest, ::testing::ValuesIn(Faults()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace omni::test
