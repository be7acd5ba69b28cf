// Whole jobs on storage that is far slower than the deadline, or slower for one rank than for
// another: slow is not dead.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "runtime/checkpoint/checkpoint.h"
#include "tests/e2e/process.h"
#include "tests/support/checkpoints.h"
#include "tests/support/tiny_job.h"

namespace omni::test {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr int kDeadlineSeconds = 2;

// As long as it lives, jobs that are started have slow storage where `path` is part of a path; with
// `when`, as long as a file of that name exists.
class SlowStorage {
 public:
  SlowStorage(const std::string& path, double bytes_per_second, const std::string& read_log = "",
              const std::string& when = "") {
    setenv("LD_PRELOAD", OMNI_SLOW_STORAGE, 1);
    setenv("SLOW_PATH", path.c_str(), 1);
    setenv("SLOW_BYTES", absl::StrCat(bytes_per_second).c_str(), 1);
    if (!read_log.empty()) setenv("READ_LOG", read_log.c_str(), 1);
    if (!when.empty()) setenv("SLOW_WHEN", when.c_str(), 1);
  }
  ~SlowStorage() {
    for (const char* name : {"LD_PRELOAD", "SLOW_PATH", "SLOW_BYTES", "READ_LOG", "SLOW_WHEN"}) {
      unsetenv(name);
    }
  }
};

std::string Folder(const std::string& name) {
  const std::string folder = absl::StrCat(TinyData(), "-slow/", name);
  fs::remove_all(folder);
  fs::create_directories(fs::path(folder).parent_path());
  return folder;
}

std::vector<std::string> Train(const std::string& dir, int64_t steps,
                               std::vector<std::string> more = {}) {
  const std::string recipe = dir + ".yaml";
  std::ofstream(recipe) << TinyRecipeYaml(
      {.steps = 4, .workers = 2, .dtype = "fp32", .sources = "[text]"});
  std::vector<std::string> arguments = {
      "train",     recipe,
      "--run-dir", dir,
      "--steps",   absl::StrCat(steps),
      "--set",     absl::StrCat("runtime.deadline_s=", kDeadlineSeconds)};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

std::map<std::string, int64_t> BytesOfShards(const std::string& checkpoint) {
  std::map<std::string, int64_t> bytes;
  for (const auto& entry : fs::directory_iterator(checkpoint)) {
    if (entry.is_regular_file()) bytes[entry.path().string()] = entry.file_size();
  }
  return bytes;
}

// Ten deadlines for all of it, and every byte of it is read once by the job.
TEST(SlowStorageTest, ACheckpointThatTakesTenDeadlinesToReadResumes) {
  const std::string dir = Folder("resume");
  OmnitrainProcess before(Train(dir, 4));
  ASSERT_EQ(before.Wait(), 0) << before.output();
  const std::string checkpoint = CheckpointsIn(dir + "/checkpoints").back().second;
  const auto shards = BytesOfShards(checkpoint);
  int64_t total = 0;
  for (const auto& [path, bytes] : shards) total += bytes;
  const std::string log = dir + ".reads";
  fs::remove(log);
  {
    const SlowStorage slow("/checkpoints/step", total / (10.0 * kDeadlineSeconds), log);
    OmnitrainProcess run(Train(dir, 6, {"--set", "training.checkpoint.keep=0"}));
    EXPECT_EQ(run.Wait(), 0) << run.output();
    EXPECT_THAT(run.output(), HasSubstr("resuming from step 4"));
  }
  std::map<std::string, int64_t> read;
  std::ifstream lines(log);
  std::string path;
  for (int64_t bytes = 0; lines >> path >> bytes;) read[path] += bytes;
  for (const auto& [file, bytes] : shards) {
    EXPECT_EQ(read[fs::canonical(file).string()], bytes) << file;
  }
}

TEST(SlowStorageTest, TheLastSaveTakesAsLongAsItsSlowestRank) {
  const std::string dir = Folder("save");
  OmnitrainProcess quick(Train(dir, 4));
  ASSERT_EQ(quick.Wait(), 0) << quick.output();
  const std::string checkpoint = CheckpointsIn(dir + "/checkpoints").back().second;
  const auto bytes = fs::file_size(checkpoint + "/rank-00001.safetensors");
  const SlowStorage slow("rank-00001.safetensors", bytes / (4.0 * kDeadlineSeconds));
  const std::string slow_dir = Folder("save_slowly");
  OmnitrainProcess run(Train(slow_dir, 4));
  EXPECT_EQ(run.Wait(), 0) << run.output();
  EXPECT_TRUE(Checkpoint::Open(slow_dir + "/checkpoints/step-00000004").ok());
}

// Reads of the data never return: a stop does not wait for the limit of that, and loses no step.
TEST(SlowStorageTest, AStopIsObeyedWhileDataStall) {
  const std::string dir = Folder("stall");
  const std::string flag = dir + ".stalls", log = dir + ".reads";
  fs::remove(flag);
  fs::remove(log);
  const SlowStorage stalled("/train/text", /*bytes_per_second=*/1e-3, log, flag);
  OmnitrainProcess run(Train(dir, 1000000, {"--set", "runtime.deadline_s=3600"}));
  const auto done = [&] { return ReadMetrics(dir + "/metrics.jsonl").size(); };
  ASSERT_TRUE(WaitFor([&] { return done() >= 5; })) << run.output();
  std::ofstream(flag).flush();
  ASSERT_TRUE(WaitFor([&] { return fs::exists(log); })) << run.output();
  kill(run.pid(), SIGTERM);
  EXPECT_EQ(run.Wait(), 3) << run.output();
  EXPECT_THAT(run.output(), HasSubstr(absl::StrCat("stopped at step ", done())));
  EXPECT_EQ(CheckpointsIn(dir + "/checkpoints").back().first, static_cast<int64_t>(done()));
}

// The checkpoint of a step is there while the evaluation that follows goes on, whatever becomes of
// the job then.
TEST(SlowStorageTest, ACheckpointIsCommittedWhileTheEvaluationGoesOn) {
  for (const int signal : {SIGKILL, SIGTERM}) {
    SCOPED_TRACE(signal);
    const std::string dir = Folder(absl::StrCat("evaluation", signal));
    const std::string samples = dir + ".jsonl";
    {
      std::ofstream file(samples);
      for (int i = 0; i < 60000; ++i) {
        file << R"({"messages": [{"role": "user", "content": "what is )" << i
             << R"("}, {"role": "assistant", "content": "red"}]})"
             << "\n";
      }
    }
    OmnitrainProcess run(Train(dir, 8,
                               {"--set", "runtime.deadline_s=20", "--set", "training.eval_every=4",
                                "--set", "training.checkpoint.every=4", "--set",
                                absl::StrCat("data.eval=[{name: big, path: ", samples, "}]")}));
    const std::string checkpoint = dir + "/checkpoints/step-00000004";
    ASSERT_TRUE(
        WaitFor([&] { return fs::exists(checkpoint) || run.Wait(absl::ZeroDuration()) >= 0; }));
    EXPECT_FALSE(fs::exists(dir + "/checkpoints/step-00000004.partial"));
    EXPECT_THAT(run.output(), Not(HasSubstr("exact")));  // it evaluates still
    kill(run.pid(), signal);
    const int code = run.Wait();
    if (signal == SIGTERM) {
      EXPECT_LT(code, 128) << run.output();                       // it ended by itself
      EXPECT_EQ(ReadMetrics(dir + "/metrics.jsonl").size(), 4u);  // no step more
      EXPECT_THAT(run.output(), Not(HasSubstr("exact")));
    }
    EXPECT_TRUE(Checkpoint::Open(checkpoint).ok());
    EXPECT_EQ(CheckpointsIn(dir + "/checkpoints").back().first, 4);
  }
}

}  // namespace
}  // namespace omni::test
