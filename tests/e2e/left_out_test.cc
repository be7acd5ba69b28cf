// What a person sees of samples that are left out, of storage that goes away and of scores of
// nothing: on the terminal, in metrics.jsonl, in `eval --json`.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "dataloader/media/encode.h"
#include "runtime/base/check.h"
#include "runtime/base/file.h"
#include "tests/e2e/bad_input.h"
#include "tests/e2e/bad_samples.h"
#include "tests/e2e/process.h"
#include "tests/support/tiny_job.h"

namespace omni::test {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using Json = nlohmann::json;

std::string NewRunDir(const std::string& name) {
  const std::string dir = absl::StrCat(TinyData(), "-left-out-", name);
  fs::remove_all(dir);
  return dir;
}

// `count` pictures, of which the first `torn` are cut off behind their header.
std::string WritePictures(const std::string& name, int count, int torn) {
  std::string lines;
  for (int i = 0; i < count; ++i) {
    const std::string jpeg = Jpeg();
    WriteInput(absl::StrCat(name, "/pictures/", i, ".jpg"),
               i < torn ? jpeg.substr(0, jpeg.size() * 7 / 10) : jpeg);
    lines += Line("image", absl::StrCat("pictures/", i, ".jpg"));
  }
  return WriteInput(name + "/list.jsonl", lines);
}

std::vector<Json> ReadLines(const std::string& path) {
  std::vector<Json> lines;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) lines.push_back(Json::parse(line));
  return lines;
}

TEST(LeftOutTest, TrainingOnTwoOfEightSamplesSaysSo) {
  const std::string dir = NewRunDir("few");
  OmnitrainProcess run(
      Over({"train", "--run-dir", dir, "--set", "data.max_broken=1"}, WritePictures("few", 8, 6)));
  EXPECT_EQ(run.Wait(), 0) << run.output();
  EXPECT_THAT(run.output(),
              AllOf(HasSubstr("data source \"image\": "), HasSubstr(" samples left out (blanked "),
                    HasSubstr("corrupt JPEG"), HasSubstr("samples left out or cut:\nimage: ")));
  int64_t blanked = 0;
  for (const Json& step : ReadLines(dir + "/metrics.jsonl")) {
    blanked += step.value("skipped/blanked", 0);
    if (step.at("loss_tokens") == 0) {
      EXPECT_TRUE(step.at("loss").is_null()) << step;
      EXPECT_EQ(step.at("no_loss_tokens"), 1);
    } else {
      EXPECT_NEAR(step.at("loss").get<double>(), step.at("loss/image").get<double>(), 1e-5);
    }
  }
  EXPECT_THAT(run.output(), HasSubstr(absl::StrCat("blanked ", blanked, ")\n  blanked: ")));
}

TEST(LeftOutTest, ABrokenSourceStopsTheJobAndIsNamed) {
  const std::string list = WritePictures("most", 40, 30);
  OmnitrainProcess run(Over({"train", "--run-dir", NewRunDir("most"), "--set", "training.steps=200",
                             "--set", "parallel.workers=2"},
                            list));
  EXPECT_EQ(run.Wait(), 1) << run.output();
  EXPECT_THAT(run.output(), AllOf(HasSubstr("data source \"image\": "), HasSubstr("are broken ("),
                                  HasSubstr("data.max_broken is 0.05"), HasSubstr("list.jsonl:")));
}

TEST(LeftOutTest, AFolderThatGoesAwayIsNamedAndTheRunGoesOnWhenItIsBack) {
  const std::string list = WritePictures("gone", 30, 0);
  const fs::path folder = fs::path(list).parent_path();
  const std::string dir = NewRunDir("gone");
  const auto arguments = [&](const char* steps) {
    return Over(
        {"train", "--run-dir", dir, "--set", absl::StrCat("training.steps=", steps), "--set",
         "data.lanes=2", "--set", "parallel.workers=2", "--set", "data.loader.retry_s=0.5"},
        list);
  };
  OmnitrainProcess run(arguments("100000"));
  ASSERT_TRUE(WaitFor([&] { return ReadMetrics(dir + "/metrics.jsonl").size() >= 5; }));
  fs::rename(folder / "pictures", folder / "moved");
  EXPECT_EQ(run.Wait(), 1) << run.output();
  EXPECT_THAT(run.output(),
              AllOf(HasSubstr((folder / "pictures").string()), HasSubstr("trying again for up to"),
                    HasSubstr("No such file or directory"), HasSubstr("the run is saved at step "),
                    Not(HasSubstr("ranks disagree"))));
  const size_t steps = ReadMetrics(dir + "/metrics.jsonl").size();
  fs::rename(folder / "moved", folder / "pictures");
  OmnitrainProcess again(arguments(absl::StrCat(steps + 2).c_str()));
  EXPECT_EQ(again.Wait(), 0) << again.output();
  EXPECT_THAT(again.output(), HasSubstr(absl::StrCat("resuming from step ", steps)));
  for (const auto& [step, values] : ReadMetrics(dir + "/metrics.jsonl")) {
    EXPECT_NE(values.at("loss_tokens"), "0") << step;
  }
}

