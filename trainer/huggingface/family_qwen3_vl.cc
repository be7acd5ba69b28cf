// Qwen3-VL, dense and with experts: a tower with learned positions and DeepStack.
#include <cmath>

#include "absl/strings/str_cat.h"
#include "encoders/qwen3_vision.h"
#include "runtime/base/status.h"
#include "trainer/huggingface/families.h"
#include "trainer/huggingface/family_parts.h"
#include "trainer/huggingface/processors.h"

namespace omni::trainer {
namespace {

using encoders::Qwen3VisionConfig;

absl::StatusOr<Qwen3VisionConfig> ReadVisionConfig(const FamilyInput& input,
                                                   const ConfigNode& vision) {
  ConfigKeys keys(vision), processor(input.processor);
  Qwen3VisionConfig config;
  config.hidden = keys.Size("hidden_size");
  config.layers = keys.Size("depth");
  config.heads = keys.Size("num_heads");
  config.ffn = keys.Size("intermediate_size");
  config.channels = keys.Int("in_channels", 3);
  config.patch = keys.Int("patch_size", 16);
  config.temporal_patch = keys.Int("temporal_patch_size", 2);
  config.merge = keys.Int("spatial_merge_size", 2);
  const int32_t positions = keys.Int("num_position_embeddings", 2304);
  config.position_side = static_cast<int32_t>(std::lround(std::sqrt(positions)));
  config.deepstack_layers = keys.Ints("deepstack_visual_indexes", {8, 16, 24});
  config.mean = processor.Numbers("image_mean", config.mean);
  config.std = processor.Numbers("image_std", config.std);
  keys.Expect("hidden_act", "gelu_pytorch_tanh");
  if (config.position_side * config.position_side != positions) {
    keys.Keep(keys.Get("num_position_embeddings")
                  .Error(absl::StrCat("found ", positions, ", expected a square")));
  }
  OMNI_RETURN_IF_ERROR(keys.status());
  OMNI_RETURN_IF_ERROR(processor.status());
  return config;
}

std::string VisionYaml(const Qwen3VisionConfig& c) {
  return absl::StrCat("{kind: qwen3_vision, hidden: ", c.hidden, ", layers: ", c.layers,
                      ", heads: ", c.heads, ", ffn: ", c.ffn, ", channels: ", c.channels,
                      ", patch: ", c.patch, ", temporal_patch: ", c.temporal_patch,
                      ", merge: ", c.merge, ", position_side: ", c.position_side,
                      ", deepstack_layers: ", YamlList(c.deepstack_layers),
                      ", mean: ", YamlList(c.mean), ", std: ", YamlList(c.std), "}");
}

void MapVision(const Qwen3VisionConfig& config, int64_t output_hidden, TensorMap* map) {
  const int64_t hidden = config.hidden, ffn = config.ffn, patch = config.patch;
  const int64_t merged = hidden * config.merge * config.merge;
  const std::string prefix = "model.visual.";
  const auto add = [&](const std::string& theirs, std::vector<int64_t> shape,
                       const std::string& ours) {
    map->Add(prefix + theirs + ".bias", {shape[0]}, "vision." + ours + ".bias");
    map->Add(prefix + theirs + ".weight", std::move(shape), "vision." + ours + ".weight");
  };
  const auto add_merger = [&](const std::string& theirs, int64_t norm_size,
                              const std::string& ours) {
    add(theirs + ".norm", {norm_size}, ours + ".norm");
    add(theirs + ".linear_fc1", {merged, merged}, ours + ".fc1");
    add(theirs + ".linear_fc2", {output_hidden, merged}, ours + ".fc2");
  };
  add("patch_embed.proj", {hidden, config.channels, config.temporal_patch, patch, patch},
      "patch_embed");
  map->Add(prefix + "pos_embed.weight",
           {int64_t{config.position_side} * config.position_side, hidden},
           "vision.position_embed.weight");
  for (int32_t i = 0; i < config.layers; ++i) {
    const std::string block = absl::StrCat("blocks.", i, ".");
    add(block + "norm1", {hidden}, block + "attention_norm");
    add(block + "norm2", {hidden}, block + "mlp_norm");
    add(block + "attn.qkv", {3 * hidden, hidden}, block + "attention.qkv");
    add(block + "attn.proj", {hidden, hidden}, block + "attention.output");
    add(block + "mlp.linear_fc1", {ffn, hidden}, block + "mlp.fc1");
    add(block + "mlp.linear_fc2", {hidden, ffn}, block + "mlp.fc2");
  }
  add_merger("merger", hidden, "merger");
  for (size_t i = 0; i < config.deepstack_layers.size(); ++i) {
    add_merger(absl::StrCat("deepstack_merger_list.", i), merged,
               absl::StrCat("merger.deepstack.", i));
  }
}

absl::StatusOr<FamilyModel> Read(const FamilyInput& input, const char* family, bool moe) {
  const ConfigNode text = input.config.Get("text_config");
  OMNI_ASSIGN_OR_RETURN(
      backbone::DecoderConfig decoder,
      ReadTextConfig(
          text, input.config,
          {.qk_norm = true, .rope_theta = 5e6, .rope_layout = RopeLayout::kInterleaved}));
  if (moe) {
    OMNI_RETURN_IF_ERROR(ReadMoeConfig(text, &decoder));
    decoder.moe.normalize_top_k = true;  // whatever norm_topk_prob says
  }
  OMNI_ASSIGN_OR_RETURN(const Qwen3VisionConfig vision,
                        ReadVisionConfig(input, input.config.Get("vision_config")));
  OMNI_ASSIGN_OR_RETURN(const std::string media, VisionDataYaml(input, Qwen3VisionProcessor()));
  FamilyModel model{
      .family = family,
      .model_yaml = absl::StrCat("decoder: ", ToYaml(decoder),
                                 "\nencoders:\n  vision: ", VisionYaml(vision), "\n"),
      .data_yaml = absl::StrCat("{position_rule: qwen3_vl, special_tokens: "
                                "{audio_start: \"\", audio_end: \"\", audio_pad: \"\"}, ",
                                media, "}"),
      .chat_template = "chatml",
      .left_out = {},
      .memory_prefixes = {},
      .unread = {}};
  MapDecoder(decoder, "model.language_model.", "lm_head.weight", &model.tensors,
             ExpertLayout::kFused);
  MapVision(vision, decoder.hidden, &model.tensors);
  return model;
}

}  // namespace

absl::StatusOr<FamilyModel> ReadQwen3Vl(const FamilyInput& input) {
  return Read(input, "qwen3_vl", /*moe=*/false);
}

absl::StatusOr<FamilyModel> ReadQwen3VlMoe(const FamilyInput& input) {
  return Read(input, "qwen3_vl_moe", /*moe=*/true);
}

}  // namespace omni::trainer
