// Damaged checkpoints, those of another model, and disks that are full. Training goes on from the
// newest checkpoint that is whole and names the one it left out; where none is whole, or the model
// is another, one line says so and nothing of the run is touched.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include <filesystem>
#include <functional>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"
#include "runtime/base/file.h"
#include "runtime/checkpoint/checkpoint.h"
#include "tests/e2e/bad_input.h"
#include "tests/e2e/bad_samples.h"
#include "tests/e2e/process.h"
#include "tests/support/checkpoints.h"
#include "tests/support/tiny_job.h"

namespace omni::test {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;

const std::string& RecipeOfTwo() {
  static const std::string path = WriteInput(
      "two.yaml",
      TinyRecipeYaml({.steps = 6, .workers = 2, .dtype = "fp32", .checkpoint_every = 2}));
  return path;
}

std::vector<std::string> Train(const std::string& dir, std::vector<std::string> more = {}) {
  std::vector<std::string> arguments = {"train", RecipeOfTwo(), "--run-dir", dir};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

// A copy of a finished run of six steps, with checkpoints of steps 2, 4 and 6.
std::string CopyOfRun(const std::string& name) {
  static const std::string finished = [] {
    const std::string dir = absl::StrCat(TinyData(), "-checkpoints-finished");
    OmnitrainProcess run(Train(dir));
    EXPECT_EQ(run.Wait(), 0) << run.output();
    EXPECT_EQ(CheckpointsIn(dir + "/checkpoints").size(), 3u);
    return dir;
  }();
  const std::string dir = absl::StrCat(TinyData(), "-checkpoints-", name);
  fs::copy(finished, dir, fs::copy_options::recursive);
  return dir;
}

std::string Step(const std::string& dir, int64_t step) {
  return absl::StrCat(dir, "/checkpoints/step-0000000", step);
}

// Every file of a run with its content, but for the lock.
std::map<std::string, std::string> Files(const std::string& dir) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(dir)) {
    if (entry.path().filename() == ".lock") continue;
    if (entry.is_regular_file()) files[entry.path().string()] = *ReadFile(entry.path().string());
  }
  return files;
}

// Storage that does not answer for a while: the run is neither begun anew nor taken back to an
// older checkpoint, and goes on when it answers again. A link to itself fails for root, too.
TEST(BadCheckpointTest, WhatCannotBeReadNowIsNotTakenForAbsent) {
  const std::string dir = CopyOfRun("unreadable");
  for (const std::string& path : {dir + "/checkpoints", Step(dir, 6) + "/state.json",
                                  Step(dir, 6) + "/rank-00001.safetensors"}) {
    const std::string aside = dir + "/aside";
    fs::rename(path, aside);
    fs::create_symlink(fs::path(path).filename(), path);
    OmnitrainProcess run(Train(dir, {"--steps", "8"}));
    EXPECT_EQ(run.Wait(), 1) << run.output();
    EXPECT_THAT(run.output(), HasSubstr(path + ": "));
    EXPECT_THAT(run.output(), HasSubstr("Too many levels of symbolic links"));
    fs::remove(path);
    fs::rename(aside, path);
    EXPECT_EQ(CheckpointsIn(dir + "/checkpoints").size(), 3u);
  }
  OmnitrainProcess run(Train(dir, {"--steps", "8"}));
  EXPECT_EQ(run.Wait(), 0) << run.output();
  EXPECT_THAT(run.output(), HasSubstr("resuming from step 6"));
}

struct Damage {
  const char* name;
  const char* file;  // of the checkpoint
  std::function<void(const std::string& path)> inflict;
  const char* message;  // after the file's path
};

void Overwrite(const std::string& path, const std::string& bytes) {
  OMNI_CHECK_OK(WriteFileAtomically(path, bytes));
}

