// Text models: Qwen2 and 2.5, Qwen3, Qwen3-MoE, Llama 3. They differ in a few switches.
#include "runtime/base/status.h"
#include "trainer/huggingface/families.h"
#include "trainer/huggingface/family_parts.h"

namespace omni::trainer {
namespace {

absl::StatusOr<FamilyModel> ReadText(const FamilyInput& input, const char* family,
                                     const char* chat_template, const TextTraits& traits) {
  OMNI_ASSIGN_OR_RETURN(backbone::DecoderConfig decoder,
                        ReadTextConfig(input.config, input.config, traits));
  if (traits.moe) OMNI_RETURN_IF_ERROR(ReadMoeConfig(input.config, &decoder));
  FamilyModel model{.family = family,
                    .model_yaml = absl::StrCat("decoder: ", ToYaml(decoder), "\n"),
                    .data_yaml = "{position_rule: sequential}",
                    .chat_template = chat_template,
                    .left_out = {},
                    .memory_prefixes = {},
                    .unread = {}};
  MapDecoder(decoder, "model.", "lm_head.weight", &model.tensors);
  return model;
}

}  // namespace

absl::StatusOr<FamilyModel> ReadQwen2(const FamilyInput& input) {
  return ReadText(input, "qwen2", "qwen2", {.qkv_bias = true});
}

absl::StatusOr<FamilyModel> ReadQwen3(const FamilyInput& input) {
  return ReadText(input, "qwen3", "qwen3", {.qk_norm = true});
}

absl::StatusOr<FamilyModel> ReadQwen3Moe(const FamilyInput& input) {
  return ReadText(input, "qwen3_moe", "qwen3", {.qk_norm = true, .moe = true});
}

absl::StatusOr<FamilyModel> ReadLlama(const FamilyInput& input) {
  return ReadText(input, "llama", "llama3", {});
}

}  // namespace omni::trainer
