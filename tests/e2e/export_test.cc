// From a run to a folder that transformers loads and back: the numbers stay the same.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "dataloader/media/encode.h"
#include "runtime/base/file.h"
#include "runtime/checkpoint/safetensors.h"
#include "tests/e2e/process.h"
#include "tests/support/tiny_job.h"

namespace omni::test {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

std::string Folder(const std::string& name) {
  const std::string folder = absl::StrCat(TinyData(), "-export/", name);
  fs::remove_all(folder);
  fs::create_directories(fs::path(folder).parent_path());
  return folder;
}

// A run of a few steps that exported its checkpoint, made once.
const std::string& RunDir() {
  static const std::string dir = [] {
    const std::string run_dir = Folder("run");
    const std::string recipe = absl::StrCat(TinyData(), "-export.yaml");
    std::ofstream(recipe) << TinyRecipeYaml({.steps = 3, .workers = 2, .dtype = "fp32"});
    OmnitrainProcess run(
        {"train", recipe, "--run-dir", run_dir, "--set", "training.checkpoint.export=huggingface"});
    EXPECT_EQ(run.Wait(), 0) << run.output();
    return run_dir;
  }();
  return dir;
}

std::string Exported() { return RunDir() + "/checkpoints/step-00000003/huggingface"; }

// A picture and a question about it, printed for people.
std::string Conversation() {
  const std::string folder = Folder("conversation");
  fs::create_directories(folder);
  dataloader::Image picture{.size = {.height = 40, .width = 90}, .rgb = {}};
  for (int i = 0; i < 40 * 90 * 3; ++i) picture.rgb.push_back(static_cast<uint8_t>(i * 7 % 251));
  std::ofstream(folder + "/picture.png", std::ios::binary) << *dataloader::EncodePng(picture);
  std::ofstream(folder + "/ask.json")
      << "{\n  \"messages\": [\n    {\"role\": \"user\", \"content\": \"<image>Which number?\"},\n"
         "    {\"role\": \"assistant\", \"content\": \"42\"}\n  ],\n"
         "  \"images\": [\"picture.png\"]\n}\n";
  return folder + "/ask.json";
}

std::vector<std::byte> Bytes(const std::string& path, const std::string& name) {
  const auto file = SafetensorsFile::Open(path);
  EXPECT_TRUE(file.ok()) << file.status();
  if (!file.ok()) return {};
  const auto view = (*file)->Get(name);
  EXPECT_TRUE(view.ok()) << view.status();
  if (!view.ok()) return {};
  const auto* data = static_cast<const std::byte*>(view->data);
  return {data, data + view->num_bytes()};
}

std::string Probe(const std::string& model, const std::string& conversation,
                  const std::string& name) {
  const std::string out = absl::StrCat(TinyData(), "-export-", name, ".safetensors");
  OmnitrainProcess probe({"probe", model, "--conversation", conversation, "--out", out});
  EXPECT_EQ(probe.Wait(), 0) << probe.output();
  return out;
}

TEST(ExportTest, ACheckpointIsExportedAsItIsSaved) {
  for (const char* name : {"config.json", "preprocessor_config.json", "model.safetensors",
                           "tokenizer.model", "omnitrain.yaml"}) {
    EXPECT_TRUE(fs::exists(Exported() + "/" + name)) << name;
  }
  EXPECT_THAT(*ReadFile(Exported() + "/config.json"),
              HasSubstr("Qwen2_5OmniThinkerForConditionalGeneration"));
}

TEST(ExportTest, ConvertWritesTheSameAndNothingTwice) {
  const std::string out = Folder("converted");
  OmnitrainProcess convert({"convert", RunDir(), out});
  EXPECT_EQ(convert.Wait(), 0) << convert.output();
  for (const char* name : {"config.json", "model.safetensors"}) {
    EXPECT_EQ(*ReadFile(out + "/" + name), *ReadFile(Exported() + "/" + name)) << name;
  }
  OmnitrainProcess again({"convert", RunDir() + "/checkpoints/step-00000003", out});
  EXPECT_EQ(again.Wait(), 1);
  EXPECT_THAT(again.output(), HasSubstr("exists and is not empty"));
}

TEST(ExportTest, TheFolderAnswersAsTheRunDoes) {
  const std::string conversation = Conversation();
  const std::string of_run = Probe(RunDir(), conversation, "run");
  const std::string of_folder = Probe(Exported(), conversation, "folder");
  for (const char* name : {"input_ids", "position_ids", "vision.grid_thw", "logits", "loss"}) {
    EXPECT_EQ(Bytes(of_run, name), Bytes(of_folder, name)) << name;
  }
  EXPECT_EQ(Bytes(of_run, "grad.decoder.norm.weight"), Bytes(of_folder, "grad.model.norm.weight"));
  EXPECT_EQ(Bytes(of_run, "grad.vision.merger.fc2.weight"),
            Bytes(of_folder, "grad.visual.merger.mlp.2.weight"));
}

// The folder as a start: its values are there before the first step, in whatever layout.
TEST(ExportTest, TrainingStartsFromTheFolder) {
  const std::string recipe = absl::StrCat(TinyData(), "-from.yaml");
  std::string yaml = TinyRecipeYaml({.steps = 1, .dtype = "fp32"});
  const size_t begin = yaml.find("model:"), end = yaml.find("data:");
  yaml.replace(begin, end - begin, absl::StrCat("model: {from: ", Exported(), "}\n"));
  std::ofstream(recipe) << yaml;
  for (const char* layout : {"workers: 1", "workers: 2, pipeline: 2", "workers: 2, tensor: 2"}) {
    const std::string run_dir = Folder("from");
    OmnitrainProcess run({"train", recipe, "--run-dir", run_dir, "--set", "training.optimizer.lr=0",
                          "--set", "data.template=chatml", "--set",
                          absl::StrCat("parallel={", layout, "}")});
    ASSERT_EQ(run.Wait(), 0) << layout << ": " << run.output();
    EXPECT_THAT(run.output(), HasSubstr("of weights (qwen2_5_omni)"));
    const std::string out = Folder("from-converted");
    OmnitrainProcess convert({"convert", run_dir, out});
    EXPECT_EQ(convert.Wait(), 0) << convert.output();
    EXPECT_EQ(*ReadFile(out + "/model.safetensors"), *ReadFile(Exported() + "/model.safetensors"))
        << layout;
  }
}

// The same question to the run and to the folder, of a picture, from flags and from a file.
TEST(GenerateTest, RunAndFolderAnswerAlike) {
  const std::string conversation = Conversation();
  const std::string picture = fs::path(conversation).parent_path() / "picture.png";
  const auto ask = [&](const std::string& model, const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {"generate", model, "--max-tokens", "6"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    OmnitrainProcess generate(arguments);
    EXPECT_EQ(generate.Wait(), 0) << generate.output();
    return generate.output();
  };
  const std::vector<std::string> question = {"--image", picture, "Which number?"};
  const std::string answer = ask(RunDir(), question);
  EXPECT_GT(answer.size(), 1u);
  EXPECT_EQ(ask(Exported(), question), answer);
  EXPECT_EQ(
      ask(RunDir(), {"--image", picture, "Which number?", "--temperature", "1", "--seed", "3"}),
      ask(RunDir(), {"--image", picture, "Which number?", "--temperature", "1", "--seed", "3"}));
  OmnitrainProcess nothing({"generate", RunDir()});
  EXPECT_EQ(nothing.Wait(), 1);
  EXPECT_THAT(nothing.output(), HasSubstr("expected either a prompt or --conversation"));
  OmnitrainProcess missing({"generate", RunDir(), "x", "--image", "/nope.png"});
  EXPECT_EQ(missing.Wait(), 1);
  EXPECT_THAT(missing.output(), HasSubstr("/nope.png"));
}

// Adapters alone are trained; merged into the weights they give what the run gives.
TEST(ExportTest, AdaptersAreMergedOrWrittenAlone) {
  const std::string recipe = absl::StrCat(TinyData(), "-lora.yaml");
  std::string yaml = TinyRecipeYaml({.steps = 3, .workers = 2, .dtype = "fp32"});
  const size_t begin = yaml.find("model:"), end = yaml.find("data:");
  yaml.replace(
      begin, end - begin,
      absl::StrCat("model:\n  from: ", Exported(),
                   "\n  lora: {rank: 2, alpha: 8, targets: [attention.q, attention.v, mlp, "
                   "vision.blocks, audio]}\n"));
  std::ofstream(recipe) << yaml;
  const std::string run_dir = Folder("lora");
  OmnitrainProcess run({"train", recipe, "--run-dir", run_dir, "--set",
                        "training.optimizer={kind: adamw, lr: 0.05}"});
  ASSERT_EQ(run.Wait(), 0) << run.output();
  const std::string merged = Folder("lora-merged"), adapter = Folder("lora-adapter");
  OmnitrainProcess merge({"convert", run_dir, merged});
  EXPECT_EQ(merge.Wait(), 0) << merge.output();
  OmnitrainProcess write({"convert", run_dir, adapter, "--adapter"});
  EXPECT_EQ(write.Wait(), 0) << write.output();

  const std::string conversation = Conversation();
  const auto logits = [&](const std::string& model, const std::string& name) {
    const std::vector<std::byte> bytes = Bytes(Probe(model, conversation, name), "logits");
    std::vector<float> values(bytes.size() / sizeof(float));
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  };
  const std::vector<float> before = logits(Exported(), "lora-base");
  const std::vector<float> adapted = logits(run_dir, "lora-run");
  const std::vector<float> after = logits(merged, "lora-merged");
  ASSERT_EQ(adapted.size(), before.size());
  ASSERT_EQ(adapted.size(), after.size());
  float largest_change = 0;
  for (size_t i = 0; i < adapted.size(); ++i) {
    EXPECT_NEAR(after[i], adapted[i], 1e-4) << i;
    largest_change = std::max(largest_change, std::abs(adapted[i] - before[i]));
  }
  EXPECT_GT(largest_change, 1e-2);  // it has learned something
  // What has no adapter is as it was.
  for (const char* name : {"model.embed_tokens.weight", "model.layers.0.self_attn.k_proj.weight"}) {
    EXPECT_EQ(Bytes(merged + "/model.safetensors", name),
              Bytes(Exported() + "/model.safetensors", name));
  }
  EXPECT_FALSE(Bytes(adapter + "/adapter_model.safetensors",
                     "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight")
                   .empty());
  EXPECT_THAT(*ReadFile(adapter + "/adapter_config.json"), HasSubstr("\"peft_type\": \"LORA\""));
}

// A recipe of the tiny model with another key or two, run for a step and converted.
int ConvertWith(const std::string& name, const std::vector<std::string>& overrides,
                std::string* folder, std::string* output) {
  const std::string recipe = absl::StrCat(TinyData(), "-", name, ".yaml");
  std::ofstream(recipe) << TinyRecipeYaml({.steps = 1, .dtype = "fp32"});
  std::vector<std::string> train = {"train", recipe, "--run-dir", Folder(name)};
  for (const std::string& override : overrides) train.insert(train.end(), {"--set", override});
  OmnitrainProcess run(train);
  EXPECT_EQ(run.Wait(), 0) << run.output();
  *folder = Folder(name + "-out");
  OmnitrainProcess convert({"convert", train[3], *folder});
  const int code = convert.Wait();
  *output = convert.output();
  return code;
}

TEST(ExportTest, PerAxisSectionsAreWrittenAsLongrope) {
  std::string folder, output;
  ASSERT_EQ(ConvertWith("per-axis", {"model.decoder.rope.layout=per_axis"}, &folder, &output), 0)
      << output;
  EXPECT_THAT(*ReadFile(folder + "/config.json"), HasSubstr("\"rope_type\": \"longrope\""));
  const std::string run_dir = absl::StrCat(TinyData(), "-export/per-axis");
  const std::string conversation = Conversation();
  EXPECT_EQ(Bytes(Probe(run_dir, conversation, "per-axis-run"), "logits"),
            Bytes(Probe(folder, conversation, "per-axis-folder"), "logits"));
}

TEST(ExportTest, WhatNoFamilyHasIsNamedByItsKey) {
  std::string folder, output;
  EXPECT_EQ(ConvertWith("theta", {"model.encoders.vision.rope_theta=100"}, &folder, &output), 1);
  EXPECT_THAT(output, HasSubstr("model.encoders.vision.rope_theta: only 10000 can be exported"));
}

// A decoder alone trains on text, is exported as one, and is told what it can't see.
TEST(ExportTest, ADecoderWithoutTowers) {
  std::string yaml = TinyRecipeYaml({.steps = 2, .dtype = "fp32", .sources = "[text]"});
  const size_t begin = yaml.find("  encoders:"), end = yaml.find("data:");
  yaml.erase(begin, end - begin);
  const std::string recipe = absl::StrCat(TinyData(), "-text-only.yaml");
  std::ofstream(recipe) << yaml;
  const std::string run_dir = Folder("text-only"), out = Folder("text-only-out");
  OmnitrainProcess run(
      {"train", recipe, "--run-dir", run_dir, "--set", "model.decoder.rope={theta: 1000}"});
  ASSERT_EQ(run.Wait(), 0) << run.output();
  OmnitrainProcess convert({"convert", run_dir, out});
  EXPECT_EQ(convert.Wait(), 0) << convert.output();
  EXPECT_THAT(*ReadFile(out + "/config.json"), HasSubstr("Qwen2ForCausalLM"));
  OmnitrainProcess ask({"generate", out, "1 + 1", "--max-tokens", "2"});
  EXPECT_EQ(ask.Wait(), 0) << ask.output();
  const std::string conversation = Conversation();
  OmnitrainProcess look({"probe", run_dir, "--conversation", conversation, "--out", "/dev/null"});
  EXPECT_EQ(look.Wait(), 1);
  EXPECT_THAT(look.output(), HasSubstr("the model has no encoder for pictures"));
}

TEST(ExportTest, NoCheckpointIsOneError) {
  OmnitrainProcess convert({"convert", "/nope", Folder("nothing")});
  EXPECT_EQ(convert.Wait(), 1);
  EXPECT_THAT(convert.output(), HasSubstr("/nope: no checkpoint"));
}

}  // namespace
}  // namespace omni::test
