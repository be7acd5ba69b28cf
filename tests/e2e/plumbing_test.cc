// A job between the signals, pipes, terminals and process lists of a real system.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "runtime/checkpoint/checkpoint.h"
#include "tests/e2e/process.h"
#include "tests/e2e/terminal.h"
#include "tests/support/checkpoints.h"
#include "tests/support/tiny_job.h"

namespace omni::test {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr int kFinished = 0, kError = 1, kWrongUsage = 2, kStopped = 3;

std::string Folder(const std::string& name) {
  const std::string folder = absl::StrCat(TinyData(), "-runs/", name);
  fs::remove_all(folder);
  fs::create_directories(fs::path(folder).parent_path());
  return folder;
}

std::string RecipePath() {
  static const std::string path = [] {
    std::string file = absl::StrCat(TinyData(), "-plumbing.yaml");
    std::ofstream(file) << TinyRecipeYaml({.steps = 6, .workers = 2, .dtype = "fp32"});
    return file;
  }();
  return path;
}

std::vector<std::string> Train(const std::string& dir, const std::vector<std::string>& more = {}) {
  std::vector<std::string> arguments = {"train", RecipePath(), "--run-dir", dir};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

std::vector<std::string> Endless(const std::string& dir) {
  return Train(dir, {"--steps", "1000000"});
}

// For `sh -c`.
std::string Command(const std::vector<std::string>& arguments) {
  std::string command = OMNI_BINARY;
  for (const std::string& word : arguments) absl::StrAppend(&command, " '", word, "'");
  return command;
}

int64_t LastStep(const std::string& dir) {
  const auto steps = ReadMetrics(dir + "/metrics.jsonl");
  return steps.empty() ? 0 : steps.rbegin()->first;
}

std::string Contents(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// Of every thread of a process.
std::vector<std::string> ThreadNames(pid_t pid) {
  std::vector<std::string> names;
  for (const auto& task : fs::directory_iterator(absl::StrCat("/proc/", pid, "/task"))) {
    names.push_back(Contents(task.path() / "comm"));
    if (!names.back().empty()) names.back().pop_back();
  }
  return names;
}

void ExpectSavedAtItsLastStep(const std::string& dir) {
  const auto checkpoints = CheckpointsIn(dir + "/checkpoints");
  ASSERT_FALSE(checkpoints.empty());
  EXPECT_EQ(checkpoints.back().first, LastStep(dir));
}

class StopSignalTest : public ::testing::TestWithParam<int> {};

TEST_P(StopSignalTest, SavesAndEndsWithACodeOfItsOwn) {
  const std::string dir = Folder(absl::StrCat("signal-", GetParam()));
  OmnitrainProcess run(Endless(dir));
  ASSERT_TRUE(WaitFor([&] { return LastStep(dir) >= 2; })) << run.output();
  kill(run.pid(), GetParam());
  EXPECT_EQ(run.Wait(), kStopped) << run.output();
  EXPECT_THAT(run.output(), HasSubstr("stopped at step"));
  ExpectSavedAtItsLastStep(dir);
}

INSTANTIATE_TEST_SUITE_P(Signals, StopSignalTest, ::testing::Values(SIGHUP, SIGTERM, SIGINT),
                         [](const auto& info) { return absl::StrCat("Signal", info.param); });

// As Slurm does with scancel: every process hears of it, and the script passes it on.
TEST(StopSignalTest, SignalsAtOnceAreOneRequest) {
  const std::string dir = Folder("signalled_at_once");
  OmnitrainProcess run(Endless(dir));
  ASSERT_TRUE(WaitFor([&] { return LastStep(dir) >= 2; })) << run.output();
  for (int i = 0; i < 2; ++i) {
    for (const pid_t worker : run.children()) kill(worker, SIGTERM);
    kill(run.pid(), SIGTERM);
    absl::SleepFor(absl::Milliseconds(i == 0 ? 20 : 0));
  }
  EXPECT_EQ(run.Wait(), kStopped) << run.output();
  ExpectSavedAtItsLastStep(dir);
}

TEST(StopSignalTest, AWorkerThatHearsSighupStopsTheJobInGoodOrder) {
  const std::string dir = Folder("worker_hup");
  OmnitrainProcess run(Endless(dir));
  ASSERT_TRUE(WaitFor([&] { return LastStep(dir) >= 2; })) << run.output();
  kill(run.children().at(1), SIGHUP);
  EXPECT_EQ(run.Wait(), kStopped) << run.output();
  ExpectSavedAtItsLastStep(dir);
}

TEST(HangUpTest, NohupIsObeyedByAllProcesses) {
  const std::string dir = Folder("nohup");
  ChildProcess run("sh", {"-c", "trap '' HUP; exec " + Command(Endless(dir))});
  ASSERT_TRUE(WaitFor([&] { return LastStep(dir) >= 2; })) << run.output();
  for (const pid_t worker : run.children()) kill(worker, SIGHUP);
  kill(run.pid(), SIGHUP);
  const int64_t before = LastStep(dir);
  ASSERT_TRUE(WaitFor([&] { return LastStep(dir) >= before + 20; })) << run.output();
  kill(run.pid(), SIGTERM);
  EXPECT_EQ(run.Wait(), kStopped);
}

TEST(HangUpTest, ATerminalThatGoesAwayStopsAndSaves) {
  const std::string dir = Folder("window_closed");
  std::vector<std::string> words = Endless(dir);
  words.insert(words.begin(), OMNI_BINARY);
  TerminalProcess run(words, 80);
  ASSERT_TRUE(WaitFor([&] { return run.Read(), LastStep(dir) >= 2; })) << run.Read();
  run.HangUp();
  EXPECT_EQ(run.Wait(), kStopped) << run.Read();
  ExpectSavedAtItsLastStep(dir);
}

TEST(HangUpTest, ATerminalThatGoesAwayUnderNohupIsMissedByNobody) {
  const std::string dir = Folder("window_closed_nohup");
  TerminalProcess run({"sh", "-c", "trap '' HUP; exec " + Command(Train(dir, {"--steps", "40"}))},
                      80);
  ASSERT_TRUE(WaitFor([&] { return run.Read(), LastStep(dir) >= 2; })) << run.Read();
  run.HangUp();  // every line from here on is an error of its write
  EXPECT_EQ(run.Wait(), kFinished);
  EXPECT_EQ(LastStep(dir), 40);
}

struct Outlet {
  const char* name;
  const char* shell;  // with the command for %s
};

class OutputTest : public ::testing::TestWithParam<Outlet> {};

TEST_P(OutputTest, EndsNoJob) {
  const std::string dir = Folder(GetParam().name);
  const std::string code = dir + ".code";
  fs::remove(code);
  const std::string command =
      absl::StrReplaceAll(GetParam().shell, {{"%s", Command(Train(dir))}, {"%code", code}});
  ChildProcess shell("bash", {"-c", command});
  EXPECT_EQ(shell.Wait(), 0) << shell.output();
  EXPECT_EQ(Contents(code), "0\n") << shell.output();
  EXPECT_EQ(LastStep(dir), 6);
  // What was to be printed has gone into no file or socket that got the number of stdout.
  for (const char* file : {".lock", "metrics.jsonl", "logs/rank-00000.log"}) {
    EXPECT_THAT(Contents(absl::StrCat(dir, "/", file)), Not(HasSubstr("finished at step"))) << file;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Outlets, OutputTest,
    ::testing::Values(Outlet{"head", "{ %s; echo $? > %code; } | head -1"},
                      Outlet{"nobody_reads", "{ %s 2>&1; echo $? > %code; } | true"},
                      Outlet{"closed", "%s >&- 2>&- <&-; echo $? > %code"},
                      Outlet{"stdout_closed", "%s >&-; echo $? > %code"},
                      Outlet{"full_disk", "%s > /dev/full 2>&1; echo $? > %code"}),
    [](const auto& info) { return std::string(info.param.name); });

// Where the output is the product, a loss of it is an error; whoever closes the pipe has enough.
TEST(ProductTest, IsAllWrittenOrAnError) {
  ChildProcess full("bash", {"-c", Command({"replay"}) + " > /dev/full"});
  EXPECT_EQ(full.Wait(), kError);
  EXPECT_THAT(full.output(), HasSubstr("standard output: No space left on device"));
  ChildProcess head("bash", {"-c", "set -o pipefail; " + Command({"replay"}) + " | true"});
  EXPECT_EQ(head.Wait(), 0) << head.output();
}

TEST(NamesTest, WorkersAndThreadsSayWhatTheyAre) {
  const std::string dir = Folder("names");
  OmnitrainProcess run(Endless(dir));
  ASSERT_TRUE(WaitFor([&] { return LastStep(dir) >= 1; })) << run.output();
  const std::vector<pid_t> workers = run.children();
  ASSERT_EQ(workers.size(), 2u);
  for (size_t rank = 0; rank < workers.size(); ++rank) {
    const std::string proc = absl::StrCat("/proc/", workers[rank]);
    const std::string title = Contents(proc + "/cmdline");
    EXPECT_STREQ(title.c_str(), absl::StrCat("omnitrain: worker ", rank).c_str());
    EXPECT_EQ(title.find_last_not_of('\0') + 1, std::string("omnitrain: worker 0").size());
    EXPECT_EQ(Contents(proc + "/comm"), absl::StrCat("omnitrain: w", rank, "\n"));
  }
  EXPECT_EQ(Contents(absl::StrCat("/proc/", run.pid(), "/comm")), "omnitrain\n");
  EXPECT_THAT(ThreadNames(run.pid()), ::testing::IsSupersetOf({"signals", "coordinator"}));
  EXPECT_THAT(ThreadNames(workers[0]), ::testing::IsSupersetOf({"heartbeat", "collectives"}));
}

TEST(NamesTest, AWorkerByHandLearnsItsRank) {
  const std::string dir = Folder("names_by_hand");
  std::vector<std::string> arguments = Endless(dir);
  arguments[0] = "coordinator";
  arguments.insert(arguments.end(), {"--workers", "1", "--address", "127.0.0.1:0"});
  OmnitrainProcess coordinator(arguments);
  ASSERT_TRUE(WaitFor([&] { return absl::StrContains(coordinator.output(), "coordinator at "); }));
  std::string address = coordinator.output();
  address = address.substr(address.find("coordinator at ") + 15);
  address = address.substr(0, address.find(';'));
  OmnitrainProcess worker({"worker", "--coordinator", address});
  const std::string cmdline = absl::StrCat("/proc/", worker.pid(), "/cmdline");
  EXPECT_TRUE(
      WaitFor([&] { return std::string(Contents(cmdline).c_str()) == "omnitrain: worker 0"; }));
}

// Of a tape, without what clears them. Other lines are text, which the terminal wraps.
std::vector<std::string> ProgressLines(const std::string& tape) {
  std::vector<std::string> lines = absl::StrSplit(
      absl::StrReplaceAll(tape, {{"\r\n", "\n"}, {"\033[K", ""}}), absl::ByAnyChar("\r\n"));
  std::erase_if(lines, [](const std::string& line) { return !absl::StartsWith(line, "step "); });
  return lines;
}

TEST(ScreenTest, TheLineFitsTheWindowAlsoAfterItWasMadeSmaller) {
  const std::string dir = Folder("columns");
  std::vector<std::string> words = Endless(dir);
  words.insert(words.begin(), OMNI_BINARY);
  TerminalProcess run(words, 80);
  ASSERT_TRUE(WaitFor([&] { return absl::StrContains(run.Read(), "step    5/"); })) << run.Read();
  const size_t wide = run.Read().size();
  for (const std::string& line : ProgressLines(run.Read())) EXPECT_LT(line.size(), 80u) << line;
  EXPECT_THAT(run.Read(), AllOf(HasSubstr("loss"), HasSubstr("left"), HasSubstr("tok/s")));
  run.Resize(30);
  const int64_t then = LastStep(dir);  // its line may have been made for the old width
  ASSERT_TRUE(WaitFor([&] { return run.Read(), LastStep(dir) >= then + 20; }));
  const std::string narrow = run.Read().substr(wide);
  const size_t after = narrow.find("\r\033[K", narrow.find(absl::StrCat(then + 2, "/1000000")));
  ASSERT_NE(after, std::string::npos) << narrow;
  for (const std::string& line : ProgressLines(narrow.substr(after))) {
    EXPECT_LT(line.size(), 30u) << line;
  }
  kill(run.pid(), SIGTERM);
  EXPECT_EQ(run.Wait(), kStopped);
}

TEST(ScreenTest, ADumbTerminalGetsPlainLines) {
  const std::string dir = Folder("dumb");
  std::vector<std::string> words = Train(dir);
  words.insert(words.begin(), OMNI_BINARY);
  TerminalProcess run(words, 60, {"TERM=dumb"});
  EXPECT_EQ(run.Wait(), kFinished) << run.Read();
  EXPECT_THAT(run.Read(), Not(HasSubstr("\033")));
  // The terminal itself ends lines with both.
  const std::string tape = absl::StrReplaceAll(run.Read(), {{"\r\n", "\n"}});
  EXPECT_THAT(tape, AllOf(Not(HasSubstr("\r")), HasSubstr("step    6/6")));
  for (const std::string& line : ProgressLines(tape)) EXPECT_LT(line.size(), 60u) << line;
}

// What is for looking at goes to a disk that is full: a device that takes no byte.
TEST(FullDiskTest, TracesAndLogsEndNoJobAndAreMentionedOnce) {
  const std::string dir = Folder("full_disk_traces");
  fs::create_directories(dir + "/traces");
  fs::create_directories(dir + "/logs");
  for (const char* file : {"traces/step-2-rank-0.json", "traces/step-3-rank-0.json",
                           "logs/rank-00000.log", "logs/rank-00001.log"}) {
    fs::create_symlink("/dev/full", absl::StrCat(dir, "/", file));
  }
  OmnitrainProcess run(Train(dir, {"--set", "observe.trace_steps=[2, 3, 4]"}));
  EXPECT_EQ(run.Wait(), kFinished) << run.output();
  const std::string warning = "warning: rank 0: no trace of step ";
  const size_t first = run.output().find(warning);
  ASSERT_NE(first, std::string::npos) << run.output();
  EXPECT_THAT(run.output().substr(first), HasSubstr("No space left on device"));
  EXPECT_EQ(run.output().find(warning, first + 1), std::string::npos) << run.output();
  EXPECT_TRUE(fs::exists(dir + "/traces/step-4-rank-0.json"));
  EXPECT_TRUE(fs::exists(dir + "/traces/step-3-rank-1.json"));
  EXPECT_EQ(LastStep(dir), 6);
}

TEST(ExitCodeTest, OfAnErrorAndOfWrongUsage) {
  EXPECT_EQ(OmnitrainProcess({"train", "/nope.yaml"}).Wait(), kError);
  EXPECT_EQ(OmnitrainProcess({"trian"}).Wait(), kWrongUsage);
  OmnitrainProcess help({"--help"});
  EXPECT_EQ(help.Wait(), 0);
  EXPECT_THAT(help.output(), AllOf(HasSubstr("Exit codes:"), HasSubstr("3 training was")));
}

TEST(FinishedTest, SaysSoInOneLine) {
  const std::string dir = Folder("finished_twice");
  OmnitrainProcess first(Train(dir));
  EXPECT_EQ(first.Wait(), kFinished) << first.output();
  EXPECT_THAT(first.output(), HasSubstr(absl::StrCat("\nfinished at step 6; run directory ", dir)));
  const std::string metrics = Contents(dir + "/metrics.jsonl");
  OmnitrainProcess second(Train(dir));
  EXPECT_EQ(second.Wait(), kFinished) << second.output();
  EXPECT_THAT(second.output(),
              HasSubstr(absl::StrCat("already finished at step 6; run directory ", dir)));
  EXPECT_EQ(Contents(dir + "/metrics.jsonl"), metrics);
}

const std::string& WithEvaluation() {
  static const std::string key =
      absl::StrCat("data.eval=[{name: held, path: ", TinyData(), "/heldout/text}]");
  return key;
}

// The steps that have an evaluation in metrics.jsonl.
std::vector<int64_t> Evaluations(const std::string& dir) {
  std::vector<int64_t> steps;
  for (const absl::string_view line : absl::StrSplit(Contents(dir + "/metrics.jsonl"), '\n')) {
    int64_t step = 0;
    if (absl::StrContains(line, "\"eval/") &&
        std::sscanf(std::string(line).c_str(), "{\"step\":%ld", &step) == 1) {
      steps.push_back(step);
    }
  }
  return steps;
}

void ExpectEvaluatedByTheNextStart(const std::string& dir) {
  OmnitrainProcess again(Train(dir, {"--set", WithEvaluation(), "--workers", "1"}));
  EXPECT_EQ(again.Wait(), kFinished) << again.output();
  EXPECT_THAT(again.output(), AllOf(HasSubstr("evaluating step 6, which an earlier start left out"),
                                    HasSubstr("finished at step 6")));
  EXPECT_EQ(Evaluations(dir), std::vector<int64_t>({6}));
  EXPECT_EQ(ReadMetrics(dir + "/metrics.jsonl").size(), 6u);  // none was lost
  OmnitrainProcess third(Train(dir, {"--set", WithEvaluation(), "--workers", "1"}));
  EXPECT_EQ(third.Wait(), kFinished);
  EXPECT_THAT(third.output(), HasSubstr("already finished at step 6"));
  EXPECT_EQ(Evaluations(dir), std::vector<int64_t>({6}));
}

TEST(OwedEvaluationTest, AStopInTheLastStepLeavesItToTheNextStart) {
  const std::string dir = Folder("owed_stop");
  OmnitrainProcess run(Train(dir, {"--set", WithEvaluation(), "--workers", "1", "--set",
                                   "runtime.fault={step: 6, at: forward-backward, kind: stop}"}));
  const auto is_stopped = [&] {
    const std::vector<pid_t> workers = run.children();
    if (workers.empty()) return false;
    const std::string stat = Contents(absl::StrCat("/proc/", workers[0], "/stat"));
    return absl::StrContains(stat, ") T ");
  };
  ASSERT_TRUE(WaitFor(is_stopped)) << run.output();
  kill(run.children()[0], SIGTERM);
  kill(run.children()[0], SIGCONT);
  EXPECT_EQ(run.Wait(), kStopped) << run.output();
  EXPECT_EQ(LastStep(dir), 6);
  EXPECT_TRUE(Evaluations(dir).empty());
  ExpectEvaluatedByTheNextStart(dir);
}

TEST(OwedEvaluationTest, ACrashInItLeavesItToTheNextStart) {
  const std::string dir = Folder("owed_crash");
  OmnitrainProcess run(Train(
      dir, {"--set", WithEvaluation(), "--workers", "1", "--set", "training.checkpoint.every=3",
            "--set", "runtime.fault={step: 7, at: evaluating, kind: crash}"}));
  EXPECT_EQ(run.Wait(), kError) << run.output();
  // The last checkpoint may have been complete or not.
  OmnitrainProcess again(Train(dir, {"--set", WithEvaluation(), "--workers", "1"}));
  EXPECT_EQ(again.Wait(), kFinished) << again.output();
  EXPECT_EQ(Evaluations(dir), std::vector<int64_t>({6}));
  EXPECT_EQ(ReadMetrics(dir + "/metrics.jsonl").size(), 6u);
}

TEST(VersionTest, SaysWhatWasBuiltAndWhatItFinds) {
  OmnitrainProcess run({"--version"});
  EXPECT_EQ(run.Wait(), 0);
  EXPECT_THAT(run.output(),
              ::testing::MatchesRegex("omnitrain [0-9.]+\n"
                                      "commit +(unknown|[0-9a-f]+(\\+changes)?)\n"
                                      "build +[A-Za-z]+, [A-Za-z]+ [0-9.]+.*\n"
                                      "processor +.*\n"
                                      "kernels +avx(2|512).*; OpenBLAS: .*\n"
                                      "ffmpeg +found .*\n"
                                      "sentencepiece +found\n"
                                      "libraries +gRPC [0-9.]+, protobuf [0-9.]+, .*\n"));
  ChildProcess without("env", {"OMNITRAIN_FFMPEG_PLUGIN=/nope.so", OMNI_BINARY, "--version"});
  EXPECT_EQ(without.Wait(), 0);
  EXPECT_THAT(without.output(), HasSubstr("ffmpeg         absent: "));
}

}  // namespace
}  // namespace omni::test
