// The table of what may change where a run goes on: every key that a recipe may have is in it, it
// is what the page says, and whatever is edited in a recipe is classified.
#include "trainer/resume_rules.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "encoders/encoder.h"
#include "runtime/base/config.h"
#include "runtime/base/file.h"
#include "runtime/base/rng.h"
#include "trainer/recipe.h"

namespace omni::trainer {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// A recipe that has an item of every list and section.
std::string Yaml(const std::string& vision = "qwen_vision",
                 const std::string& audio = "qwen_audio") {
  const std::string audio_keys = audio == "qwen_audio" ? ", chunk_frames: 200" : "";
  return absl::StrCat(R"(name: all
model:
  decoder: {hidden: 32, layers: 2, heads: 2, kv_heads: 1, head_dim: 16, ffn: 48, vocab: 512,
            rope: {theta: 10000, sections: [2, 3, 3]},
            moe: {experts: 4, ffn: 16, bias_update_rate: 1e-3}}
  encoders:
    vision: {kind: )",
                      vision, R"(, hidden: 32, layers: 2, heads: 2, ffn: 48}
    audio: {kind: )",
                      audio, R"(, mel_bands: 80, hidden: 32, layers: 1, heads: 2, ffn: 48)",
                      audio_keys, R"(}
  lora: {rank: 2, alpha: 4, targets: [attention.q]}
data:
  seed: 3
  lanes: 4
  sequence_length: 160
  tokenizer: /nowhere/tokenizer.model
  sources:
    - {name: a, path: /nowhere/a, weight: 2}
    - {name: b.c, path: /nowhere/b}
  phases: [{until_step: 4, weights: {a: 1}}]
  eval: [{name: a, path: /nowhere/a}]
training:
  steps: 40
  modules: {decoder.embedding: {frozen: true}}
  phases:
  - {until_step: 4, lr: 1e-3, final_lr: 1e-4, schedule: {kind: linear}, modules: {vision: {frozen: true}}}
parallel: {workers: 2, encoders: {vision: {sequence: 1, threshold: auto}}}
)");
}

RecipeValues Values(const std::string& yaml) {
  auto values = ValuesOf(yaml, "r.yaml");
  EXPECT_TRUE(values.ok()) << values.status() << "\n" << yaml;
  return values.ok() ? *std::move(values) : RecipeValues{};
}

// `yaml` with overrides; the diff to it.
std::vector<RecipeChange> Diff(const std::vector<std::string>& overrides,
                               const std::string& yaml = Yaml()) {
  const auto recipe = LoadRecipeText(yaml, "r.yaml", overrides);
  EXPECT_TRUE(recipe.ok()) << recipe.status();
  if (!recipe.ok()) return {};
  return DiffRecipes(Values(yaml), Values(recipe->yaml));
}

std::vector<std::string> Kinds(const char* names) { return absl::StrSplit(names, ' '); }

TEST(ResumeRulesTest, EveryKeyThatAReaderKnowsIsInTheTable) {
  std::set<std::string> keys;
  for (const std::string& vision : Kinds("qwen_vision qwen3_vision seed_vision")) {
    for (const std::string& audio : Kinds("qwen_audio qwen2_audio")) {
      for (const auto& [key, value] : Values(Yaml(vision, audio))) keys.insert(key);
    }
  }
  EXPECT_GT(keys.size(), 180u);
  RecipeValues was, is;
  for (const std::string& key : keys) is[key] = "some text";
  for (const RecipeChange& change : DiffRecipes(was, is)) {
    EXPECT_NE(change.rule, nullptr) << change.key << " is not in trainer/resume_rules.cc";
  }
  // Values of absent sections are their defaults.
  const RecipeValues values = Values(Yaml());
  EXPECT_EQ(values.at("training.optimizer.eps"), "1e-08");
  EXPECT_EQ(values.at("model.decoder.rope.scaling.factor"), "1");
  EXPECT_EQ(values.at("model.decoder.norm_eps"), "1e-06");
  EXPECT_EQ(values.at("data.video.fps"), "2");
  EXPECT_EQ(values.at("data.sources.b.c.weight"), "1");
}

TEST(ResumeRulesTest, EveryKindOfEncoderIsTried) {
  encoders::EncoderRegistry registry;
  encoders::RegisterEncoders(registry);
  const auto node = ConfigNode::Parse("kind: none_such", "r.yaml");
  const auto found = registry.Create(*node, {});
  for (const char* kind :
       {"qwen_vision", "qwen3_vision", "seed_vision", "qwen_audio", "qwen2_audio"}) {
    EXPECT_THAT(std::string(found.status().message()), HasSubstr(kind));
  }
  const std::string text(found.status().message());
  EXPECT_EQ(std::count(text.begin(), text.end(), ','), 5) << text << ": a kind is not in this test";
}

// Each row of the table has a key that exists: a rule of a key that went is dead.
TEST(ResumeRulesTest, EveryRowIsOfAKeyThatExists) {
  std::set<const ResumeRule*> used;
  std::set<std::string> keys;
  for (const std::string& vision : Kinds("qwen_vision qwen3_vision seed_vision")) {
    for (const std::string& audio : Kinds("qwen_audio qwen2_audio")) {
      for (const auto& [key, value] : Values(Yaml(vision, audio))) keys.insert(key);
    }
  }
  for (const ResumeRule& rule : ResumeRules()) {
    for (const absl::string_view word : absl::StrSplit(rule.keys, ' ')) {
      const absl::string_view key = word.substr(0, word.find(':'));
      if (key == "*" || absl::EndsWith(key, "=0")) continue;
      std::string last = absl::StrCat(".", key);
      const bool exists = std::any_of(keys.begin(), keys.end(), [&](const std::string& known) {
        return absl::EndsWith("." + known, last);
      });
      // Not written down where it is not given.
      if (key == "from" || key == "family") continue;
      EXPECT_TRUE(exists) << rule.section << ": " << key;
    }
  }
}

TEST(ResumeRulesTest, ThePageShowsTheTable) {
  const auto page = ReadFile(OMNI_SOURCE_DIR "/docs/resuming.md");
  ASSERT_TRUE(page.ok());
  EXPECT_THAT(*page, HasSubstr(ResumeTable())) << "docs/resuming.md must have:\n" << ResumeTable();
}

TEST(ResumeRulesTest, WhatComesToTheSameIsNoChange) {
  EXPECT_THAT(Diff({}), IsEmpty());
  EXPECT_THAT(Diff({"training.optimizer.eps=1.0e-8", "training.steps=4e1", "data.video={fps: 2}",
                    "model.decoder.rope.scaling={kind: none}",
                    "training.modules={decoder.embedding: {frozen: true}, vision: {frozen: false}}",
                    "runtime={threads: 1}", "data.sources.1.weight=1.0"}),
              IsEmpty());
  // The order of the sources.
  EXPECT_THAT(Diff({"data.sources=[{name: b.c, path: /nowhere/b}, {name: a, path: /nowhere/a, "
                    "weight: 2}]"}),
              IsEmpty());
}

struct Row {
  const char* override;
  const char* key;
  const char* was;  // null: whatever the default is
  const char* is;
  ResumeClass kind;
};

class RowTest : public ::testing::TestWithParam<Row> {};

TEST_P(RowTest, IsClassified) {
  const Row& row = GetParam();
  const std::vector<RecipeChange> changes = Diff({row.override});
  const auto change = std::find_if(changes.begin(), changes.end(),
                                   [&](const RecipeChange& c) { return c.key == row.key; });
  ASSERT_NE(change, changes.end()) << Describe(changes);
  if (row.was != nullptr) {
    EXPECT_EQ(change->was, row.was);
  }
  EXPECT_EQ(change->is, row.is);
  EXPECT_EQ(change->kind(), row.kind) << Describe(changes);
  EXPECT_THAT(Describe(changes), HasSubstr(absl::StrCat(row.key, ": ")));
  // And what is made of it.
  const absl::Status without = CheckChanges(changes, {}, "run");
  const absl::Status with = CheckChanges(changes, std::vector<std::string>{row.key}, "run");
  switch (row.kind) {
    case ResumeClass::kFree:
    case ResumeClass::kRestarts:
      EXPECT_TRUE(without.ok()) << without;
      break;
    case ResumeClass::kAllow:
      EXPECT_THAT(std::string(without.message()), HasSubstr(absl::StrCat(" --allow ", row.key)));
      EXPECT_TRUE(with.ok()) << with;
      break;
    case ResumeClass::kNever:
      EXPECT_EQ(without.code(), absl::StatusCode::kInvalidArgument);
      EXPECT_THAT(std::string(without.message()),
                  HasSubstr(absl::StrCat("run directory run can't go on with this recipe: ")));
      EXPECT_FALSE(with.ok());
  }
}

constexpr ResumeClass kFree = ResumeClass::kFree, kRestarts = ResumeClass::kRestarts,
                      kAllow = ResumeClass::kAllow, kNever = ResumeClass::kNever;

const Row kRows[] = {
    {"training.steps=80", "training.steps", "40", "80", kFree},
    {"training.optimizer.lr=1", "training.optimizer.lr", "3e-04", "1", kFree},
    {"training.schedule={kind: constant}", "training.schedule.kind", "cosine", "constant", kFree},
    {"training.checkpoint.every=5", "training.checkpoint.every", "0", "5", kFree},
    {"training.phases.0.lr=2e-3", "training.phases.0.lr", "0.001", "0.002", kFree},
    {"training.init_from=/runs/x", "training.init_from", "", "/runs/x", kFree},
    {"parallel.pipeline=2", "parallel.pipeline", "1", "2", kFree},
    {"parallel.encoders.vision.threshold=4", "parallel.encoders.vision.threshold", "auto", "4",
     kFree},
    {"runtime.deadline_s=5", "runtime.deadline_s", "30", "5", kFree},
    {"observe.trace_steps=[2]", "observe.trace_steps", "[]", "[2]", kFree},
    {"data.sources.1.weight=3", "data.sources.b.c.weight", "1", "3", kFree},
    {"data.sequence_length=128", "data.sequence_length", "160", "128", kFree},
    {"data.phases.0.weights={b.c: 1}", "data.phases.0.weights", "{a: 1}", "{b.c: 1}", kFree},
    {"data.eval=[]", "data.eval.a", "/nowhere/a", "", kFree},
    {"model.init.embedding_std=0.5", "model.init.embedding_std", "0.1", "0.5", kFree},
    {"model.decoder.moe.z_loss=1e-3", "model.decoder.moe.z_loss", "0", "0.001", kFree},
    {"model.decoder.moe.bias_update_rate=2e-3", "model.decoder.moe.bias_update_rate", "0.001",
     "0.002", kFree},
    {"training.optimizer.kind=muon", "training.optimizer.kind", "adamw", "muon", kRestarts},
    {"training.modules={vision: {frozen: true}}", "training.modules.vision.frozen", "false", "true",
     kRestarts},
    {"data.lanes=8", "data.lanes", "4", "8", kRestarts},
    {"data.seed=4", "data.seed", "3", "4", kRestarts},
    {"data.image={max_pixels: 3136}", "data.image.max_pixels", "1003520", "3136", kRestarts},
    {"data.sources.1.path=/else", "data.sources.b.c.path", "/nowhere/b", "/else", kRestarts},
    {"data.sources=[{name: a, path: /nowhere/a}]", "data.sources.b.c", "/nowhere/b", "", kRestarts},
    {"data.sources.1.name=d", "data.sources.d", "", "/nowhere/b", kRestarts},
    {"training.dtype=bf16", "training.dtype", "fp32", "bf16", kAllow},
    {"data.template=plain", "data.template", "chatml", "plain", kAllow},
    {"data.tokenizer=/other", "data.tokenizer", "/nowhere/tokenizer.model", "/other", kAllow},
    {"data.special_tokens={im_end: <x>}", "data.special_tokens.im_end", "<|im_end|>", "<x>",
     kAllow},
    {"data.image={resize: torchvision}", "data.image.resize", "fast", "torchvision", kAllow},
    {"data.video={frame_rule: qwen3}", "data.video.frame_rule", "even", "qwen3", kAllow},
    {"model.decoder={hidden: 32, layers: 2, heads: 4, kv_heads: 2, head_dim: 8, ffn: 48, vocab: "
     "512, moe: {experts: 4, ffn: 16}}",
     "model.decoder.heads", "2", "4", kNever},
    {"model.decoder.rope.theta=1e6", "model.decoder.rope.theta", "10000", "1e+06", kNever},
    {"model.decoder.rope.scaling={kind: linear, factor: 2}", "model.decoder.rope.scaling.kind",
     "none", "linear", kNever},
    {"model.decoder.norm_eps=1e-5", "model.decoder.norm_eps", "1e-06", "1e-05", kNever},
    {"model.decoder.moe.top_k=3", "model.decoder.moe.top_k", "1", "3", kNever},
    {"model.decoder.moe.bias_update_rate=0", "model.decoder.moe.bias_update_rate", "0.001", "0",
     kNever},
    {"model.encoders.vision.heads=4", "model.encoders.vision.heads", "2", "4", kNever},
    {"model.encoders.vision.mean=[0, 0, 0]", "model.encoders.vision.mean", nullptr, "[0, 0, 0]",
     kNever},
    {"model.encoders={vision: {kind: qwen_vision, hidden: 32, layers: 2, heads: 2, ffn: 48}}",
     "model.encoders.audio", "qwen_audio", "", kNever},
    {"model.lora.alpha=8", "model.lora.alpha", "4", "8", kNever},
    {"data.position_rule=sequential", "data.position_rule", "qwen2_5_max", "sequential", kNever},
    {"data.positions_per_second=2", "data.positions_per_second", "25", "2", kNever},
};

INSTANTIATE_TEST_SUITE_P(Rows, RowTest, ::testing::ValuesIn(kRows), [](const auto& info) {
  return absl::StrCat(info.index, "_", absl::StrReplaceAll(info.param.key, {{".", "_"}}));
});

TEST(ResumeRulesTest, WhatIsAllowedMustBeAKeyThatCanBe) {
  const auto message = [](const std::string& word) {
    return std::string(CheckChanges({}, std::vector<std::string>{word}, "run").message());
  };
  EXPECT_EQ(message("data.template"), "");
  EXPECT_EQ(message("data.special_tokens"), "");
  EXPECT_THAT(message("data.tokeniser"), HasSubstr("did you mean \"data.tokenizer\"?"));
  EXPECT_THAT(message("model.decoder.heads"), HasSubstr("can't be allowed"));
  EXPECT_THAT(message("training.steps"), HasSubstr("needs no leave"));
}

TEST(ResumeRulesTest, AKeyThatIsInNoRowMayNotChange) {
  const std::vector<RecipeChange> changes =
      DiffRecipes({{"training.new_key", "1"}}, {{"training.new_key", "2"}});
  ASSERT_THAT(changes, SizeIs(1));
  EXPECT_THAT(std::string(CheckChanges(changes, {}, "run").message()),
              HasSubstr("not in the table"));
}

TEST(ResumeRulesTest, ANewRunMayHaveOtherTowersButNoOtherFunction) {
  const auto names = [](const std::vector<std::string>& overrides) {
    std::vector<std::string> keys;
    const auto recipe = LoadRecipeText(Yaml(), "r.yaml", overrides);
    EXPECT_TRUE(recipe.ok()) << recipe.status();
    for (const auto& change : ChangesOfModel(Values(Yaml()), Values(recipe->yaml))) {
      keys.push_back(change.key);
    }
    return keys;
  };
  EXPECT_THAT(
      names({"training.steps=3", "data.lanes=1", "data.template=plain", "model.lora.rank=8"}),
      IsEmpty());
  EXPECT_THAT(names({"model.encoders={vision: {kind: qwen_vision, hidden: 32, layers: 2, heads: 2, "
                     "ffn: 48}}"}),
              IsEmpty());
  EXPECT_THAT(names({"model.decoder.rope.theta=5"}), ElementsAre("model.decoder.rope.theta"));
  const auto changes = ChangesOfModel(
      Values(Yaml()),
      Values(LoadRecipeText(Yaml(), "r.yaml", {"model.decoder.rope.theta=5"})->yaml));
  EXPECT_THAT(std::string(CheckModelChanges(changes, {}, "runs/a").message()),
              HasSubstr("found 5, there it is 10000"));
  EXPECT_TRUE(
      CheckModelChanges(changes, std::vector<std::string>{"model.decoder.rope.theta"}, "r").ok());
}

// Edits of a recipe at random: whatever reads is classified, and what alters a value is printed.
TEST(ResumeRulesTest, AFuzzedEditIsAlwaysClassified) {
  constexpr uint64_t kSeed = 8;
  SCOPED_TRACE(absl::StrCat("seed ", kSeed));
  CounterRng random(kSeed, StreamOf("recipe edits"));
  const RecipeValues base = Values(Yaml());
  std::vector<std::string> keys;
  for (const auto& [key, value] : base) {
    std::string at = absl::StrReplaceAll(key, {{"data.sources.a.", "data.sources.0."},
                                               {"data.sources.b.c.", "data.sources.1."},
                                               {"data.eval.a.", "data.eval.0."}});
    if (!absl::StrContains(at, "decoder.embedding")) keys.push_back(at);
  }
  const std::vector<std::string> texts = {
      "0",           "1",           "2",           "3",
      "7",           "0.5",         "1e-3",        "64",
      "true",        "false",       "x",           "none",
      "[]",          "[1]",         "[0, 1]",      "muon",
      "tcp",         "wsd",         "linear",      "full",
      "cut",         "drop",        "qwen2_5",     "llama3",
      "plain",       "bf16",        "seed",        "ring",
      "zero2",       "~",           "[2, 3, 3]",   "[0.1, 0.2, 0.3]",
      "interleaved", "torchvision", "huggingface", "{a: 2}"};
  int num_read = 0, num_changed = 0;
  for (int round = 0; round < 1500; ++round) {
    std::vector<std::string> overrides;
    for (uint64_t i = 0; i <= random.NextBelow(2); ++i) {
      overrides.push_back(absl::StrCat(keys[random.NextBelow(keys.size())], "=",
                                       texts[random.NextBelow(texts.size())]));
    }
    const auto recipe = LoadRecipeText(Yaml(), "r.yaml", overrides);
    if (!recipe.ok()) continue;
    ++num_read;
    const RecipeValues values = Values(recipe->yaml);
    const std::vector<RecipeChange> changes = DiffRecipes(base, values);
    for (const RecipeChange& change : changes) {
      EXPECT_NE(change.rule, nullptr) << change.key << " after " << overrides[0];
    }
    if (values == base) {
      EXPECT_THAT(changes, IsEmpty());
      continue;
    }
    ++num_changed;
    // Nothing but an absent key and what it stands for is the same and looks different.
    for (const auto& [key, value] : values) {
      const auto was = base.find(key);
      if (was == base.end() || was->second == value) continue;
      // An enumeration's default, written down.
      if (was->second.empty() && DiffRecipes({{key, ""}}, {{key, value}}).empty()) continue;
      EXPECT_THAT(Describe(changes), HasSubstr(key)) << overrides[0];
    }
  }
  EXPECT_GT(num_read, 100);
  EXPECT_GT(num_changed, 80);
}

}  // namespace
}  // namespace omni::trainer
