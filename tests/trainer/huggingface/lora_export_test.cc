// Adapters of experts on their way out: each expert's own, merged or under PEFT's names.
#include "trainer/huggingface/lora_export.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "runtime/checkpoint/safetensors.h"
#include "tests/support/family_case.h"

namespace omni::trainer {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int64_t kRank = 2;

// Any tensor there may be, in fp32: element i of `name`.
float ValueOf(const std::string& name, int64_t i) {
  return static_cast<float>(
      std::sin(static_cast<double>(std::hash<std::string>()(name) % 1000) + 0.37 * i));
}

class MadeUpSource : public TensorSource {
 public:
  absl::Status Read(const TensorRange& range) const override {
    OMNI_CHECK(range.data.dtype == DType::kFloat32);
    for (int64_t i = 0; i < range.data.num_elements(); ++i) {
      static_cast<float*>(range.data.data)[i] = ValueOf(range.name, range.begin + i);
    }
    return absl::OkStatus();
  }
};

std::unique_ptr<MultimodalModel> WithLora(const PretrainedModel& pretrained,
                                          const std::string& targets) {
  encoders::EncoderRegistry registry;
  encoders::RegisterEncoders(registry);
  auto section = ConfigNode::Parse(pretrained.family().model_yaml, "model.yaml");
  OMNI_CHECK_OK(section.status());
  const std::string lora =
      absl::StrCat("lora={rank: ", kRank, ", alpha: 3, targets: [", targets, "]}");
  OMNI_CHECK_OK(section->ApplyOverrides({lora}));
  auto model = MultimodalModel::Create(*section, registry);
  OMNI_CHECK_OK(model.status());
  return *std::move(model);
}

const parallel::LoraTarget& TargetOf(const MultimodalModel& model, absl::string_view path) {
  for (const parallel::LoraTarget& target : model.lora_targets()) {
    if (target.path == path) return target;
  }
  ADD_FAILURE() << "no adapter on " << path;
  std::abort();
}

TEST(LoraExportTest, MergedExpertsHaveTheirOwnTerms) {
  const auto pretrained = testing::OpenFamily("qwen3_moe");
  const auto model = WithLora(*pretrained, "moe");
  const std::string path = "decoder.layers.1.moe.gate_up.weight";
  const parallel::LoraTarget& target = TargetOf(*model, path);
  ASSERT_EQ(target.parts.size(), 2u);
  const int64_t experts = target.a.shape[0], in = target.a.shape[2], out = target.b.shape[1];
  ASSERT_GT(experts, 1);
  ASSERT_EQ(out, 2 * target.parts[0].num_rows);
  // From within the second expert into the last.
  const int64_t begin = out * in + 5, count = (experts - 2) * out * in;
  std::vector<float> merged(count);
  const MadeUpSource source;
  ASSERT_TRUE(MergedSource(source, *model)
                  .Read({.name = path,
                         .shape = {experts, out, in},
                         .begin = begin,
                         .data = TensorView::Dense(merged.data(), DType::kFloat32, DeviceKind::kCpu,
                                                   {count})})
                  .ok());
  for (int64_t i = 0; i < count; ++i) {
    const int64_t e = (begin + i) / (out * in), row = (begin + i) / in % out;
    const int64_t column = (begin + i) % in, part = row < out / 2 ? 0 : 1;
    double sum = ValueOf(path, begin + i);
    for (int64_t k = 0; k < kRank; ++k) {
      sum += 1.5 * ValueOf(target.b.path, (e * out + row) * kRank + k) *
             ValueOf(target.a.path, ((e * 2 + part) * kRank + k) * in + column);
    }
    ASSERT_NEAR(merged[i], sum, 1e-5) << i;
  }
}

TEST(LoraExportTest, ExpertsAreModulesToPeft) {
  const auto pretrained = testing::OpenFamily("qwen3_moe");
  const auto model = WithLora(*pretrained, "moe.up, moe.down");
  const std::string folder = ::testing::TempDir() + "/lora-experts";
  fs::remove_all(folder);
  fs::create_directories(folder);
  const MadeUpSource source;
  ASSERT_EQ(ExportAdapter(source, *model, pretrained->family(), "base", folder), absl::OkStatus());
  const auto file = SafetensorsFile::Open(folder + "/adapter_model.safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  const auto check = [&](const std::string& theirs, const parallel::ParameterSpec& ours,
                         int64_t expert) {
    const auto view = (*file)->Get("base_model.model.model.layers.1.mlp.experts." + theirs);
    ASSERT_TRUE(view.ok()) << view.status();
    ASSERT_EQ(view->size(0), ours.shape[1]);
    ASSERT_EQ(view->size(1), ours.shape[2]);
    const int64_t count = view->num_elements();
    for (int64_t i = 0; i < count; ++i) {
      ASSERT_EQ(static_cast<const float*>(view->data)[i], ValueOf(ours.path, expert * count + i));
    }
  };
  const parallel::LoraTarget& up = TargetOf(*model, "decoder.layers.1.moe.gate_up.weight");
  const parallel::LoraTarget& down = TargetOf(*model, "decoder.layers.1.moe.down.weight");
  for (const int64_t e : {int64_t{0}, int64_t{3}}) {
    check(absl::StrCat(e, ".up_proj.lora_A.weight"), up.a, e);
    check(absl::StrCat(e, ".up_proj.lora_B.weight"), up.b, e);
    check(absl::StrCat(e, ".down_proj.lora_A.weight"), down.a, e);
    check(absl::StrCat(e, ".down_proj.lora_B.weight"), down.b, e);
  }
  EXPECT_FALSE(
      (*file)->Has("base_model.model.model.layers.1.mlp.experts.0.gate_proj.lora_A.weight"));
}

TEST(LoraExportTest, FusedExpertsAreNoModules) {
  const auto pretrained = testing::OpenFamily("qwen3_vl_moe");
  const auto model = WithLora(*pretrained, "moe.gate");
  const absl::Status status =
      ExportAdapter(MadeUpSource(), *model, pretrained->family(), "base", ::testing::TempDir());
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("mlp.experts.gate_up_proj"), HasSubstr("leave out --adapter")));
}

}  // namespace
}  // namespace omni::trainer
