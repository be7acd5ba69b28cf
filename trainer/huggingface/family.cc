#include "trainer/huggingface/family.h"

#include "absl/strings/str_join.h"
#include "runtime/base/status.h"
#include "trainer/huggingface/families.h"
#include "trainer/huggingface/family_parts.h"

namespace omni::trainer {
namespace {

struct Family {
  const char* architecture;
  const char* model_type;
  absl::StatusOr<FamilyModel> (*read)(const FamilyInput& input);
};

constexpr Family kFamilies[] = {
    {"Qwen2ForCausalLM", "qwen2", ReadQwen2},
    {"Qwen3ForCausalLM", "qwen3", ReadQwen3},
    {"Qwen3MoeForCausalLM", "qwen3_moe", ReadQwen3Moe},
    {"LlamaForCausalLM", "llama", ReadLlama},
    {"Qwen3VLForConditionalGeneration", "qwen3_vl", ReadQwen3Vl},
    {"Qwen3VLMoeForConditionalGeneration", "qwen3_vl_moe", ReadQwen3VlMoe},
    {"Qwen2AudioForConditionalGeneration", "qwen2_audio", ReadQwen2Audio},
    {"Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl", ReadQwen25Vl},
    {"Qwen2_5OmniThinkerForConditionalGeneration", "qwen2_5_omni_thinker", ReadQwen25Omni},
    {"Qwen2_5OmniForConditionalGeneration", "qwen2_5_omni", ReadQwen25Omni},
    {"Qwen2_5OmniModel", "qwen2_5_omni", ReadQwen25Omni},
};

std::vector<std::string> Known(const char* Family::*name) {
  std::vector<std::string> known;
  for (const Family& family : kFamilies) known.push_back(family.*name);
  return known;
}

const Family* FindFamily(const std::string& name, const char* Family::*by) {
  for (const Family& family : kFamilies) {
    if (family.*by == name) return &family;
  }
  return nullptr;
}

}  // namespace

std::vector<std::string> ReferenceLossOverrides(const ConfigNode& config) {
  const ConfigNode nested = config.Get("text_config");
  const ConfigNode text = nested.is_map() ? nested : config;
  if (text.Get("num_experts").is_null()) return {};
  ConfigKeys keys(text);
  const bool adds = keys.Bool("output_router_logits", false);
  const double coefficient = adds ? keys.Number("router_aux_loss_coef", 0.001) : 0.0;
  return {absl::StrCat(
      "model.decoder.moe.balance_loss={mode: reference, coefficient: ", coefficient, "}")};
}

absl::StatusOr<FamilyModel> ReadFamily(const FamilyInput& input) {
  const std::vector<ConfigNode> architectures = input.config.Get("architectures").items();
  const ConfigNode named =
      architectures.empty() ? input.config.Get("model_type") : architectures[0];
  const auto by = architectures.empty() ? &Family::model_type : &Family::architecture;
  OMNI_ASSIGN_OR_RETURN(const std::string name, named.AsString());
  const Family* family = FindFamily(name, by);
  if (family == nullptr) {
    const std::vector<std::string> known = Known(by);
    const std::string nearest = NearestName(name, known);
    return named.Error(
        absl::StrCat("unknown family \"", name, "\"; ",
                     nearest.empty() ? "" : absl::StrCat("the nearest is \"", nearest, "\"; "),
                     "known: ", absl::StrJoin(known, ", ")));
  }
  OMNI_ASSIGN_OR_RETURN(FamilyModel model, family->read(input));
  OMNI_ASSIGN_OR_RETURN(model.dtype, ReadStoredType(input.config));
  return model;
}

}  // namespace omni::trainer
