// A file that takes nothing, one that is full: reports wait, in order, and none is lost.
#include "trainer/report/reporter.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "runtime/base/unique_fd.h"
#include "trainer/report/read_metrics.h"

namespace omni::trainer {
namespace {

using ::testing::HasSubstr;

std::string Folder(const std::string& name) {
  const std::string folder = absl::StrCat(::testing::TempDir(), "/reporter-", getpid(), "-", name);
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  return folder;
}

std::string Slurp(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

std::string Lines(int first, int last) {
  std::string text;
  for (int step = first; step <= last; ++step) {
    absl::StrAppend(&text, "{\"step\":", step, ",\"loss\":", step, ".5}\n");
  }
  return text;
}

TEST(JobReporterTest, WhatAStalledFileDoesNotTakeWaitsAndComesInOrder) {
  std::signal(SIGPIPE, SIG_IGN);  // as in every process of a job (runtime/base/process.h)
  const std::string dir = Folder("stalled");
  // A pipe that is read late is storage that answers late.
  ASSERT_EQ(mkfifo((dir + "/metrics.jsonl").c_str(), 0600), 0);
  const UniqueFd reader(open((dir + "/metrics.jsonl").c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  ASSERT_EQ(fcntl(reader.get(), F_SETPIPE_SZ, 4096), 4096);
  auto reporter = JobReporter::Create({.run_dir = dir, .num_steps = 1, .waiting_bytes_max = 60000});
  ASSERT_TRUE(reporter.ok()) << reporter.status();
  int last = 0;  // taken
  while ((*reporter)->Step(last + 1, {{"loss", last + 1.5}})) ++last;
  EXPECT_GT(last, 200);  // what the pipe holds, and what waits
  EXPECT_FALSE((*reporter)->Step(last + 1, {{"loss", 0.0}}));
  std::string all;
  const std::string wanted = Lines(1, last);
  std::thread reading([&] {
    while (all.size() < wanted.size()) {
      char buffer[1000];
      const ssize_t count = read(reader.get(), buffer, sizeof(buffer));
      if (count > 0) all.append(buffer, static_cast<size_t>(count));
    }
  });
  EXPECT_TRUE((*reporter)->FinishMetrics(absl::Minutes(2)).ok());
  reading.join();
  EXPECT_EQ(all, wanted);
}

// A run that goes on from step 2, of which an earlier leg reported 4: one curve, from the first
// moment and also if nothing more is reported.
TEST(JobReporterTest, WhatLiesBeyondTheCheckpointGivesWay) {
  const std::string dir = Folder("resumed");
  const std::string path = dir + "/metrics.jsonl";
  std::ofstream(path) << Lines(1, 3) << "{\"step\":4,\"loss\":4.5,\"tokens_total\":900.0}\n{\"ste";
  EXPECT_EQ(TokensReported(path), 900.0);
  EXPECT_EQ(TokensReported(dir + "/none"), 0.0);
  auto reporter = JobReporter::Create({.run_dir = dir, .num_steps = 9});
  ASSERT_TRUE(reporter.ok()) << reporter.status();
  (*reporter)->Begin(3);
  EXPECT_TRUE((*reporter)->Step(3, {{"loss", 7.5}}));
  (*reporter)->Begin(2);  // too late: it is no report of an earlier leg
  EXPECT_TRUE((*reporter)->FinishMetrics(absl::Minutes(2)).ok());
  EXPECT_EQ(Slurp(path), Lines(1, 2) + "{\"step\":3,\"loss\":7.5}\n");
}

TEST(JobReporterTest, AFullDiskIsTriedAgainAndNoLineIsTorn) {
  const std::string dir = Folder("full");
  auto reporter = JobReporter::Create({.run_dir = dir, .num_steps = 1, .tensorboard = true});
  ASSERT_TRUE(reporter.ok()) << reporter.status();
  std::signal(SIGXFSZ, SIG_IGN);  // as tools/main.cc does: the write fails
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small = {.rlim_cur = 100, .rlim_max = before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  for (int step = 1; step <= 20; ++step) {
    EXPECT_TRUE((*reporter)->Step(step, {{"loss", step + 0.5}}));
  }
  // In the middle of a line of metrics.jsonl, or of the events before.
  EXPECT_FALSE((*reporter)->FinishMetrics(absl::Milliseconds(1500)).ok());
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  const std::string written = Slurp(dir + "/metrics.jsonl");
  EXPECT_EQ(written, Lines(1, static_cast<int>(std::count(written.begin(), written.end(), '\n'))));
}

TEST(JobReporterTest, ADiskThatWasFullGetsAll) {
  const std::string dir = Folder("was_full");
  auto reporter = JobReporter::Create({.run_dir = dir, .num_steps = 1});
  ASSERT_TRUE(reporter.ok()) << reporter.status();
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small = {.rlim_cur = 70, .rlim_max = before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  for (int step = 1; step <= 20; ++step) {
    EXPECT_TRUE((*reporter)->Step(step, {{"loss", step + 0.5}}));
  }
  std::atomic<bool> is_free{false};
  std::thread freeing([&] {
    absl::SleepFor(absl::Milliseconds(700));
    setrlimit(RLIMIT_FSIZE, &before);
    is_free = true;
  });
  EXPECT_TRUE((*reporter)->FinishMetrics(absl::Minutes(2)).ok());
  EXPECT_TRUE(is_free);
  freeing.join();
  EXPECT_EQ(Slurp(dir + "/metrics.jsonl"), Lines(1, 20));
}

TEST(JobReporterTest, AnErrorSaysHowManyReportsCouldNotBeWritten) {
  const std::string dir = Folder("never");
  ASSERT_EQ(mkfifo((dir + "/metrics.jsonl").c_str(), 0600), 0);
  const UniqueFd both(open((dir + "/metrics.jsonl").c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC));
  while (write(both.get(), "full", 4) > 0) continue;
  auto reporter = JobReporter::Create({.run_dir = dir, .num_steps = 1});
  ASSERT_TRUE(reporter.ok());
  for (int step = 1; step <= 3; ++step) (*reporter)->Step(step, {{"loss", 1}});
  const absl::Status status = (*reporter)->FinishMetrics(absl::Milliseconds(200));
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr(dir + "/metrics.jsonl: 3 reports of steps could not be written"));
  (*reporter)->FinishTerminal("");
}

}  // namespace
}  // namespace omni::trainer
