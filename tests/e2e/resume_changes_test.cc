// A run goes on with another recipe: members of each class of docs/resuming.md, in real runs. What
// changes is said, what can't go on begins anew and nothing else does.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/base/check.h"
#include "runtime/base/file.h"
#include "runtime/checkpoint/checkpoint.h"
#include "tests/e2e/bad_input.h"
#include "tests/e2e/process.h"
#include "tests/support/checkpoints.h"
#include "tests/support/tiny_job.h"

namespace omni::test {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;

// Conversations of a few words.
std::string Talk(const std::string& name, int count) {
  std::string lines;
  for (int i = 0; i < count; ++i) {
    absl::StrAppend(&lines, R"({"messages": [{"role": "user", "content": "which number is it"}, )",
                    R"({"role": "assistant", "content": "number )", i, R"( of the blue ones"}]})",
                    "\n");
  }
  return WriteInput(name + ".jsonl", lines);
}

std::string Source(const std::string& name, const std::string& path, double weight = 1) {
  return absl::StrFormat("{name: %s, path: \"%s\", weight: %g}", name, path, weight);
}

struct Talks {
  std::string a = Source("a", Talk("a", 60), 2), b = Source("b", Talk("b", 40)),
              c = Source("c", Talk("c", 30)), longer_a = Source("a", Talk("longer_a", 61), 2);
};
const Talks& Sources() {
  static const Talks talks;
  return talks;
}

std::string SourceList(const std::vector<std::string>& sources) {
  std::string list;
  for (const std::string& source : sources) {
    absl::StrAppend(&list, list.empty() ? "data.sources=[" : ", ", source);
  }
  return list + "]";
}

const std::string& RecipePath() {
  static const std::string path =
      WriteInput("changes.yaml", TinyRecipeYaml({.steps = 8,
                                                 .lanes = 2,
                                                 .dtype = "fp32",
                                                 .optimizer = "adamw",
                                                 .checkpoint_every = 4,
                                                 .sources = "[image, text]"}));
  return path;
}

// Of text alone, unless `more` says otherwise.
std::vector<std::string> Train(const std::string& dir, std::vector<std::string> sets = {},
                               std::vector<std::string> more = {}) {
  std::vector<std::string> arguments = {"train", RecipePath(), "--run-dir", dir};
  for (const std::string& set :
       {std::string("training.schedule.kind=constant"), SourceList({Sources().a, Sources().b})}) {
    arguments.insert(arguments.end(), {"--set", set});
  }
  for (const std::string& set : sets) arguments.insert(arguments.end(), {"--set", set});
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

std::string FreshFolder(const std::string& name) {
  const std::string dir = absl::StrCat(TinyData(), "-changes-", name);
  fs::remove_all(dir);
  return dir;
}

// A copy of a run of eight steps, with checkpoints of steps 4 and 8.
std::string CopyOfRun(const std::string& name) {
  static const std::string finished = [] {
    const std::string dir = FreshFolder("finished");
    OmnitrainProcess run(Train(dir));
    EXPECT_EQ(run.Wait(), 0) << run.output();
    return dir;
  }();
  const std::string dir = FreshFolder(name);
  fs::copy(finished, dir, fs::copy_options::recursive);
  return dir;
}

// The run's output; it ends well.
std::string Output(const std::vector<std::string>& arguments) {
  OmnitrainProcess run(arguments);
  EXPECT_EQ(run.Wait(), 0) << run.output();
  return run.output();
}

std::map<int64_t, std::string> Losses(const std::string& dir) {
  std::map<int64_t, std::string> losses;
  for (const auto& [step, values] : ReadMetrics(dir + "/metrics.jsonl")) {
    losses[step] = values.at("loss");
  }
  return losses;
}

std::string Newest(const std::string& dir) {
  return CheckpointsIn(dir + "/checkpoints").back().second;
}

std::map<std::string, int64_t> UpdateCounts(const std::string& checkpoint) {
  const auto text = ReadFile(checkpoint + "/state.json");
  OMNI_CHECK_OK(text.status());
  return nlohmann::json::parse(*text).at("update_counts").get<std::map<std::string, int64_t>>();
}

const std::map<int64_t, std::string>& UnbrokenLosses() {
  static const std::map<int64_t, std::string> losses = [] {
    const std::string dir = FreshFolder("unbroken");
    Output(Train(dir, {}, {"--steps", "12"}));
    return Losses(dir);
  }();
  return losses;
}

TEST(UnchangedTest, NothingIsSaidAndTheLegHasItsRecipe) {
  const std::string dir = CopyOfRun("unchanged");
  EXPECT_THAT(Output(Train(dir)), Not(HasSubstr("has changed")));
  const std::string longer = Output(Train(dir, {}, {"--steps", "12"}));
  EXPECT_THAT(longer, HasSubstr("the recipe has changed since step 8:"));
  EXPECT_THAT(longer, HasSubstr("  training.steps: 8 -> 12  (free: "));
  EXPECT_THAT(longer, Not(HasSubstr("the learning rate of step")));  // constant
  EXPECT_THAT(longer, Not(HasSubstr("data: ")));
  EXPECT_EQ(Losses(dir), UnbrokenLosses());
  // Kept by leg.
  const auto first = ReadFile(dir + "/recipes/step-00000000.yaml");
  const auto second = ReadFile(dir + "/recipes/step-00000008.yaml");
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_THAT(*first, HasSubstr("steps: 8"));
  EXPECT_THAT(*second, HasSubstr("steps: 12"));
  EXPECT_EQ(*ReadFile(dir + "/resolved.yaml"), *second);
  EXPECT_THAT(*ReadFile(dir + "/logs/recipes.log"), HasSubstr("training.steps: 8 -> 12"));
}

// What a checkpoint was made with counts, not the recipe of a leg that saved none.
TEST(UnchangedTest, TheDiffIsToTheRecipeOfTheCheckpoint) {
  const std::string dir = CopyOfRun("killed_leg");
  OMNI_CHECK_OK(WriteFileAtomically(dir + "/resolved.yaml", "name: torn"));
  const std::string output = Output(Train(dir, {}, {"--steps", "9"}));
  EXPECT_THAT(output, HasSubstr("  training.steps: 8 -> 9  (free: "));
  EXPECT_THAT(output, Not(HasSubstr("  name: ")));
}

TEST(FreeTest, AJumpOfTheLearningRateIsSaid) {
  const std::string dir = FreshFolder("schedule");
  const std::vector<std::string> cosine = {"training.schedule={kind: cosine}"};
  EXPECT_THAT(Output(Train(dir, cosine)), Not(HasSubstr("learning rate")));
  const std::string output = Output(Train(dir, cosine, {"--steps", "12"}));
  EXPECT_THAT(output, HasSubstr("the learning rate of step 9 is "));
  EXPECT_THAT(output, HasSubstr("the recipe of the checkpoint has 0 there, and had 0 in step 8"));
}

TEST(RestartTest, ATowerTrainedAnewBeginsWithMomentsAtZero) {
  const std::string dir = FreshFolder("unfreeze");
  const std::vector<std::string> images = {"data.sources=[{name: image, path: " + TinyData() +
                                           "/train/image}, {name: text, path: " + TinyData() +
                                           "/train/text}]"};
  std::vector<std::string> frozen = images;
  frozen.push_back("training.modules.vision.frozen=true");
  Output(Train(dir, frozen, {"--steps", "4", "--workers", "2"}));
  EXPECT_EQ(UpdateCounts(Newest(dir)).at("vision/adamw"), 0);
  const std::string output = Output(Train(dir, images, {"--workers", "2"}));
  EXPECT_THAT(output, HasSubstr("  training.modules.vision.frozen: true -> false  (restarts: "));
  EXPECT_THAT(output, HasSubstr("the checkpoint has no optimizer state for vision.merger/adamw, "));
  EXPECT_THAT(output, HasSubstr(": it starts at 0 there"));
  EXPECT_EQ(UpdateCounts(Newest(dir)).at("decoder/adamw"), 8);
  const int64_t updates = UpdateCounts(Newest(dir)).at("vision/adamw");
  EXPECT_GT(updates, 0);
  EXPECT_LE(updates, 4);
  // Frozen for a leg it loses them, its count with them once it is trained again.
  Output(Train(dir, frozen, {"--steps", "9"}));
  const std::string again = Output(Train(dir, images, {"--steps", "10"}));
  EXPECT_THAT(again, HasSubstr("the checkpoint has no optimizer state for vision.merger/adamw, "));
  EXPECT_LE(UpdateCounts(Newest(dir)).at("vision/adamw"), 1);
  EXPECT_EQ(UpdateCounts(Newest(dir)).at("decoder/adamw"), 10);
}

TEST(RestartTest, AnotherOptimizerKeepsTheStateThatItStillHas) {
  const std::string dir = CopyOfRun("muon");
  const std::string output =
      Output(Train(dir, {"training.optimizer.kind=muon"}, {"--steps", "10"}));
  EXPECT_THAT(output, HasSubstr("  training.optimizer.kind: adamw -> muon  (restarts: "));
  EXPECT_THAT(output, HasSubstr("decoder/muon"));
  const auto counts = UpdateCounts(Newest(dir));
  EXPECT_EQ(counts.at("decoder/muon"), 2);
  EXPECT_EQ(counts.at("decoder.embedding/adamw"), 10);
  const std::string back = Output(Train(dir, {}, {"--steps", "12"}));
  EXPECT_THAT(back, HasSubstr(" decoder/adamw, "));
  EXPECT_EQ(UpdateCounts(Newest(dir)).at("decoder/adamw"), 2);
}

TEST(DataTest, TheOrderOfTheSourcesMeansNothing) {
  const std::string dir = CopyOfRun("order");
  const std::string output =
      Output(Train(dir, {SourceList({Sources().b, Sources().a})}, {"--steps", "12"}));
  EXPECT_THAT(output, Not(HasSubstr("data")));
  EXPECT_EQ(Losses(dir), UnbrokenLosses());
}

struct DataChange {
  const char* name;
  std::vector<std::string> sets;
  std::vector<std::string> said;
};

TEST(DataTest, OtherDataGoOnAndItIsSaid) {
  const Talks& talks = Sources();
  const DataChange changes[] = {
      {"added",
       {SourceList({talks.c, talks.a, talks.b})},
       {"  data.sources.c: nothing -> ", "data: source \"c\" is new"}},
      {"removed", {SourceList({talks.a})}, {"data: source \"b\" is gone", "are left out"}},
      {"grown",
       {SourceList({talks.longer_a, talks.b})},
       {"data: source \"a\" begins epoch ", "it has 61 samples, it had 60"}},
      {"lanes", {"data.lanes=3"}, {"  data.lanes: 2 -> 3  (restarts: ", "begins epoch "}},
      {"length", {"data.sequence_length=200"}, {"  data.sequence_length: 160 -> 200  (free: "}},
      {"window", {"data.window=20"}, {"  data.window: 12 -> 20  (free: "}},
      {"weights",
       {SourceList({talks.a, Source("b", Talk("b", 40), 5)})},
       {"  data.sources.b.weight: 1 -> 5  (free: from each lane's next window)"}},
      {"pixels",
       {"data.image.max_pixels=3136"},
       {"  data.image.max_pixels: 100352 -> 3136  (restarts: ", "are left out"}},
  };
  for (const DataChange& change : changes) {
    SCOPED_TRACE(change.name);
    const std::string dir = CopyOfRun(change.name);
    const std::string output = Output(Train(dir, change.sets, {"--steps", "10"}));
    for (const std::string& said : change.said) EXPECT_THAT(output, HasSubstr(said));
    EXPECT_EQ(Losses(dir).size(), 10u);
  }
}

TEST(AllowTest, WhatIsEasilyAMistakeIsToldToGoOn) {
  const std::string dir = CopyOfRun("allow");
  const auto before = *ReadFile(dir + "/resolved.yaml");
  const std::vector<std::string> plain = {"data.template=plain"};
  ExpectOneLine(
      Train(dir, plain, {"--steps", "9"}),
      {"", "", "data.template: found plain, the run has chatml", "or --allow data.template"});
  EXPECT_EQ(*ReadFile(dir + "/resolved.yaml"), before);
  EXPECT_FALSE(fs::exists(dir + "/recipes/step-00000008.yaml"));
  ExpectOneLine(Train(dir, plain, {"--steps", "9", "--allow", "data.templat"}),
                {"", "", "--allow data.templat: no key", "did you mean \"data.template\"?"});
  ExpectOneLine(Train(dir, {"model.decoder.norm_eps=1e-3"}, {"--allow", "model.decoder.norm_eps"}),
                {"", "", "--allow model.decoder.norm_eps: can't be allowed", "another model"});
  const std::string output =
      Output(Train(dir, plain, {"--steps", "9", "--allow", "data.template"}));
  EXPECT_THAT(output, HasSubstr("  data.template: chatml -> plain  (needs --allow: "));
  // Another file with the same content is the same tokenizer.
  const std::string moved = WriteInput("moved.model", *ReadFile(TinyData() + "/tokenizer.model"));
  EXPECT_THAT(Output(Train(dir, {plain[0], "data.tokenizer=" + moved}, {"--steps", "9"})),
              Not(HasSubstr("has changed")));
}

// Elements of each weight (not of the optimizer's state) in the newest checkpoint.
std::map<std::string, std::vector<float>> Weights(const std::string& path) {
  const auto checkpoint = Checkpoint::Open(path);
  OMNI_CHECK_OK(checkpoint.status());
  std::map<std::string, std::vector<float>> weights;
  for (const std::string& name : (*checkpoint)->names()) {
    if (name.find('#') != std::string::npos) continue;
    const std::vector<int64_t> shape = *(*checkpoint)->Shape(name);
    int64_t count = 1;
    for (const int64_t size : shape) count *= size;
    std::vector<float>& values = weights[name];
    values.resize(count);
    OMNI_CHECK_OK((*checkpoint)
                      ->Read({.name = name,
                              .shape = shape,
                              .begin = 0,
                              .data = TensorView::Dense(values.data(), DType::kFloat32,
                                                        DeviceKind::kCpu, {count})}));
  }
  return weights;
}

TEST(InitFromTest, ANewRunBeginsWithTheWeightsOfAnother) {
  const std::string dir = CopyOfRun("source");
  const std::string still = "training.optimizer.lr=0";
  for (const auto& [from, step] :
       std::vector<std::pair<std::string, int>>{{dir, 8}, {dir + "@4", 4}, {Newest(dir), 8}}) {
    const std::string copy = FreshFolder("init_from");
    const std::string output = Output(Train(copy, {"training.init_from=\"" + from + "\"", still},
                                            {"--steps", "1", "--workers", "2"}));
    EXPECT_THAT(output, HasSubstr(absl::StrCat("a new run with the weights of ")));
    EXPECT_THAT(output, HasSubstr("steps, schedule and data begin anew"));
    EXPECT_EQ(Weights(Newest(copy)), Weights(absl::StrCat(dir, "/checkpoints/step-0000000", step)));
    EXPECT_EQ(UpdateCounts(Newest(copy)).at("decoder/adamw"), 1);
    // Where it has a checkpoint of its own it goes on from that.
    EXPECT_THAT(Output(Train(copy, {"training.init_from=\"" + from + "\""}, {"--steps", "2"})),
                HasSubstr("resuming from step 1"));
  }
  const std::string with = FreshFolder("init_optimizer");
  Output(Train(with, {"training.init_from=\"" + dir + "@4\"", "training.init_optimizer=true"},
               {"--steps", "1"}));
  EXPECT_EQ(UpdateCounts(Newest(with)).at("decoder/adamw"), 5);
}

TEST(InitFromTest, AnotherTowerBeginsAtItsInitialValues) {
  const std::string dir = CopyOfRun("source_towers");
  const std::string copy = FreshFolder("init_towers");
  const std::string output =
      Output(Train(copy,
                   {"training.init_from=\"" + dir + "\"",
                    "model.lora={rank: 2, alpha: 4, targets: [attention.q]}"},
                   {"--steps", "1"}));
  EXPECT_THAT(output, HasSubstr("so at their initial values: "));
  EXPECT_THAT(output, HasSubstr("lora"));
}

TEST(InitFromTest, WhatCanNotBeTakenIsOneError) {
  const std::string dir = CopyOfRun("source_errors");
  const std::string copy = FreshFolder("init_errors");
  const auto expect = [&](const std::string& from, const std::string& set, const char* found,
                          const char* expected) {
    ExpectOneLine(Train(copy, {"training.init_from=\"" + from + "\"", set}),
                  {"", "", found, expected});
    EXPECT_FALSE(fs::exists(copy + "/resolved.yaml"));
  };
  const std::string same = "training.seed=5";
  expect(dir + "@5", same, "found no checkpoint of step 5", "there are those of 4, 8");
  expect(dir + "-none", same, "no such folder", "expected a run directory, RUN@STEP");
  expect(TinyData(), same, "has no checkpoint", "expected a run directory, RUN@STEP");
  expect(dir, "model.decoder.norm_eps=1e-3", "model.decoder.norm_eps: found 0.001",
         "there it is 1e-06");
  expect(dir, "model.decoder.ffn=64", "model.decoder.ffn: found 64, there it is 48", "--allow");
  ExpectOneLine(Train(copy, {"training.init_from=\"" + dir + "\"", "model.decoder.ffn=64"},
                      {"--allow", "model.decoder.ffn"}),
                {"", "", "is [32, 48] there and [32, 64] in the recipe", "another model"});
}

// The events of a TensorBoard file: step -> whether it is a SessionLog's.
std::vector<std::pair<int64_t, bool>> Events(const std::string& bytes) {
  std::vector<std::pair<int64_t, bool>> events;
  size_t at = 0;
  const auto varint = [](const std::string& text, size_t* next) {
    uint64_t value = 0;
    for (int shift = 0; *next < text.size(); shift += 7) {
      const auto byte = static_cast<uint8_t>(text[(*next)++]);
      value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) break;
    }
    return value;
  };
  while (at + 12 <= bytes.size()) {
    uint64_t length = 0;
    std::memcpy(&length, bytes.data() + at, sizeof(length));
    const std::string event = bytes.substr(at + 12, length);
    at += 12 + length + 4;
    int64_t step = 0;
    bool is_session = false;
    for (size_t next = 0; next < event.size();) {
      const uint64_t tag = varint(event, &next);
      switch (tag & 7) {
        case 0: {
          const uint64_t value = varint(event, &next);
          if (tag >> 3 == 2) step = static_cast<int64_t>(value);
          break;
        }
        case 1:
          next += 8;
          break;
        case 5:
          next += 4;
          break;
        default: {
          const uint64_t size = varint(event, &next);
          // session_log {status: START}
          if (tag >> 3 == 7) is_session = event.substr(next, size) == "\x08\x01";
          next += size;
        }
      }
    }
    events.emplace_back(step, is_session);
  }
  return events;
}

// A leg that is killed beyond its last checkpoint: its records give way to those of the next.
TEST(CurveTest, RecordsBeyondTheCheckpointGiveWay) {
  const std::string dir = CopyOfRun("curve");
  fs::remove_all(dir + "/checkpoints/step-00000008");  // as if killed before it was saved
  fs::remove_all(dir + "/tensorboard");
  ASSERT_EQ(Losses(dir).size(), 8u);
  // With nothing to do either.
  Output(Train(dir, {}, {"--steps", "4"}));
  EXPECT_EQ(Losses(dir).rbegin()->first, 4);
  fs::remove_all(dir + "/tensorboard");
  Output(Train(dir, {}, {"--steps", "12"}));
  EXPECT_EQ(Losses(dir), UnbrokenLosses());
  std::vector<std::pair<int64_t, bool>> events;
  for (const auto& entry : fs::directory_iterator(dir + "/tensorboard")) {
    events = Events(*ReadFile(entry.path().string()));
  }
  // The file's version, START at the first step of the leg, its eight steps.
  ASSERT_GE(events.size(), 3u);
  EXPECT_EQ(events[0], (std::pair<int64_t, bool>(0, false)));
  EXPECT_EQ(events[1], (std::pair<int64_t, bool>(5, true)));
  EXPECT_EQ(events[2], (std::pair<int64_t, bool>(5, false)));
  EXPECT_EQ(events.back(), (std::pair<int64_t, bool>(12, false)));
}

}  // namespace
}  // namespace omni::test
