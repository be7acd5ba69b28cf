// What must not stop a job (terminals that are held, files that take nothing, suspensions), and
// what must stop it soon (a signal, whatever the process is in; workers that never come).
//
// Nothing here rests on speed: what would hang for ever hangs for minutes, and then the test fails.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "runtime/base/unique_fd.h"
#include "runtime/checkpoint/checkpoint.h"
#include "tests/e2e/process.h"
#include "tests/support/checkpoints.h"
#include "tests/support/tiny_job.h"

namespace omni::test {
namespace {

namespace fs = std::filesystem;
using ::testing::AnyOf;
using ::testing::Eq;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr int64_t kSteps = 40;

std::string Folder(const std::string& name) {
  const std::string folder = absl::StrCat(TinyData(), "-alive/", name);
  fs::remove_all(folder);
  fs::create_directories(folder);
  return folder;
}

std::string Recipe() {
  static const std::string path = [] {
    const std::string file = TinyData() + "-alive.yaml";
    std::ofstream(file) << TinyRecipeYaml({.steps = kSteps,
                                           .workers = 2,
                                           .dtype = "fp32",
                                           .optimizer = "adamw",
                                           .checkpoint_every = 20,
                                           .sources = "[text]"});
    return file;
  }();
  return path;
}

std::vector<std::string> Train(const std::string& dir, double deadline_s,
                               const std::vector<std::string>& more = {}) {
  std::vector<std::string> arguments = {
      "train", Recipe(), "--run-dir",
      dir,     "--set",  absl::StrCat("runtime.deadline_s=", deadline_s)};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

std::map<int64_t, std::string> Losses(const std::string& dir) {
  std::map<int64_t, std::string> losses;
  for (const auto& [step, values] : ReadMetrics(dir + "/metrics.jsonl")) {
    losses[step] = values.at("loss");
  }
  return losses;
}

int64_t LastStep(const std::string& dir) {
  const auto losses = Losses(dir);
  return losses.empty() ? 0 : losses.rbegin()->first;
}

const std::map<int64_t, std::string>& UndisturbedLosses() {
  static const std::map<int64_t, std::string> losses = [] {
    const std::string dir = Folder("undisturbed");
    OmnitrainProcess run(Train(dir, 60));
    EXPECT_EQ(run.Wait(), 0) << run.output();
    EXPECT_EQ(Losses(dir).size(), static_cast<size_t>(kSteps));
    return Losses(dir);
  }();
  return losses;
}

std::string Slurp(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// "T" stopped, "Z" ended, "S", "R"... as in /proc/PID/stat.
char StateOf(pid_t pid) {
  const std::string text = Slurp(absl::StrCat("/proc/", pid, "/stat"));
  const size_t end = text.rfind(") ");
  return end == std::string::npos ? 'X' : text[end + 2];
}

// Whether the process has a handler for `signal`.
bool Catches(pid_t pid, int signal) {
  const std::string text = Slurp(absl::StrCat("/proc/", pid, "/status"));
  const size_t mask = text.find("SigCgt:\t");
  return mask != std::string::npos &&
         (std::strtoull(text.c_str() + mask + 8, nullptr, 16) >> (signal - 1) & 1) != 0;
}

bool AllAre(char state, const std::vector<pid_t>& pids) {
  for (const pid_t pid : pids) {
    if (StateOf(pid) != state) return false;
  }
  return true;
}

// A pseudo-terminal on which someone has pressed Ctrl-S: what is written to it blocks.
class HeldTerminal {
 public:
  HeldTerminal() : controller_(posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC)) {
    EXPECT_EQ(grantpt(controller_.get()), 0);
    EXPECT_EQ(unlockpt(controller_.get()), 0);
    name_ = ptsname(controller_.get());
    terminal_ = UniqueFd(open(name_.c_str(), O_RDWR | O_NOCTTY | O_CLOEXEC));
    EXPECT_EQ(tcflow(terminal_.get(), TCOOFF), 0);
  }
  const std::string& name() const { return name_; }
  void Release() { EXPECT_EQ(tcflow(terminal_.get(), TCOON), 0); }
  // What has come until `text` has, or for a minute.
  std::string ReadUntil(const std::string& text) {
    std::string all;
    fcntl(controller_.get(), F_SETFL, O_NONBLOCK);
    WaitFor(
        [&] {
          char buffer[4096];
          const ssize_t count = read(controller_.get(), buffer, sizeof(buffer));
          if (count > 0) all.append(buffer, static_cast<size_t>(count));
          return all.find(text) != std::string::npos;
        },
        absl::Minutes(1));
    return all;
  }

 private:
  UniqueFd controller_, terminal_;
  std::string name_;
};

// A pipe with a name whose buffer is full: nobody reads it.
class FullPipe {
 public:
  explicit FullPipe(const std::string& path) {
    EXPECT_EQ(mkfifo(path.c_str(), 0600), 0);
    fd_ = UniqueFd(open(path.c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC));
    const std::string line = "{\"step\": 0}\n";
    while (write(fd_.get(), line.data(), line.size()) > 0) continue;
  }

 private:
  UniqueFd fd_;
};

TEST(HeldOutputTest, AHeldTerminalHoldsUpNothing) {
  const std::string dir = Folder("terminal");
  HeldTerminal terminal;
  OmnitrainProcess run(Train(dir, 3), terminal.name());
  EXPECT_EQ(run.Wait(), 0);
  EXPECT_EQ(Losses(dir), UndisturbedLosses());
}

TEST(HeldOutputTest, AReleasedTerminalShowsTheRestAndWhatWasLeftOut) {
  const std::string dir = Folder("released");
  HeldTerminal terminal;
  OmnitrainProcess run(Train(dir, 60, {"--set", "training.steps=300"}), terminal.name());
  EXPECT_TRUE(WaitFor([&] { return LastStep(dir) >= 200; }));
  terminal.Release();
  EXPECT_THAT(terminal.ReadUntil("finished at step"),
              ::testing::AllOf(HasSubstr("steps was not shown: the terminal took nothing"),
                               HasSubstr("finished at step 300")));
  EXPECT_EQ(run.Wait(), 0);
}

TEST(HeldOutputTest, AFullPipeHoldsUpNothing) {
  const std::string dir = Folder("pipe");
  FullPipe pipe(dir + "/out");
  OmnitrainProcess run(Train(dir, 3), dir + "/out");
  EXPECT_EQ(run.Wait(), 0);
  EXPECT_EQ(Losses(dir), UndisturbedLosses());
}

// Trains to the end, waits for the file, then says that it could not write, and how much.
TEST(HeldOutputTest, MetricsThatCanNotBeWrittenAreNeverLostInSilence) {
  const std::string dir = Folder("metrics");
  FullPipe metrics(dir + "/metrics.jsonl");
  OmnitrainProcess run(Train(dir, 3));
  EXPECT_EQ(run.Wait(), 1);
  EXPECT_THAT(run.output(),
              HasSubstr(absl::StrCat(dir, "/metrics.jsonl: ", kSteps,
                                     " reports of steps could not be written within 10s")));
  EXPECT_EQ(CheckpointsIn(dir + "/checkpoints").back().first, kSteps);
}

// The rank's log takes nothing: training neither waits for it at the start nor at the end.
TEST(HeldOutputTest, ALogThatTakesNothingHoldsUpNothing) {
  const std::string dir = Folder("log");
  fs::create_directories(dir + "/logs");
  FullPipe log(dir + "/logs/rank-00001.log");
  OmnitrainProcess run(Train(dir, 3));
  EXPECT_EQ(run.Wait(), 0) << run.output();
  EXPECT_EQ(Losses(dir), UndisturbedLosses());
}

class SuspensionTest : public ::testing::Test {
 protected:
  // A job of many steps in the middle of them; `kDeadline` is shorter than it will be suspended
  // for.
  static constexpr double kDeadline = 2;
  static constexpr absl::Duration kSuspended = absl::Seconds(6);

  void StartJob(const std::string& name, int workers = 2) {
    dir_ = Folder(name);
    run_ = std::make_unique<OmnitrainProcess>(
        Train(dir_, kDeadline, {"--set", absl::StrCat("parallel.workers=", workers)}));
    ASSERT_TRUE(
        WaitFor([&] { return LastStep(dir_) >= 5 || run_->Wait(absl::ZeroDuration()) >= 0; }));
    workers_ = run_->children();
    ASSERT_EQ(workers_.size(), static_cast<size_t>(workers)) << run_->output();
  }
  void ExpectUndisturbed() {
    EXPECT_EQ(run_->Wait(), 0) << run_->output();
    EXPECT_THAT(run_->output(), HasSubstr("finished at step"));
    EXPECT_EQ(Losses(dir_), UndisturbedLosses());
  }

  std::string dir_;
  std::unique_ptr<OmnitrainProcess> run_;
  std::vector<pid_t> workers_;
};

TEST_F(SuspensionTest, OfTheWholeJobIsNobodysDeath) {
  StartJob("suspended");
  std::vector<pid_t> all = workers_;
  all.push_back(run_->pid());
  for (const pid_t pid : all) kill(pid, SIGSTOP);
  absl::SleepFor(kSuspended);
  for (const pid_t pid : all) kill(pid, SIGCONT);
  ExpectUndisturbed();
}

TEST_F(SuspensionTest, OfTheCoordinatorAloneHoldsUpNothing) {
  StartJob("coordinator");
  kill(run_->pid(), SIGSTOP);
  absl::SleepFor(kSuspended);
  for (const pid_t pid : workers_) EXPECT_TRUE(IsAlive(pid));
  kill(run_->pid(), SIGCONT);
  ExpectUndisturbed();
}

// Ctrl-Z reaches the launcher alone: the workers have process groups of their own.
TEST_F(SuspensionTest, ByCtrlZStopsTheWorkersToo) {
  StartJob("ctrl_z");
  kill(run_->pid(), SIGTSTP);
  EXPECT_TRUE(WaitFor([&] { return StateOf(run_->pid()) == 'T' && AllAre('T', workers_); }));
  absl::SleepFor(kSuspended);
  kill(run_->pid(), SIGCONT);
  ExpectUndisturbed();
}

// The thread that trains is in a call that never returns; `at` is what it was doing.
void ExpectAStopIsObeyedAt(const std::string& name, const std::string& at) {
  const std::string dir = Folder(name);
  OmnitrainProcess run(
      Train(dir, 60,
            {"--set", absl::StrCat("runtime.fault={rank: 1, step: 1, at: ", at, ", kind: hang}")}));
  ASSERT_TRUE(WaitFor([&] {
    return Slurp(dir + "/logs/rank-00001.log").find("made on purpose") != std::string::npos;
  })) << run.output();
  const std::vector<pid_t> workers = run.children();
  kill(run.pid(), SIGTERM);
  EXPECT_THAT(run.Wait(), AnyOf(Eq(0), Eq(3))) << run.output();
  EXPECT_THAT(run.output(), HasSubstr("stopped"));
  EXPECT_THAT(run.output(), Not(HasSubstr("omnitrain: ")));  // no error
  for (const pid_t pid : workers) EXPECT_FALSE(IsAlive(pid));
}

TEST(StopTest, IsObeyedWhileTheModelIsBuilt) {
  ExpectAStopIsObeyedAt("building", "building the model");
}

TEST(StopTest, IsObeyedWhileACheckpointIsLookedFor) {
  ExpectAStopIsObeyedAt("looking", "looking for a checkpoint");
}

TEST(StopTest, IsObeyedWhileWorkersAreAwaited) {
  const std::string dir = Folder("awaited");
  OmnitrainProcess coordinator({"coordinator", Recipe(), "--run-dir", dir});
  const std::string before = "--coordinator ";
  ASSERT_TRUE(WaitFor([&] { return coordinator.output().find(before) != std::string::npos; }));
  std::string address = coordinator.output();
  address = address.substr(address.find(before) + before.size());
  address = address.substr(0, address.find_first_of(" \n"));
  OmnitrainProcess worker({"worker", "--coordinator", address});
  ASSERT_TRUE(WaitFor([&] { return fs::exists(dir + "/logs/rank-00000.log"); }));
  kill(coordinator.pid(), SIGTERM);
  EXPECT_THAT(coordinator.Wait(), AnyOf(Eq(0), Eq(3))) << coordinator.output();
  EXPECT_THAT(coordinator.output(), HasSubstr("stopped"));
  EXPECT_THAT(worker.Wait(), AnyOf(Eq(0), Eq(3))) << worker.output();
}

TEST(StopTest, EndsACoordinatorToWhichNobodyHasCome) {
  const std::string dir = Folder("nobody");
  OmnitrainProcess coordinator({"coordinator", Recipe(), "--run-dir", dir});
  ASSERT_TRUE(
      WaitFor([&] { return coordinator.output().find("coordinator at") != std::string::npos; }));
  kill(coordinator.pid(), SIGTERM);
  EXPECT_THAT(coordinator.Wait(), AnyOf(Eq(0), Eq(3))) << coordinator.output();
  EXPECT_THAT(coordinator.output(), HasSubstr("stopped"));
}

TEST(StopTest, EndsAWorkerWhoseCoordinatorIsNotThere) {
  OmnitrainProcess worker({"worker", "--coordinator", "127.0.0.1:1", "--wait", "3600"});
  ASSERT_TRUE(WaitFor([&] { return Catches(worker.pid(), SIGTERM); })) << worker.output();
  kill(worker.pid(), SIGTERM);
  EXPECT_EQ(worker.Wait(absl::Minutes(2)), 3) << worker.output();
  EXPECT_THAT(worker.output(), HasSubstr("stopped before the first step"));
}

TEST(NobodyComesTest, TheCoordinatorGivesUpAndSaysHowManyCame) {
  const std::string dir = Folder("gives_up");
  OmnitrainProcess coordinator(
      {"coordinator", Recipe(), "--run-dir", dir, "--set", "runtime.deadline_s=0.2"});
  EXPECT_EQ(coordinator.Wait(), 1);
  EXPECT_THAT(coordinator.output(), HasSubstr("within 2s: omnitrain worker"));
  EXPECT_THAT(coordinator.output(), HasSubstr("only 0 of 2 workers registered at 127.0.0.1:"));
  EXPECT_THAT(coordinator.output(), HasSubstr("within 2s"));
}

}  // namespace
}  // namespace omni::test