const Damage kDamages[] = {
    {"ShardCutOff", "rank-00001.safetensors",
     [](const std::string& path) { fs::resize_file(path, fs::file_size(path) / 2); },
     "bytes, the manifest says"},
    {"ByteFlipped", "rank-00000.safetensors",
     [](const std::string& path) {
       std::string bytes = *ReadFile(path);
       bytes[bytes.size() / 2] ^= 1;
       Overwrite(path, bytes);
     },
     "checksum"},
    {"ShardMissing", "rank-00000.safetensors", [](const std::string& path) { fs::remove(path); },
     "No such file"},
    {"ManifestMissing", "manifest.json", [](const std::string& path) { fs::remove(path); },
     "No such file"},
    {"ManifestCutOff", "manifest.json",
     [](const std::string& path) { fs::resize_file(path, fs::file_size(path) / 2); },
     "is not JSON"},
    {"ManifestOfAnotherVersion", "manifest.json",
     [](const std::string& path) { Overwrite(path, R"({"version": 99})"); },
     "version 99, expected 1"},
    {"StateChanged", "state.json",
     [](const std::string& path) { Overwrite(path, *ReadFile(path) + " "); },
     "bytes, the manifest says"},
    // What was read of it before there were workers is no reason to doubt step 4.
    {"StateNamesAnotherStep", "state.json",
     [](const std::string& path) {
       std::string text = *ReadFile(path);
       const size_t at = text.find("\"step\": 6");
       OMNI_CHECK(at != std::string::npos);
       Overwrite(path, text.replace(at, 9, "\"step\": 4"));
     },
     "checksum"}};

class DamagedCheckpointTest : public ::testing::TestWithParam<Damage> {
 protected:
  std::string Damaged(const std::string& name) {
    const std::string dir = CopyOfRun(absl::StrCat(name, "-", GetParam().name));
    GetParam().inflict(absl::StrCat(Step(dir, 6), "/", GetParam().file));
    return dir;
  }
  std::string place() const { return absl::StrCat("step-00000006/", GetParam().file, ": "); }
};

TEST_P(DamagedCheckpointTest, TrainingGoesOnFromTheNewestWholeOne) {
  const std::string dir = Damaged("resume");
  OmnitrainProcess run(Train(dir, {"--steps", "8"}));
  EXPECT_EQ(run.Wait(), 0) << run.output();
  EXPECT_EQ(LinesWith(run.output(),
                      {"warning: rank 0: checkpoint left out: ", place(), GetParam().message}),
            1)
      << run.output();
  EXPECT_THAT(run.output(), HasSubstr("resuming from step 4"));
  EXPECT_EQ(ReadMetrics(dir + "/metrics.jsonl").size(), 8u);
  for (const int64_t step : {4, 6, 8}) {
    EXPECT_TRUE(Checkpoint::Open(Step(dir, step)).ok()) << step;
  }
}

TEST_P(DamagedCheckpointTest, IsOneErrorWhereThereIsNoOther) {
  const std::string dir = Damaged("only");
  for (const int64_t step : {2, 4}) fs::remove_all(Step(dir, step));
  const auto before = Files(dir + "/checkpoints");
  const std::string where = place();
  const Bad bad = {"", "", where.c_str(), GetParam().message};
  ExpectOneLine({"eval", dir}, bad);
  OmnitrainProcess run(Train(dir, {"--steps", "8"}));  // which tells that `steps` has changed, too
  EXPECT_EQ(run.Wait(), 1);
  EXPECT_EQ(LinesWith(run.output(), {"omnitrain: ", place(), GetParam().message}), 1)
      << run.output();
  EXPECT_EQ(Files(dir + "/checkpoints"), before);
}

