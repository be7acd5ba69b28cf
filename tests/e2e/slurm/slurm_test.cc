// deploy/slurm/train.sbatch on Debian's own Slurm: two nodes, which are this machine twice.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "runtime/checkpoint/checkpoint.h"
#include "tests/e2e/process.h"
#include "tests/support/checkpoints.h"
#include "tests/support/tiny_job.h"

namespace omni::test {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

std::string Contents(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

int64_t LastStep(const std::string& dir) {
  const auto steps = ReadMetrics(dir + "/metrics.jsonl");
  return steps.empty() ? 0 : steps.rbegin()->first;
}

// Output of a command that must succeed.
std::string RunProgram(const std::string& program, const std::vector<std::string>& arguments) {
  ChildProcess command(program, arguments);
  EXPECT_EQ(command.Wait(absl::Minutes(2)), 0)
      << program << ": " << (command.output().empty() ? "no such program" : command.output());
  return command.output();
}

// "CPUs 0-1" -> 2, of a line "Cpus_allowed_list:	0-1,4".
int NumAllowedCpus(pid_t pid) {
  int count = 0;
  for (const absl::string_view line :
       absl::StrSplit(Contents(absl::StrCat("/proc/", pid, "/status")), '\n')) {
    if (!absl::StartsWith(line, "Cpus_allowed_list:")) continue;
    const std::vector<std::string> words = absl::StrSplit(line, '\t');
    for (const absl::string_view range : absl::StrSplit(words[1], ',')) {
      const std::vector<std::string> ends = absl::StrSplit(range, '-');
      count += std::stoi(ends.back()) - std::stoi(ends.front()) + 1;
    }
  }
  return count;
}

class SlurmTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    setenv("PATH", absl::StrCat(getenv("PATH"), ":/usr/sbin:/sbin").c_str(), 1);
    ChildProcess found("sh", {"-c",
                              "command -v slurmctld && command -v slurmd && "
                              "command -v munged && command -v sbatch"});
    if (geteuid() != 0 || found.Wait() != 0) return;
    folder_ = new std::string(absl::StrCat(::testing::TempDir(), "/omnitrain-slurm-XXXXXX"));
    ASSERT_NE(mkdtemp(folder_->data()), nullptr);
    setenv("SLURM_CONF", (*folder_ + "/slurm.conf").c_str(), 1);
    setenv("OMNITRAIN", OMNI_BINARY, 1);
    RunProgram(OMNI_SOURCE_DIR "/tests/e2e/slurm/cluster.sh", {"start", *folder_});
    std::ofstream(*folder_ + "/recipe.yaml")
        << TinyRecipeYaml({.steps = 1000000, .dtype = "fp32", .checkpoint_every = 100});
  }
  static void TearDownTestSuite() {
    if (folder_ == nullptr) return;
    RunProgram(OMNI_SOURCE_DIR "/tests/e2e/slurm/cluster.sh", {"stop", *folder_});
    delete folder_;
    folder_ = nullptr;
  }

  void SetUp() override {
    if (folder_ == nullptr) {
      GTEST_SKIP() << "needs Slurm and root: apt-get install --no-install-recommends slurm-wlm "
                      "munge";
    }
    dir_ = absl::StrCat(*folder_, "/run-",
                        ::testing::UnitTest::GetInstance()->current_test_info()->name());
    output_ = dir_ + ".out";
  }
  void TearDown() override {
    for (const std::string& job : jobs_) ChildProcess("scancel", {job}).Wait(absl::Minutes(1));
    for (const std::string& job : jobs_) {
      EXPECT_TRUE(WaitFor([&] { return !absl::StrContains("RUNNING COMPLETING", State(job)); }));
    }
  }

  // Returns the job's id; `more` are words of sbatch, `arguments` of omnitrain.
  std::string Submit(std::vector<std::string> more, const std::vector<std::string>& arguments = {},
                     const std::string& recipe = "/recipe.yaml") {
    more.insert(more.begin(), {"--parsable", "--output=" + output_});
    more.insert(more.end(),
                {OMNI_SOURCE_DIR "/deploy/slurm/train.sbatch", *folder_ + recipe, dir_});
    more.insert(more.end(), arguments.begin(), arguments.end());
    std::string id = RunProgram("sbatch", more);
    jobs_.push_back(id.substr(0, id.find('\n')));
    return jobs_.back();
  }
  // A field of `scontrol show job`.
  static std::string Field(const std::string& job, const std::string& name) {
    const std::string text = RunProgram("scontrol", {"show", "job", "--oneliner", job});
    for (const absl::string_view word : absl::StrSplit(text, ' ')) {
      if (absl::StartsWith(word, name + "=")) return std::string(word.substr(name.size() + 1));
    }
    return "";
  }
  static std::string State(const std::string& job) { return Field(job, "JobState"); }
  std::string Output() const { return Contents(output_); }
  // With `starts` starts in its output, and some steps of the last.
  bool Trains(int starts) const {
    return WaitFor([&] {
      const std::string output = Output();
      const size_t last = output.rfind(absl::StrCat(", start ", starts, ","));
      return last != std::string::npos && absl::StrContains(output.substr(last), "step ");
    });
  }
  static bool WaitForState(const std::string& job, const std::string& state) {
    return WaitFor([&] { return State(job) == state; });
  }
  void ExpectSaved() const {
    const auto checkpoints = CheckpointsIn(dir_ + "/checkpoints");
    ASSERT_FALSE(checkpoints.empty()) << Output();
    EXPECT_EQ(checkpoints.back().first, LastStep(dir_)) << Output();
  }

