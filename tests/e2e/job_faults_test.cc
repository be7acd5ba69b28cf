// A worker that crashes, is stopped or hangs at whatever it is doing: every other one ends within
// the deadline and a second, knows who it was and what it did, and nothing is left.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "tests/e2e/process.h"
#include "tests/support/in_time.h"
#include "tests/support/tiny_job.h"

namespace omni::test {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

constexpr int32_t kWorkers = 4;
constexpr int64_t kDeadlineSeconds = 3;
constexpr char kOnPurpose[] = "a fault made on purpose";

struct Fault {
  std::string name = {};
  std::string parallel;  // the recipe's section
  std::string at;
  int32_t rank = 0;
  std::string kind = {};
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

// What a survivor's log says after the fault; when it ended.
struct Survivor {
  absl::Time end = absl::InfiniteFuture();  // has not ended by itself
  bool was_in_a_call = false;
};

Survivor CheckSurvivor(const std::string& log, int32_t rank, const Fault& fault) {
  SCOPED_TRACE(absl::StrCat("rank ", rank));
  const std::vector<std::string> lines = Lines(log);
  const std::string text = absl::StrJoin(lines, "\n");
  // The first error is the reason, the rest the report.
  size_t first = 0;
  while (first < lines.size() && !absl::StrContains(lines[first], " E rank ")) ++first;
  if (first == lines.size()) return {};
  const std::string victim = absl::StrCat("rank ", fault.rank);
  EXPECT_THAT(lines[first], HasSubstr(fault.kind == "crash" ? victim + " of world died"
                                                            : victim + " is behind: #"));
  EXPECT_THAT(lines[first], HasSubstr(absl::StrCat("at \"step 2, ", fault.at)));
  if (fault.kind == "stop") {
    EXPECT_THAT(lines[first], HasSubstr("has not answered"));
  }
  EXPECT_THAT(text, HasSubstr(absl::StrCat("this rank, ", rank, ", is at \"step ")));
  EXPECT_THAT(text, HasSubstr(" done in "));
  return {.end = TimeOf(lines.back()), .was_in_a_call = absl::StrContains(text, " failed after ")};
}

// What of it took too long; see ExpectInTime.
std::string CheckOthers(const Fault& fault) {
  SCOPED_TRACE(fault.name);
  const std::string dir = absl::StrCat(TinyData(), "-faults/", fault.name);
  fs::remove_all(dir);
  fs::create_directories(fs::path(dir).parent_path());
  // Quick to decode: until the fault, too, the short deadline holds.
  std::ofstream(dir + ".yaml") << TinyRecipeYaml(
      {.steps = 50, .workers = kWorkers, .dtype = "fp32", .sources = "[image, text]"});
  OmnitrainProcess run({"train", dir + ".yaml", "--run-dir", dir, "--set",
                        "parallel=" + fault.parallel, "--set",
                        absl::StrCat("runtime.deadline_s=", kDeadlineSeconds), "--set",
                        absl::StrFormat("runtime.fault={rank: %d, step: 2, at: %s, kind: %s}",
                                        fault.rank, fault.at, fault.kind)});
  const auto is_over = [&] { return run.Wait(absl::ZeroDuration()) >= 0; };
  WaitFor([&] { return run.children().size() == kWorkers || is_over(); });
  const std::vector<pid_t> workers = run.children();
  const auto log_of = [&](int32_t rank) {
    return absl::StrFormat("%s/logs/rank-%05d.log", dir, rank);
  };
  std::string struck;
  WaitFor([&] {
    const bool was_over = is_over();
    for (const std::string& line : Lines(log_of(fault.rank))) {
      if (absl::StrContains(line, kOnPurpose)) struck = line;
    }
    return !struck.empty() || was_over;
  });
  EXPECT_NE(run.Wait(), 0);
  if (struck.empty()) return absl::StrCat(fault.name, " was not reached: ", run.output());
  EXPECT_THAT(struck, HasSubstr(absl::StrCat(" at ", fault.at)));
  EXPECT_THAT(run.output(), HasSubstr(absl::StrCat("rank ", fault.rank)));
  EXPECT_EQ(workers.size(), static_cast<size_t>(kWorkers));
  for (const pid_t pid : workers) EXPECT_FALSE(IsAlive(pid));  // nor their sockets, nor memory
  absl::Time last = absl::InfinitePast();
  bool was_in_a_call = false;
  for (int32_t rank = 0; rank < kWorkers; ++rank) {
    if (rank == fault.rank) continue;
    const Survivor survivor = CheckSurvivor(log_of(rank), rank, fault);
    last = std::max(last, survivor.end);
    was_in_a_call = was_in_a_call || survivor.was_in_a_call;
  }
  EXPECT_TRUE(was_in_a_call) << "nobody reports the call that failed";
  const absl::Duration taken = last - TimeOf(struck);
  const absl::Duration limit = absl::Seconds(1 + (fault.kind == "crash" ? 0 : kDeadlineSeconds));
  if (taken < limit) return "";
  return absl::StrCat(fault.name, " was survived by all after ", absl::FormatDuration(taken));
}

struct Place {
  const char* at;
  std::vector<int32_t> ranks = {0, 1, 2, 3};  // whose programs have it
};

// By default every place once, ranks and kinds taking turns; with OMNI_ALL_FAULTS set every place
// with every rank and kind (a quarter of an hour).
void CheckAll(const std::string& layout, const std::string& parallel,
              const std::vector<Place>& places) {
  const std::vector<std::string> kinds = {"crash", "stop", "hang"};
  const bool all = std::getenv("OMNI_ALL_FAULTS") != nullptr;
  std::vector<Fault> faults;
  size_t turn = 0;
  for (const Place& place : places) {
    for (size_t i = 0; i < (all ? place.ranks.size() * kinds.size() : 1); ++i, ++turn) {
      Fault fault = {.parallel = parallel, .at = place.at};
      fault.kind = kinds[turn % kinds.size()];
      fault.rank = place.ranks[(all ? i / kinds.size() : turn) % place.ranks.size()];
      fault.name = absl::StrCat(layout, "_", fault.at, "_rank", fault.rank, "_", fault.kind);
      for (char& letter : fault.name) letter = std::isalnum(letter) ? letter : '_';
      faults.push_back(fault);
    }
  }
  // They mostly wait: some at a time. What is too late then must be in time alone.
  constexpr size_t kAtOnce = 3;
  TinyData();
  std::vector<std::string> late(faults.size());
  for (size_t begin = 0; begin < faults.size(); begin += kAtOnce) {
    std::vector<std::thread> threads;
    for (size_t i = begin; i < std::min(begin + kAtOnce, faults.size()); ++i) {
      threads.emplace_back([&late = late[i], &fault = faults[i]] { late = CheckOthers(fault); });
    }
    for (std::thread& thread : threads) thread.join();
  }
  for (size_t i = 0; i < faults.size(); ++i) {
    if (late[i].empty()) continue;
    std::printf("[   LATE   ] %s; once more, alone\n", late[i].c_str());
    std::fflush(stdout);
    ExpectInTime([&] { return CheckOthers(faults[i]); });
  }
}

TEST(JobFaultsTest, OfReplicas) {
  CheckAll("data", "{workers: 4}", {{"waiting for data"}, {"reducing gradients"}, {"updating"}});
}

// Ranks 0 and 1 are the first stage.
TEST(JobFaultsTest, AtAllActionsOfAPipeline) {
  CheckAll("pipeline", "{workers: 4, pipeline: 2, tensor: 2}",
           {{"encode encoder"},
            {"send rows", {2, 3}},
            {"receive rows", {0, 1}},
            {"forward chunk 0", {0, 1}},
            {"send hidden chunk", {0, 1}},
            {"receive hidden chunk", {2, 3}},
            {"forward chunk 1", {2, 3}},
            {"backward chunk 1", {2, 3}},
            {"send hidden gradient", {2, 3}},
            {"receive hidden gradient", {0, 1}},
            {"backward chunk 0", {0, 1}},
            {"send row gradients", {0, 1}},
            {"receive row gradients", {2, 3}},
            {"encoder backward"},
            {"reduce gradients"},
            {"agree"},
            {"update"},
            {"gather parameters"}});
}

TEST(JobFaultsTest, AtTheActionsOtherSchedulesHave) {
  CheckAll("zero_bubble",
           "{workers: 4, pipeline: 2, tensor: 2, schedule: zb_h1, joint: {kind: recompute}}",
           {{"encode without keeping"},
            {"input backward chunk 1", {2, 3}},
            {"weight gradient chunk 0", {0, 1}}});
}

}  // namespace
}  // namespace omni::test