INSTANTIATE_TEST_SUITE_P(All, DamagedCheckpointTest, ::testing::ValuesIn(kDamages),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(OtherCheckpointTest, EvalLeavesADamagedOneOutAndSaysSo) {
  const std::string dir = CopyOfRun("eval");
  fs::remove(Step(dir, 6) + "/manifest.json");
  OmnitrainProcess run(
      {"eval", dir, "--set", "data.eval=[{name: text, path: " + TinyData() + "/train/text}]"});
  EXPECT_EQ(run.Wait(), 0) << run.output();
  EXPECT_THAT(run.output(), HasSubstr("warning: checkpoint left out: "));
  EXPECT_THAT(run.output(), HasSubstr("step-00000006/manifest.json"));
}

TEST(OtherCheckpointTest, ARunOfAnotherModelIsLeftAsItIs) {
  const std::string dir = CopyOfRun("model");
  const auto before = Files(dir);
  ExpectOneLine(Train(dir, {"--set", "model.decoder.ffn=64"}),
                {"", "", "model.decoder.ffn: found 64, the run has 48", "another --run-dir"});
  ExpectOneLine(Train(dir, {"--set", "model.decoder.layers=3"}),
                {"", "", "model.decoder.layers: found 3, the run has 2", "training.init_from"});
  // Of the same shapes, but it computes something else.
  for (const auto& [change, found] : std::vector<std::pair<std::string, const char*>>{
           {"model.decoder.rope.theta=1e6", "theta: found 1e+06, the run has 10000"},
           {"model.decoder.norm_eps=1e-3", "norm_eps: found 0.001, the run has 1e-06"},
           {"model.encoders.vision.heads=4", "vision.heads: found 4, the run has 2"},
           {"data.position_rule=qwen2_5_whole", "position_rule: found qwen2_5_whole"}}) {
    ExpectOneLine(Train(dir, {"--set", change}), {"", "", found, "can't go on with this recipe"});
  }
  ExpectOneLine(
      Train(dir, {"--set", "data.template=plain"}),
      {"", "", "data.template: found plain, the run has chatml", "or --allow data.template"});
  EXPECT_EQ(Files(dir), before);
}

// Where the run directory's own recipe does not tell: the checkpoint was put there by hand.
TEST(OtherCheckpointTest, ACheckpointOfAnotherModelNamesTensorAndShapes) {
  const std::string dir = CopyOfRun("swapped");
  ExpectOneLine(Train(dir, {"--set", "model.decoder.ffn=64"}),
                {"", "", "model.decoder.ffn: found 64, the run has 48", "another --run-dir"});
  std::string resolved = *ReadFile(dir + "/resolved.yaml");
  resolved.replace(resolved.find("ffn: 48"), 7, "ffn: 64");  // the decoder comes first
  Overwrite(dir + "/resolved.yaml", resolved);
  const Bad bad = {"", "", "step-00000006: tensor \"", "[96, 32], the model expects [128, 32]"};
  ExpectOneLine({"eval", dir}, bad);
}

// A save that the disk refuses is named once, leaves nothing behind, and training goes on; a run
// whose last save is refused has failed.
void ExpectSavesFail(const std::string& dir, const std::string& reason) {
  OmnitrainProcess run(Train(dir, {"--workers", "1", "--steps", "5"}));
  EXPECT_EQ(run.Wait(), 1);
  for (const int64_t step : {2, 4, 5}) {
    EXPECT_EQ(LinesWith(run.output(), {absl::StrCat("warning: rank 0: checkpoint of step ", step,
                                                    " was not saved: "),
                                       "rank-00000.safetensors: writing failed after ", reason}),
              1)
        << run.output();
  }
  EXPECT_EQ(LinesWith(run.output(), {"omnitrain: rank 0: the last checkpoint, of step 5, was not "
                                     "saved"}),
            1)
      << run.output();
  EXPECT_EQ(LinesWith(run.output(), {"saved"}), 4) << run.output();
  EXPECT_EQ(ReadMetrics(dir + "/metrics.jsonl").size(), 5u);
  EXPECT_TRUE(fs::is_empty(dir + "/checkpoints"));
}

std::string NewRun(const std::string& name) {
  const std::string dir = absl::StrCat(TinyData(), "-checkpoints-", name);
  fs::create_directories(dir + "/checkpoints");
  return dir;
}

TEST(FullDiskTest, AFileBeyondItsLimit) {
  const std::string dir = NewRun("limit");
  TinyData();
  RecipeOfTwo();
  // Below a checkpoint of some 800 KB, above everything else that a run writes; its children
  // inherit it.
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  rlimit limited = before;
  limited.rlim_cur = 100'000;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limited), 0);
  ExpectSavesFail(dir, "File too large");
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
}

TEST(FullDiskTest, ADiskWithoutSpace) {
  const std::string dir = NewRun("full");
  // A disk of its own for the checkpoints, which ends with this process.
  if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
      mount("tmpfs", (dir + "/checkpoints").c_str(), "tmpfs", 0, "size=128k") != 0) {
    GTEST_SKIP() << "disks can't be mounted here";
  }
  ExpectSavesFail(dir, "No space left on device");
}

}  // namespace
}  // namespace omni::test
