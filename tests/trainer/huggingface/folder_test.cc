// Folders of published models: what is written again is what was read, bit for bit, and what is
// wrong with a folder is said in one line that names tensor and file.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "runtime/base/file.h"
#include "tests/support/family_case.h"
#include "trainer/huggingface/export.h"

namespace omni::trainer {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A new copy of a family's folder that a test may damage.
std::string Copy(const std::string& family, const std::string& name) {
  const std::string folder = ::testing::TempDir() + "/folder-" + name;
  fs::remove_all(folder);
  fs::create_directories(folder);
  for (const auto& entry : fs::directory_iterator(testing::FamilyFolder(family))) {
    const std::string file = entry.path().filename().string();
    if (file.rfind("case_", 0) != 0) fs::copy(entry.path(), fs::path(folder) / file);
  }
  return folder;
}

std::vector<std::byte> Bytes(const SafetensorsFile& file, const std::string& name) {
  const TensorView view = *file.Get(name);
  const auto* data = static_cast<const std::byte*>(view.data);
  return {data, data + view.num_bytes()};
}

std::vector<parallel::ParameterSpec> SpecsOf(const PretrainedModel& model) {
  encoders::EncoderRegistry registry;
  encoders::RegisterEncoders(registry);
  const auto section = ConfigNode::Parse(model.family().model_yaml, "model.yaml");
  OMNI_CHECK_OK(section.status());
  const auto built = MultimodalModel::Create(*section, registry);
  OMNI_CHECK_OK(built.status());
  return (*built)->Parameters();
}

class RoundTripTest : public ::testing::TestWithParam<const char*> {};

TEST_P(RoundTripTest, ExportedTensorsAreTheOnesRead) {
  const auto model = testing::OpenFamily(GetParam());
  const std::string out = ::testing::TempDir() + "/export-" + GetParam();
  fs::remove_all(out);
  fs::create_directories(out);
  // Some shards: what fits into one file is tested by the quickstart's size.
  ASSERT_TRUE(ExportWeights(*model, SpecsOf(*model), model->family(), &model->folder(),
                            {.dtype = model->family().dtype, .shard_bytes = 40'000}, out)
                  .ok());
  fs::copy(testing::FamilyFolder(GetParam()) + "/config.json", out + "/config.json");
  const auto again = PretrainedModel::Open(out);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ((*again)->folder().tensors().size(), model->folder().tensors().size());
  for (const auto& [name, before] : model->folder().tensors()) {  // also those not trained
    const auto after = (*again)->folder().Find(name);
    ASSERT_TRUE(after.ok()) << after.status();
    EXPECT_EQ((*after)->shape, before.shape) << name;
    EXPECT_EQ((*after)->dtype, before.dtype) << name;
    const auto old_file = SafetensorsFile::Open(*before.file);
    const auto new_file = SafetensorsFile::Open(*(*after)->file);
    EXPECT_EQ(Bytes(**new_file, name), Bytes(**old_file, name)) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Families, RoundTripTest,
                         ::testing::Values("qwen2", "qwen2_tied", "qwen3", "qwen3_moe",
                                           "qwen3_moe_raw", "llama", "llama_tied", "qwen2_5_vl",
                                           "qwen2_5_omni", "qwen3_vl", "qwen3_vl_moe",
                                           "qwen2_audio"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::erase(name, '_');
                           return name;
                         });

TEST(PretrainedModelTest, ReadsAnyPartOfAParameter) {
  const auto model = testing::OpenFamily("qwen2");
  for (const parallel::ParameterSpec& spec : SpecsOf(*model)) {
    const int64_t count = spec.num_elements();
    std::vector<float> whole(count), part(count / 2);
    const auto read = [&](int64_t begin, std::vector<float>& to) {
      return model->Read({.name = spec.path,
                          .shape = spec.shape,
                          .begin = begin,
                          .data = TensorView::Dense(to.data(), DType::kFloat32, DeviceKind::kCpu,
                                                    {static_cast<int64_t>(to.size())})});
    };
    ASSERT_TRUE(read(0, whole).ok());
    const int64_t begin = count / 3;
    ASSERT_TRUE(read(begin, part).ok());
    EXPECT_EQ(part, std::vector<float>(whole.begin() + begin,
                                       whole.begin() + begin + static_cast<int64_t>(part.size())))
        << spec.path;
  }
}

TEST(PretrainedModelTest, ListsWhatItDoesNotUse) {
  const auto omni = testing::OpenFamily("qwen2_5_omni");
  for (const std::string& name : omni->UnusedTensors()) {
    EXPECT_THAT(name, ::testing::ContainsRegex("^(talker|token2wav|thinker.audio_tower)")) << name;
  }
  EXPECT_FALSE(omni->UnusedTensors().empty());
}

std::string Message(const std::string& folder) {
  const auto model = PretrainedModel::Open(folder);
  return model.ok() ? "opened" : std::string(model.status().message());
}

// Replaces `from`, which must be there, in a small file.
void Edit(const std::string& path, const std::string& from, const std::string& to) {
  std::string text = *ReadFile(path);
  const size_t at = text.find(from);
  ASSERT_NE(at, std::string::npos) << path << " has no " << from;
  text.replace(at, from.size(), to);
  std::ofstream(path, std::ios::binary) << text;
}

TEST(BadFolderTest, NoFolderNoConfigNoWeights) {
  EXPECT_THAT(Message("/nope"),
              AllOf(HasSubstr("/nope: no such folder"), HasSubstr("config.json")));
  const std::string folder = Copy("qwen2", "parts");
  fs::remove(folder + "/model.safetensors");
  EXPECT_THAT(Message(folder), HasSubstr("no weights, expected model.safetensors"));
  fs::remove(folder + "/config.json");
  EXPECT_THAT(Message(folder), HasSubstr("config.json: no such file"));
}

TEST(BadFolderTest, UnknownFamilyNamesTheNearestAndAll) {
  const std::string folder = Copy("qwen2", "family");
  Edit(folder + "/config.json", "Qwen2ForCausalLM", "Qwen22ForCausalLM");
  EXPECT_THAT(
      Message(folder),
      AllOf(HasSubstr("config.json:3: architectures.0: unknown family \"Qwen22ForCausalLM\""),
            HasSubstr("nearest is \"Qwen2ForCausalLM\""), HasSubstr("LlamaForCausalLM")));
}

TEST(BadFolderTest, AnotherShapeNamesTensorFileAndBoth) {
  const std::string folder = Copy("qwen2", "shape");
  Edit(folder + "/config.json", "\"intermediate_size\": 48", "\"intermediate_size\": 47");
  EXPECT_THAT(Message(folder), AllOf(HasSubstr("model.safetensors: tensor \"model.layers.0.mlp"),
                                     HasSubstr("has shape [48, 32]"), HasSubstr("[47, 32]")));
}

TEST(BadFolderTest, Qwen2AudiosFileMayLeaveOutTheDefaultsOfQwen2) {
  const std::string folder = Copy("qwen2_audio", "defaults");
  const std::string heads = "\"num_attention_heads\"";  // only the decoder's is named so
  Edit(folder + "/config.json", heads, "\"left_out\"");
  // 32 heads where there were 4.
  EXPECT_THAT(Message(folder), AllOf(HasSubstr("self_attn.k_proj.weight\" has shape"),
                                     HasSubstr("config.json makes it")));
  Edit(folder + "/config.json", "\"vocab_size\": 160", "\"left_out_too\": 160");
  EXPECT_THAT(Message(folder), HasSubstr("config.json makes it [151936, 32]"));
}

TEST(BadFolderTest, AMissingTensorNamesItAndTheNearest) {
  const std::string folder = Copy("qwen2", "missing");
  Edit(folder + "/model.safetensors", "model.norm.weight", "model.nrm2.weight");
  EXPECT_THAT(Message(folder), AllOf(HasSubstr(folder + ": no tensor \"model.norm.weight\""),
                                     HasSubstr("the nearest is \"model.nrm2.weight\"")));
}

TEST(BadFolderTest, ATruncatedShardNamesTheFile) {
  const std::string folder = Copy("qwen3_moe_raw", "cut");
  const std::string shard = folder + "/model-00002-of-00002.safetensors";
  fs::resize_file(shard, fs::file_size(shard) - 100);
  EXPECT_THAT(Message(folder), AllOf(HasSubstr(shard), HasSubstr("truncated")));
  fs::remove(shard);
  EXPECT_THAT(Message(folder), AllOf(HasSubstr(shard), HasSubstr("No such file")));
}

TEST(BadFolderTest, AnIndexThatLies) {
  const std::string folder = Copy("qwen3_moe_raw", "index");
  const std::string index = folder + "/model.safetensors.index.json";
  Edit(index, "\"model.norm.weight\": \"model-00002", "\"model.norm.weight\": \"model-00001");
  EXPECT_THAT(Message(folder), AllOf(HasSubstr("model-00001-of-00002.safetensors: no tensor"),
                                     HasSubstr("model.norm.weight")));
  std::ofstream(index) << "[]";
  EXPECT_THAT(Message(folder), AllOf(HasSubstr(index), HasSubstr("weight_map")));
}

TEST(BadFolderTest, WhatIsNotBuiltIsAnErrorAtItsKey) {
  const std::string folder = Copy("qwen2", "feature");
  Edit(folder + "/config.json", "\"use_sliding_window\": false", "\"use_sliding_window\": true");
  EXPECT_THAT(Message(folder), HasSubstr("use_sliding_window: only false is built"));
}

}  // namespace
}  // namespace omni::trainer
