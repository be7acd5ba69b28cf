// A run that is killed and started again by the same command goes on as if nothing had happened:
// the losses are those of the unbroken run, bit for bit.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>

#include "absl/strings/str_cat.h"
#include "runtime/base/trace.h"
#include "runtime/checkpoint/checkpoint.h"
#include "tests/e2e/process.h"
#include "tests/support/checkpoints.h"
#include "tests/support/tiny_job.h"

namespace omni::test {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

// Enough that a kill or a stop comes long before the end, also where a step takes milliseconds.
constexpr int64_t kSteps = 120;

std::string Folder(const std::string& name) {
  const std::string folder = absl::StrCat(TinyData(), "-runs/", name);
  fs::remove_all(folder);
  fs::create_directories(fs::path(folder).parent_path());
  return folder;
}

std::string WriteRecipe(const std::string& name, TinyRecipe recipe) {
  const std::string path = absl::StrCat(TinyData(), "-", name, ".yaml");
  std::ofstream(path) << TinyRecipeYaml(recipe);
  return path;
}

std::string RecipePath() {
  static const std::string path = WriteRecipe(
      "resume", {.steps = kSteps, .workers = 2, .dtype = "fp32", .checkpoint_every = 6});
  return path;
}

std::vector<std::string> TrainArguments(const std::string& dir) {
  return {"train", RecipePath(), "--run-dir", dir};
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

const std::map<int64_t, std::string>& UnbrokenLosses() {
  static const std::map<int64_t, std::string> losses = [] {
    const std::string dir = Folder("unbroken");
    OmnitrainProcess run(TrainArguments(dir));
    EXPECT_EQ(run.Wait(), 0) << run.output();
    return Losses(dir);
  }();
  return losses;
}

// Some attempts at what depends on when this process gets to run.
bool EventuallyTrue(const std::function<bool()>& attempt) {
  for (int i = 0; i < 5; ++i) {
    if (attempt()) return true;
  }
  return false;
}

enum class Victim { kWorker0, kWorker1, kCoordinator };

struct Kill {
  const char* name;
  Victim victim;
  int64_t step;            // once this many steps are reported
  bool during_checkpoint;  // and then as soon as a checkpoint is being written
};

class KillTest : public ::testing::TestWithParam<Kill> {};

bool CheckpointUnderWay(const std::string& dir) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(dir + "/checkpoints", error)) {
    if (entry.path().extension() == ".partial") return true;
  }
  return false;
}

// False if the job was over before it could be killed.
bool KilledUnderWay(const Kill& how, const std::string& dir) {
  OmnitrainProcess run(TrainArguments(dir));
  const auto is_over = [&] { return run.Wait(absl::ZeroDuration()) >= 0; };
  EXPECT_TRUE(WaitFor([&] { return LastStep(dir) >= how.step || is_over(); })) << run.output();
  if (how.during_checkpoint) WaitFor([&] { return CheckpointUnderWay(dir) || is_over(); });
  const std::vector<pid_t> workers = run.children();
  if (workers.size() == 2) {
    kill(how.victim == Victim::kCoordinator ? run.pid()
         : how.victim == Victim::kWorker0   ? workers[0]
                                            : workers[1],
         SIGKILL);
  }
  const int code = run.Wait();
  // Nobody is left, also when the parent died.
  for (const pid_t worker : workers) EXPECT_TRUE(WaitFor([&] { return !IsAlive(worker); }));
  if (LastStep(dir) >= kSteps) return false;
  EXPECT_EQ(workers.size(), 2u) << run.output();
  EXPECT_NE(code, 0);
  if (how.victim != Victim::kCoordinator) {
    EXPECT_THAT(run.output(), HasSubstr(how.victim == Victim::kWorker0 ? "rank 0" : "rank 1"));
  }
  return true;
}

TEST_P(KillTest, TheSameCommandGoesOnWithTheSameBits) {
  std::string dir;
  // On a busy machine this process may sleep while the job runs to its end.
  ASSERT_TRUE(EventuallyTrue([&] {
    dir = Folder(GetParam().name);
    return KilledUnderWay(GetParam(), dir);
  }));
  OmnitrainProcess again(TrainArguments(dir));
  EXPECT_EQ(again.Wait(), 0) << again.output();
  EXPECT_EQ(Losses(dir), UnbrokenLosses());
}

INSTANTIATE_TEST_SUITE_P(Victims, KillTest,
                         ::testing::Values(Kill{"Worker0Early", Victim::kWorker0, 2, false},
                                           Kill{"Worker1", Victim::kWorker1, 9, false},
                                           Kill{"Worker0InCheckpoint", Victim::kWorker0, 11, true},
                                           Kill{"Coordinator", Victim::kCoordinator, 14, false},
                                           Kill{"CoordinatorInCheckpoint", Victim::kCoordinator, 7,
                                                true}),
                         [](const auto& info) { return info.param.name; });

TEST(StopTest, SigtermSavesAndTheSameCommandGoesOn) {
  std::string dir;
  ASSERT_TRUE(EventuallyTrue([&] {
    dir = Folder("sigterm");
    OmnitrainProcess run(TrainArguments(dir));
    EXPECT_TRUE(WaitFor([&] { return LastStep(dir) >= 5; })) << run.output();
    kill(run.pid(), SIGTERM);
    const int code = run.Wait();
    if (LastStep(dir) >= kSteps) return false;  // it was over before
    EXPECT_EQ(code, 3) << run.output();
    EXPECT_THAT(run.output(), HasSubstr("stopped at step"));
    return true;
  }));
  EXPECT_EQ(CheckpointsIn(dir + "/checkpoints").back().first, LastStep(dir));
  OmnitrainProcess again(TrainArguments(dir));
  EXPECT_EQ(again.Wait(), 0) << again.output();
  EXPECT_EQ(Losses(dir), UnbrokenLosses());
}