TEST(LeftOutTest, EvaluationCountsAndNamesWhatItDoesNotScoreAndGroupsByADeclaredKey) {
  std::string groups, mostly_long, all_long;
  const auto sample = [](const std::string& answer, const Json& kind) {
    return Json{{"query", "what"}, {"response", answer}, {"kind", kind}, {"question", "what\n?"}}
               .dump() +
           "\n";
  };
  for (const char* kind : {"a", "b/c", "b\nc", "a", "b/c"}) groups += sample("seven", kind);
  groups += sample("seven", 7) + sample("seven", Json::object());
  std::string long_answer;
  for (int i = 0; i < 200; ++i) long_answer += "red ";
  for (int i = 0; i < 8; ++i) {
    mostly_long += sample(i == 0 ? "seven" : long_answer, "a");
    all_long += sample(long_answer, "a");
  }
  const std::string recipe =
      WriteInput("eval.yaml",
                 TinyRecipeYaml({.steps = 2, .workers = 2, .dtype = "fp32", .sources = "[text]"}));
  const std::string dir = NewRunDir("eval");
  const std::string eval = absl::StrCat(
      "data.eval=[{name: groups, path: ", WriteInput("groups.jsonl", groups),
      ", group_by: kind}, {name: mostly/long, path: ", WriteInput("mostly_long.jsonl", mostly_long),
      "}, {name: all_long, path: ", WriteInput("all_long.jsonl", all_long), "}]");
  OmnitrainProcess run({"train", recipe, "--run-dir", dir, "--set", eval});
  EXPECT_EQ(run.Wait(), 0) << run.output();
  EXPECT_EQ(LinesWith(run.output(), {"all_long ", " 0 ", " - "}), 1) << run.output();
  EXPECT_THAT(run.output(), AllOf(HasSubstr("all_long: 8 of 8 samples left out (overlong 8)"),
                                  HasSubstr("mostly/long: 7 of 8 samples left out (overlong 7)"),
                                  HasSubstr("all_long.jsonl:1: ")));
  int64_t named = 0;
  for (const char* rank : {"0", "1"}) {
    const std::string log = ReadFile(absl::StrCat(dir, "/logs/rank-0000", rank, ".log")).value();
    named += LinesWith(log, {"evaluation sample ", "long.jsonl:", " is overlong"});
  }
  EXPECT_EQ(named, 15);
  const Json last = ReadLines(dir + "/metrics.jsonl").back();
  EXPECT_TRUE(last.at("eval/all_long/accuracy").is_null()) << last;
  EXPECT_TRUE(last.at("eval/all_long/loss").is_null());
  EXPECT_TRUE(last.at("eval/mostly%2Flong/accuracy").is_number());
  EXPECT_EQ(last.at("eval/mostly%2Flong/left_out/overlong"), 7);
  for (const char* group : {"a", "b%2Fc", "7", "none", "other"}) {  // "b\nc" is no name
    EXPECT_TRUE(last.at(absl::StrCat("eval/groups/", group, "/accuracy")).is_number()) << group;
  }
  EXPECT_EQ(last.at("eval/groups/samples"), 7);
  for (const auto& [name, value] : last.items()) EXPECT_THAT(name, Not(HasSubstr("\n")));

  OmnitrainProcess json({"eval", dir, "--json"});
  EXPECT_EQ(json.Wait(), 0) << json.output();
  const Json scores = Json::parse(json.output()).at("eval");
  EXPECT_TRUE(scores.at("eval/all_long/accuracy").is_null());
  EXPECT_EQ(scores.at("left_out").at("all_long").at("overlong").at("count"), 8);
  EXPECT_THAT(scores.at("left_out").at("all_long").at("overlong").at("first").at(0).at("sample"),
              HasSubstr("all_long.jsonl:1"));

  OmnitrainProcess nothing({"eval", dir, "--set",
                            absl::StrCat("data.eval=[{name: all_long, path: ",
                                         WriteInput("all_long.jsonl", all_long), "}]")});
  EXPECT_EQ(nothing.Wait(), 1);
  EXPECT_THAT(nothing.output(),
              HasSubstr("nothing was scored; all_long: 8 of 8 samples left out (overlong 8)"));
}

}  // namespace
}  // namespace omni::test