  static std::string* folder_;
  std::string dir_, output_;
  std::vector<std::string> jobs_;
};
std::string* SlurmTest::folder_ = nullptr;

TEST_F(SlurmTest, WorkersOnTwoNodesHaveTheirCores) {
  const std::string job = Submit({"--nodes=2", "--cpus-per-task=2"});
  ASSERT_TRUE(Trains(1)) << Output();
  std::vector<std::string> hosts;
  for (const auto& entry : fs::directory_iterator("/proc")) {
    const std::string title = Contents(entry.path() / "cmdline");
    const std::string environment = Contents(entry.path() / "environ");
    if (!absl::StartsWith(title, "omnitrain: worker ") ||
        !absl::StrContains(environment, absl::StrCat("SLURM_JOB_ID=", job))) {
      continue;
    }
    for (const absl::string_view variable : absl::StrSplit(environment, '\0')) {
      if (absl::StartsWith(variable, "SLURMD_NODENAME=")) hosts.emplace_back(variable);
    }
    if (sysconf(_SC_NPROCESSORS_ONLN) >= 2) {
      EXPECT_EQ(NumAllowedCpus(std::stoi(entry.path().filename())), 2) << title;
    }
  }
  EXPECT_THAT(hosts, ::testing::UnorderedElementsAre("SLURMD_NODENAME=n1", "SLURMD_NODENAME=n2"));
  EXPECT_THAT(Contents(dir_ + "/resolved.yaml"), HasSubstr("threads: 2"));
}

TEST_F(SlurmTest, AFinishedJobAndAFailedOneAreNotQueuedAgain) {
  const std::string job = Submit({"--nodes=2", "--cpus-per-task=1"}, {"--steps", "8"});
  ASSERT_TRUE(WaitForState(job, "COMPLETED")) << State(job) << Output();
  EXPECT_THAT(Output(), HasSubstr("finished at step 8"));
  EXPECT_EQ(Field(job, "Restarts"), "0");
  const std::string bad = Submit({"--nodes=2", "--cpus-per-task=1"}, {}, "/nope.yaml");
  ASSERT_TRUE(WaitForState(bad, "FAILED")) << State(bad);
  EXPECT_EQ(Field(bad, "Restarts"), "0");
  EXPECT_EQ(Field(bad, "ExitCode"), "1:0");
}

TEST_F(SlurmTest, TwoJobsShareTheNodesButNoPort) {
  const std::string first = Submit({"--nodes=2", "--cpus-per-task=1"});
  ASSERT_TRUE(Trains(1)) << Output();
  const std::string first_dir = dir_, first_output = output_;
  dir_ += "-second";
  output_ += "-second";
  const std::string second = Submit({"--nodes=2", "--cpus-per-task=1"}, {"--steps", "8"});
  EXPECT_TRUE(WaitForState(second, "COMPLETED")) << Output();
  EXPECT_EQ(State(first), "RUNNING") << Contents(first_output);
}

TEST_F(SlurmTest, OneScancelSavesAndEnds) {
  const std::string job = Submit({"--nodes=2", "--cpus-per-task=1"});
  ASSERT_TRUE(Trains(1)) << Output();
  RunProgram("scancel", {job});
  ASSERT_TRUE(WaitForState(job, "CANCELLED")) << State(job);
  ASSERT_TRUE(WaitFor([&] { return absl::StrContains(Output(), "stopped at step"); })) << Output();
  ExpectSaved();
  EXPECT_THAT(Output(), AllOf(Not(HasSubstr("interrupted twice")), Not(HasSubstr("Killed"))));
  EXPECT_EQ(Field(job, "Restarts"), "0");
}

TEST_F(SlurmTest, BeforeItsTimeLimitItSavesAndGoesOnLater) {
  // Slurm counts limits in minutes, and looks at them twice a minute.
  const std::string job =
      Submit({"--nodes=2", "--cpus-per-task=1", "--time=1", "--signal=B:USR1@30"});
  ASSERT_TRUE(Trains(1)) << Output();
  ASSERT_TRUE(WaitFor([&] { return absl::StrContains(Output(), "queued again"); })) << Output();
  ExpectSaved();
  const int64_t saved = LastStep(dir_);
  ASSERT_TRUE(Trains(2)) << State(job) << Output();
  EXPECT_THAT(Output(), AllOf(HasSubstr("start 1"), HasSubstr("stopped at step"),
                              HasSubstr(absl::StrCat("resuming from step ", saved))));
  EXPECT_EQ(Field(job, "Restarts"), "1");
}

TEST_F(SlurmTest, APreemptedJobSavesAndGoesOnLater) {
  const std::string job = Submit({"--nodes=2", "--cpus-per-task=2"});
  ASSERT_TRUE(Trains(1)) << Output();
  const std::string urgent =
      RunProgram("sbatch", {"--parsable", "--partition=urgent", "--nodes=2", "--exclusive",
                            "--output=/dev/null", "--wrap=srun sleep 1"});
  jobs_.push_back(urgent.substr(0, urgent.find('\n')));
  ASSERT_TRUE(WaitForState(jobs_.back(), "COMPLETED")) << Output();
  ASSERT_TRUE(Trains(2)) << State(job) << Output();
  EXPECT_THAT(Output(), AllOf(HasSubstr("stopped at step"), HasSubstr("resuming from step "),
                              Not(HasSubstr("interrupted twice"))));
  EXPECT_EQ(Field(job, "Restarts"), "1");
}

}  // namespace
}  // namespace omni::test