TEST(ResumeTest, AFinishedRunHasNothingToDo) {
  const std::string dir = Folder("finished");
  const std::vector<std::string> arguments = {"train", RecipePath(), "--run-dir",
                                              dir,     "--steps",    "4"};
  EXPECT_EQ(OmnitrainProcess(arguments).Wait(), 0);
  const auto before = Losses(dir);
  EXPECT_EQ(OmnitrainProcess(arguments).Wait(), 0);
  EXPECT_EQ(Losses(dir), before);
}

// Four workers, then three, then one: what they train on is the same, step by step.
TEST(ResumeTest, AnotherNumberOfWorkersGoesOnWithTheSameSamples) {
  const std::string dir = Folder("workers");
  for (const auto& [workers, steps] :
       std::vector<std::pair<std::string, std::string>>{{"4", "20"}, {"3", "50"}, {"1", "120"}}) {
    OmnitrainProcess run({"train", RecipePath(), "--run-dir", dir, "--workers", workers, "--steps",
                          steps, "--set", "training.schedule.kind=constant"});
    ASSERT_EQ(run.Wait(), 0) << run.output();
  }
  const std::string unbroken = Folder("workers_unbroken");
  OmnitrainProcess run(
      {"train", RecipePath(), "--run-dir", unbroken, "--set", "training.schedule.kind=constant"});
  ASSERT_EQ(run.Wait(), 0) << run.output();
  const auto changed = ReadMetrics(dir + "/metrics.jsonl");
  const auto expected = ReadMetrics(unbroken + "/metrics.jsonl");
  ASSERT_EQ(changed.size(), static_cast<size_t>(kSteps));
  for (const auto& [step, values] : expected) {
    for (const auto& [name, value] : values) {
      if (name.rfind("samples/", 0) == 0 || name == "tokens" || name == "loss_tokens") {
        EXPECT_EQ(changed.at(step).at(name), value) << name << " in step " << step;
      }
    }
    EXPECT_NEAR(std::stod(changed.at(step).at("loss")), std::stod(values.at("loss")), 1e-3);
  }
}

TEST(RunDirectoryTest, HoldsWhatAReaderLooksFor) {
  const std::string dir = Folder("contents");
  OmnitrainProcess run({"train", RecipePath(), "--run-dir", dir, "--steps", "3", "--set",
                        "observe.trace_steps=[2]"});
  ASSERT_EQ(run.Wait(), 0) << run.output();
  for (const char* name :
       {"recipe.yaml", "resolved.yaml", "plan.yaml", "metrics.jsonl", "logs/rank-00000.log",
        "logs/rank-00001.log", "tensorboard", "traces/step-2-rank-0.json",
        "traces/step-2-rank-1.json", "checkpoints/step-00000003/manifest.json"}) {
    EXPECT_TRUE(fs::exists(dir + "/" + name)) << name;
  }
  // A replay takes the rank from there.
  for (const int rank : {0, 1}) {
    const auto spans = ReadChromeTrace(absl::StrCat(dir, "/traces/step-2-rank-", rank, ".json"));
    ASSERT_TRUE(spans.ok()) << spans.status();
    int num_actions = 0;
    for (const TraceEvent& span : *spans) {
      EXPECT_EQ(span.process, rank) << span.name;
      num_actions += span.category == "action" ? 1 : 0;
    }
    EXPECT_GE(num_actions, 6);  // forward, backward and a step's four ends
  }
}

TEST(RunDirectoryTest, TwoJobsCannotShareOne) {
  const std::string dir = Folder("shared");
  std::vector<std::string> endless = TrainArguments(dir);
  endless.insert(endless.end(), {"--steps", "1000000"});
  OmnitrainProcess first(endless);
  ASSERT_TRUE(WaitFor([&] { return LastStep(dir) >= 1; }));
  OmnitrainProcess second(TrainArguments(dir));
  EXPECT_EQ(second.Wait(), 1);
  EXPECT_THAT(second.output(), HasSubstr("in use by another job"));
}

// By hand, as on several machines: a coordinator and workers over tcp.
TEST(ByHandTest, CoordinatorAndWorkersOverTcp) {
  const std::string dir = Folder("by_hand");
  OmnitrainProcess coordinator({"coordinator", RecipePath(), "--run-dir", dir, "--steps", "4",
                                "--set", "runtime.comm=tcp", "--address", "127.0.0.1:0"});
  ASSERT_TRUE(
      WaitFor([&] { return coordinator.output().find("coordinator at ") != std::string::npos; }));
  std::string address = coordinator.output();
  address = address.substr(address.find("coordinator at ") + 15);
  address = address.substr(0, address.find(';'));
  OmnitrainProcess one({"worker", "--coordinator", address});
  OmnitrainProcess two({"worker", "--coordinator", address});
  EXPECT_EQ(coordinator.Wait(), 0) << coordinator.output();
  EXPECT_EQ(one.Wait(), 0) << one.output();
  EXPECT_EQ(two.Wait(), 0) << two.output();
  EXPECT_EQ(LastStep(dir), 4);
}

}  // namespace
}  // namespace omni::test
