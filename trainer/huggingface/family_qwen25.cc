// Qwen2.5-VL and the thinker of Qwen2.5-Omni: one vision tower, and for Omni an audio tower.
#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "trainer/huggingface/families.h"
#include "trainer/huggingface/family_parts.h"
#include "trainer/huggingface/processors.h"

namespace omni::trainer {
namespace {

// Of a mapping that newer files have under `key` and older ones have at the top.
ConfigNode Nested(const ConfigNode& config, const std::string& key) {
  const ConfigNode node = config.Get(key);
  return node.is_map() ? node : config;
}

}  // namespace

absl::StatusOr<FamilyModel> ReadQwen25Vl(const FamilyInput& input) {
  OMNI_ASSIGN_OR_RETURN(
      const backbone::DecoderConfig decoder,
      ReadTextConfig(Nested(input.config, "text_config"), input.config, {.qkv_bias = true}));
  const ConfigNode vision_node = input.config.Get("vision_config");
  OMNI_ASSIGN_OR_RETURN(const encoders::QwenVisionConfig vision,
                        ReadQwenVisionConfig(input, vision_node));
  OMNI_ASSIGN_OR_RETURN(const std::string media, VisionDataYaml(input, Qwen25VisionProcessor()));
  FamilyModel model{.family = "qwen2_5_vl",
                    .model_yaml = absl::StrCat("decoder: ", ToYaml(decoder),
                                               "\nencoders:\n  vision: ", ToYaml(vision), "\n"),
                    .data_yaml = absl::StrCat(
                        "{position_rule: qwen2_5_whole, positions_per_second: ",
                        ConfigKeys(vision_node).Int("tokens_per_second", 2), ", ", media, "}"),
                    .chat_template = "qwen2_vl",
                    .left_out = {},
                    .memory_prefixes = {},
                    .unread = {}};
  // As on the hub; transformers 5 keeps both under "model.", as transformers 4 does in memory.
  const bool nested = input.has_tensor("model.language_model.embed_tokens.weight");
  if (!nested) {
    model.memory_prefixes = {{"visual.", "model.visual."}, {"model.", "model.language_model."}};
  }
  MapDecoder(decoder, nested ? "model.language_model." : "model.", "lm_head.weight",
             &model.tensors);
  MapQwenVision(vision, decoder.hidden, nested ? "model.visual." : "visual.", /*fused_qkv=*/true,
                &model.tensors);
  return model;
}

absl::StatusOr<FamilyModel> ReadQwen25Omni(const FamilyInput& input) {
  const bool whole = input.config.Get("thinker_config").is_map();
  const ConfigNode thinker = Nested(input.config, "thinker_config");
  const std::string prefix = whole ? "thinker." : "";
  OMNI_ASSIGN_OR_RETURN(const backbone::DecoderConfig decoder,
                        ReadTextConfig(thinker.Get("text_config"), thinker, {.qkv_bias = true}));
  OMNI_ASSIGN_OR_RETURN(const encoders::QwenVisionConfig vision,
                        ReadQwenVisionConfig(input, thinker.Get("vision_config")));
  OMNI_ASSIGN_OR_RETURN(encoders::QwenAudioConfig audio,
                        ReadQwenAudioConfig(thinker.Get("audio_config")));
  ConfigKeys processor(input.processor);
  audio.window_frames = 100 * processor.Int("chunk_length", 300);  // of 10 ms
  OMNI_RETURN_IF_ERROR(processor.status());
  OMNI_ASSIGN_OR_RETURN(const std::string media, VisionDataYaml(input, Qwen25OmniProcessor()));
  OMNI_ASSIGN_OR_RETURN(const std::string sound,
                        AudioDataYaml(input, audio.mel_bands, /*window_s=*/300));
  FamilyModel model{
      .family = "qwen2_5_omni",
      .model_yaml = absl::StrCat("decoder: ", ToYaml(decoder), "\nencoders:\n  vision: ",
                                 ToYaml(vision), "\n  audio: ", ToYaml(audio), "\n"),
      .data_yaml = absl::StrCat(
          "{positions_per_second: ", ConfigKeys(thinker).Int("position_id_per_seconds", 25), ", ",
          media, ", ", sound, "}"),
      .chat_template = "qwen2_5_omni",
      .left_out = {"talker.", "token2wav."},
      .memory_prefixes = {},
      .unread = {{prefix + "audio_tower.audio_bos_eos_token.weight", {2, decoder.hidden}}}};
  MapDecoder(decoder, prefix + "model.", prefix + "lm_head.weight", &model.tensors);
  MapQwenVision(vision, decoder.hidden, prefix + "visual.", /*fused_qkv=*/false, &model.tensors);
  MapWhisper(audio, decoder.hidden,
             {.prefix = prefix + "audio_tower.",
              .post_norm = prefix + "audio_tower.ln_post",
              .projector = prefix + "audio_tower.proj"},
             &model.tensors);
  return model;
}

}  // namespace omni::trainer
