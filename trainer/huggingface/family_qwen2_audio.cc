// Qwen2-Audio: Whisper's encoder before Qwen2.
#include "absl/strings/str_cat.h"
#include "encoders/qwen2_audio.h"
#include "runtime/base/status.h"
#include "trainer/huggingface/families.h"
#include "trainer/huggingface/family_parts.h"
#include "trainer/huggingface/processors.h"

namespace omni::trainer {

absl::StatusOr<FamilyModel> ReadQwen2Audio(const FamilyInput& input) {
  // The published file leaves out what transformers' Qwen2Config has by default.
  OMNI_ASSIGN_OR_RETURN(const backbone::DecoderConfig decoder,
                        ReadTextConfig(input.config.Get("text_config"), input.config,
                                       {.qkv_bias = true,
                                        .hidden = 4096,
                                        .layers = 32,
                                        .heads = 32,
                                        .ffn = 22016,
                                        .vocab = 151936}));
  const ConfigNode audio_node = input.config.Get("audio_config");
  encoders::Qwen2AudioConfig audio;
  OMNI_RETURN_IF_ERROR(ReadWhisperConfig(audio_node, &audio));
  ConfigKeys keys(audio_node);
  audio.max_positions = keys.Int("max_source_positions", 1500);
  OMNI_RETURN_IF_ERROR(keys.status());
  OMNI_ASSIGN_OR_RETURN(const std::string sound,
                        AudioDataYaml(input, audio.mel_bands, /*window_s=*/30));
  FamilyModel model{.family = "qwen2_audio",
                    .model_yaml = absl::StrCat(
                        "decoder: ", ToYaml(decoder), "\nencoders:\n  audio: {kind: qwen2_audio, ",
                        WhisperYaml(audio), ", max_positions: ", audio.max_positions, "}\n"),
                    .data_yaml = absl::StrCat("{position_rule: sequential, ", sound, "}"),
                    .chat_template = "qwen2_audio",
                    .left_out = {},
                    .memory_prefixes = {},
                    .unread = {}};
  MapDecoder(decoder, "language_model.model.", "language_model.lm_head.weight", &model.tensors);
  MapWhisper(audio, decoder.hidden,
             {.prefix = "audio_tower.",
              .post_norm = "audio_tower.layer_norm",
              .projector = "multi_modal_projector.linear"},
             &model.tensors);
  model.tensors.Add("audio_tower.embed_positions.weight", {audio.max_positions, audio.hidden},
                    "audio.position_embed.weight");
  return model;
}

}  // namespace omni::trainer
