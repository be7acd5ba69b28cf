// Bad recipes, shards, conversations and words on the command line: one line that names the place,
// says what was found and expected, exit code 1 (2 for usage), and no run directory.
#include "tests/e2e/bad_input.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "tests/support/tiny_job.h"

namespace omni::test {
namespace {

namespace fs = std::filesystem;

std::string Recipe() { return TinyRecipeYaml({.steps = 2, .dtype = "fp32", .sources = "[image]"}); }

std::string Shard() {
  std::ifstream file(TinyData() + "/train/image/image-00000.tar", std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// The data are made when a test runs, not when the table is: "<shard>" is the start of a sound
// shard, "<recipe>" a sound recipe.
std::string Content(const Bad& bad) {
  if (bad.content == "<shard>") return Shard().substr(0, 5000);
  if (bad.content.rfind("<recipe>", 0) == 0) return Recipe() + bad.content.substr(8);
  return bad.content;
}

class BadKeyTest : public ::testing::TestWithParam<Bad> {};
TEST_P(BadKeyTest, IsNamedWithFileAndLine) {
  const std::string recipe = WriteInput("recipe.yaml", Recipe());
  ExpectTrainRefuses({"train", recipe, "--set", GetParam().input}, GetParam());
}

class BadRecipeTest : public ::testing::TestWithParam<Bad> {};
TEST_P(BadRecipeTest, IsNamed) {
  const std::string recipe =
      WriteInput(absl::StrCat(GetParam().name, ".yaml"), Content(GetParam()));
  ExpectTrainRefuses({"train", recipe}, GetParam());
}

class BadSourceTest : public ::testing::TestWithParam<Bad> {};
TEST_P(BadSourceTest, NamesFileOrSample) {
  const std::string recipe = WriteInput("recipe.yaml", Recipe());
  const std::string path = WriteInput(GetParam().input, Content(GetParam()));
  ExpectOneLine({"data", "inspect", recipe, "--set", "data.sources.0.path=" + path}, GetParam());
  EXPECT_FALSE(fs::exists(path + ".index"));
}

TEST(BadCommandTest, MissingRecipe) {
  ExpectTrainRefuses({"train", "/nope/recipe.yaml"},
                     {"MissingRecipe", "", "/nope/recipe.yaml", "no such file"});
}
TEST(BadCommandTest, RecipeIsAFolder) {
  ExpectTrainRefuses({"train", TinyData()}, {"Folder", "", "is not a file", "a YAML file"});
}
TEST(BadCommandTest, RunThatIsNotThere) {
  ExpectOneLine({"eval", "/nope"}, {"Eval", "", "/nope/resolved.yaml", "no such file"});
}
TEST(BadCommandTest, ShardThatIsNotThere) {
  ExpectOneLine({"data", "index", "missing.tar"}, {"Index", "", "missing.tar", "no such shard"});
}
TEST(BadCommandTest, UnknownSource) {
  const std::string recipe = WriteInput("recipe.yaml", Recipe());
  ExpectOneLine({"data", "inspect", recipe, "--source", "imagee"},
                {"Source", "", "no source \"imagee\"", "did you mean \"image\""});
}
TEST(BadCommandTest, SampleBeyondTheEnd) {
  const std::string recipe = WriteInput("recipe.yaml", Recipe());
  ExpectOneLine({"data", "inspect", recipe, "--index", "99999"},
                {"Sample", "", "not 99999", "has samples 0 to"});
}

TEST(BadCommandTest, UnknownProcessor) {
  ::setenv("OMNI_CPU", "avx3", 1);
  ExpectOneLine({"bench", "gpt"}, {"", "", "OMNI_CPU=avx3", "expected avx2 or avx512"});
  ::unsetenv("OMNI_CPU");
}
TEST(BadCommandTest, UsageNamesTheNearestWord) {
  const std::vector<std::pair<std::vector<std::string>, Bad>> rows = {
      {{"trian"}, {"", "", "omnitrain: no command \"trian\"", "did you mean \"train\"?"}},
      {{"frobnicate"}, {"", "", "no command \"frobnicate\"", "train, coordinator, worker"}},
      {{"data", "inspct"}, {"", "", "omnitrain data: no command", "did you mean \"inspect\"?"}},
      {{"train", "a.yaml", "--workrs=2"}, {"", "", "no option \"--workrs\"", "\"--workers\"?"}},
      {{"worker", "--paremt", "1"}, {"", "", "no option \"--paremt\"", "--coordinator"}}};
  for (const auto& [arguments, bad] : rows) ExpectOneLine(arguments, bad, /*exit_code=*/2);
}

INSTANTIATE_TEST_SUITE_P(
    Keys, BadKeyTest,
    ::testing::Values(
        Bad{"UnknownKey", "training.stepz=3", "training.stepz: unknown key",
            "did you mean \"steps\""},
        Bad{"UnknownSection", "trainin.steps=3", ":1: trainin: unknown key", "\"training\""},
        Bad{"StepsAreText", "training.steps=abc", "training.steps: found \"abc\"", "an integer"},
        Bad{"StepsAreNegative", "training.steps=-1", "training.steps: found -1", "> 0"},
        Bad{"StepsAreFractional", "training.steps=1.5", "training.steps: found", "an integer"},
        Bad{"UnknownDtype", "training.dtype=fp31", "training.dtype: found \"fp31\"",
            "did you mean \"fp32\""},
        Bad{"UnknownOptimizer", "training.optimizer.kind=mou", "training.optimizer.kind",
            "\"muon\""},
        Bad{"NegativeRate", "training.optimizer.lr=-1", "training.optimizer.lr: found -1", ">= 0"},
        Bad{"HeadsAndKvHeads", "model.decoder.kv_heads=3", "model.decoder.kv_heads: 2 heads",
            "multiple of 3"},
        Bad{"MelBandsDiffer", "data.audio.mel_bands=128", "data.audio: mel_bands is 128", "has 80"},
        Bad{"VocabSmallerThanTheTokenizer", "model.decoder.vocab=8", "vocab: found 8",
            "the pieces of"},
        Bad{"UnknownModule", "training.modules={visoin: {frozen: true}}",
            "training.modules: no module \"visoin\"", "\"vision\""},
        Bad{"OverrideWithoutValue", "nosense", "--set nosense", "expected key.path=value"},
        Bad{"UnknownEncoder", "model.encoders.vision.kind=qwen_visoin",
            "model.encoders.vision.kind", "did you mean qwen_vision"},
        Bad{"RopeSections", "model.decoder.rope.sections=[1,1]",
            "model.decoder.rope.sections: [1, 1] sum to 2", "= 8"},
        Bad{"NoPatch", "model.encoders.vision.patch=0", "model.encoders.vision.patch: found 0",
            ">= 1"},
        Bad{"MissingSource", "data.sources.0.path=/nope", "data source \"image\": /nope",
            "no such file"},
        Bad{"MissingTokenizer", "data.tokenizer=/nope", "tokenizer: /nope", "No such file"},
        Bad{"NoSources", "data.sources=[]", "data: sources is missing or empty",
            "at least one source"},
        Bad{"NoLanes", "data.lanes=0", "data.lanes: found 0", ">= 1"},
        Bad{"NegativeWeight", "data.sources.0.weight=-1", "data.sources.0.weight: found -1",
            ">= 0"},
        Bad{"NoSequence", "data.sequence_length=0", "data.sequence_length: found 0", ">= 2"},
        Bad{"PixelBoundsCross", "data.image.min_pixels=999999", "data.image.min_pixels",
            "max_pixels (100352)"},
        Bad{"FpsIsText", "data.video.fps=fast", "data.video.fps: found \"fast\"", "a number"},
        Bad{"UnknownTemplate", "data.template=chatmll", "data.template: found \"chatmll\"",
            "did you mean \"chatml\""},
        Bad{"NoWorkers", "parallel.workers=0", "parallel.workers: found 0", ">= 1"},
        Bad{"UnknownComm", "runtime.comm=shmm", "runtime.comm: found \"shmm\"",
            "did you mean \"shm\""},
        Bad{"UnknownDevice", "runtime.device=tpu", "runtime.device: found \"tpu\"", "cpu"}),
    Name);

INSTANTIATE_TEST_SUITE_P(
    Files, BadRecipeTest,
    ::testing::Values(Bad{"Empty", "", "is empty", "a mapping", ""},
                      Bad{"Binary", "", "binary data", "YAML text",
                          std::string("\x01\x02\x00\xff\x80", 5)},
                      Bad{"NotYaml", "", "yaml:2", "not valid YAML", "a: [1\nb: 2\n"},
                      Bad{"KeyTwice", "", "key \"name\"", "given twice", "<recipe>name: twice\n"}),
    Name);

INSTANTIATE_TEST_SUITE_P(
    Sources, BadSourceTest,
    ::testing::Values(
        Bad{"ShardIsTruncated", "cut.tar", "cut.tar: shard is cut off", "blocks of 512", "<shard>"},
        Bad{"ShardIsNoise", "noise.tar", "noise.tar: found unknown content", "expected a plain",
            std::string(2000, 'x')},
        Bad{"ShardIsEmpty", "zero.tar", "zero.tar: empty file", "expected a tar", ""},
        Bad{"NotData", "note.txt", "note.txt", "expected a .tar, .json or .jsonl", "hello"},
        Bad{"JsonIsCutOff", "cut.json", "cut.json:1", "not JSON", R"({"a":)"},
        Bad{"UnknownRole", "role.jsonl",
            "role.jsonl:1 would be left out as broken: messages[0].role: unknown role \"wizard\"",
            "expected system", R"({"messages":[{"role":"wizard","content":"x"}]})"},
        Bad{"PlaceholdersAndImages", "count.jsonl",
            "count.jsonl:1 would be left out as broken: 1 <image> placeholder",
            "2 entries in \"images\"",
            R"({"messages":[{"role":"user","content":"<image>x"},{"role":"assistant","content":"y"}],"images":["a.jpg","b.jpg"]})"}),
    Name);

}  // namespace
}  // namespace omni::test
