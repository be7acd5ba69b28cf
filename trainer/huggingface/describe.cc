#include "trainer/huggingface/describe.h"

#include <nlohmann/json.hpp>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "backbone/decoder.h"
#include "dataloader/tokenizer.h"
#include "encoders/qwen_audio.h"
#include "encoders/qwen_vision.h"
#include "runtime/base/file.h"
#include "runtime/base/status.h"
#include "trainer/huggingface/family_parts.h"

namespace omni::trainer {
namespace {

using backbone::DecoderConfig;
using encoders::QwenAudioConfig;
using encoders::QwenVisionConfig;
using Json = nlohmann::ordered_json;

// What the file says of a value must be what the model has: so a float is written as the shortest
// decimal that is read back as it.
double Decimal(float value) { return std::stod(absl::StrCat(value)); }

Json TextJson(const DecoderConfig& c) {
  Json json = {{"hidden_size", c.hidden},
               {"num_hidden_layers", c.layers},
               {"num_attention_heads", c.heads},
               {"num_key_value_heads", c.kv_heads},
               {"head_dim", c.head_dim},
               {"intermediate_size", c.ffn},
               {"vocab_size", c.vocab},
               {"hidden_act", "silu"},
               {"rms_norm_eps", Decimal(c.norm_eps)},
               {"rope_theta", c.rope.theta},
               {"tie_word_embeddings", c.tied_embeddings},
               {"use_sliding_window", false},
               {"max_position_embeddings", 32768}};
  const RopeScaling& scaling = c.rope.scaling;
  if (scaling.kind == RopeScaling::Kind::kLinear) {
    json["rope_scaling"] = {{"rope_type", "linear"}, {"factor", scaling.factor}};
  } else if (scaling.kind == RopeScaling::Kind::kLlama3) {
    json["rope_scaling"] = {{"rope_type", "llama3"},
                            {"factor", scaling.factor},
                            {"low_freq_factor", scaling.low_frequency_factor},
                            {"high_freq_factor", scaling.high_frequency_factor},
                            {"original_max_position_embeddings", scaling.original_positions}};
  }
  return json;
}

Json VisionJson(const QwenVisionConfig& c, const DecoderConfig& decoder, double per_second) {
  return {{"depth", c.layers},
          {"hidden_size", c.hidden},
          {"hidden_act", "silu"},
          {"intermediate_size", c.ffn},
          {"num_heads", c.heads},
          {"in_channels", c.channels},
          {"patch_size", c.patch},
          {"spatial_merge_size", c.merge},
          {"temporal_patch_size", c.temporal_patch},
          {"window_size", c.window},
          {"fullatt_block_indexes", c.full_attention_layers},
          {"out_hidden_size", decoder.hidden},
          {"tokens_per_second", per_second}};
}

Json AudioJson(const QwenAudioConfig& c, const DecoderConfig& decoder) {
  return {{"num_mel_bins", c.mel_bands},        {"d_model", c.hidden},
          {"encoder_layers", c.layers},         {"num_hidden_layers", c.layers},
          {"encoder_attention_heads", c.heads}, {"encoder_ffn_dim", c.ffn},
          {"n_window", c.chunk_frames / 2},     {"max_source_positions", c.chunk_frames / 2},
          {"activation_function", "gelu"},      {"scale_embedding", false},
          {"output_dim", decoder.hidden}};
}

// M-RoPE of the thinker. Sections that each start at the lowest frequency (per_axis) have no name
// there, but "longrope" divides every frequency by a factor of its own.
Json MropeJson(const RopeOptions& rope) {
  Json json = {{"rope_type", "default"}, {"type", "default"}, {"mrope_section", rope.sections}};
  if (rope.layout != RopeLayout::kPerAxis) return json;
  const std::vector<double> factors = LongropeFactors(rope);
  json["rope_type"] = json["type"] = "longrope";
  json["short_factor"] = json["long_factor"] = factors;
  json["factor"] = json["attention_factor"] = 1.0;
  return json;
}

// The first key with a value no family has.
absl::Status CheckText(const ConfigNode& node, const DecoderConfig& c, bool has_towers) {
  const ConfigNode rope = node.Get("rope");
  const bool is_plain = c.rope.sections.size() == 1;
  if (c.rope.layout == RopeLayout::kInterleaved ||
      (c.rope.layout == RopeLayout::kPerAxis && !has_towers && !is_plain)) {
    return rope.Get("layout").Error("can't be exported without towers; chunked can");
  }
  if (c.moe.experts > 0) {
    return node.Get("moe").Error(
        "experts can be exported only if they started from a published model");
  }
  if (c.qkv_bias && c.qk_norm) {
    return node.Get("qk_norm").Error("no family has qkv_bias and qk_norm at once");
  }
  return absl::OkStatus();
}

absl::Status CheckVision(const ConfigNode& node, const QwenVisionConfig& c) {
  if (c.rope_theta != 10000.0) {
    return node.Get("rope_theta").Error("only 10000 can be exported: transformers has it fixed");
  }
  if (c.norm_eps != 1e-6f) return node.Get("norm_eps").Error("only 1e-6 can be exported");
  if (!c.attention_bias || !c.mlp_bias) {
    return node.Get(c.mlp_bias ? "attention_bias" : "mlp_bias").Error("only true can be exported");
  }
  if (c.window == 0) return node.Get("window").Error("only windows > 0 can be exported");
  return absl::OkStatus();
}

// A tower of the recipe under `name`; nullopt if it has none.
template <typename Config>
absl::StatusOr<std::optional<Config>> ReadTower(const ConfigNode& towers, const char* name,
                                                const char* kind) {
  const ConfigNode node = towers.Get(name);
  if (node.is_null()) return std::optional<Config>();
  if (node.Get("kind").text() != kind) {
    return node.Get("kind").Error(absl::StrCat("only ", kind, " can be exported"));
  }
  Config config;
  OMNI_RETURN_IF_ERROR(Read(node, &config));
  return std::optional<Config>(config);
}

Json TextModelJson(const DecoderConfig& decoder) {
  Json json = TextJson(decoder);
  const char* architecture = decoder.qk_norm    ? "Qwen3ForCausalLM"
                             : decoder.qkv_bias ? "Qwen2ForCausalLM"
                                                : "LlamaForCausalLM";
  json["model_type"] = decoder.qk_norm ? "qwen3" : decoder.qkv_bias ? "qwen2" : "llama";
  json["architectures"] = {architecture};
  return json;
}

absl::StatusOr<Json> ThinkerJson(const Recipe& recipe, const DecoderConfig& decoder,
                                 const QwenVisionConfig& vision, const QwenAudioConfig& audio) {
  OMNI_ASSIGN_OR_RETURN(
      const auto tokenizer,
      dataloader::Tokenizer::Load(recipe.data.tokenizer, recipe.data.special_tokens));
  const dataloader::SpecialTokens& special = tokenizer->special();
  const double per_second = recipe.data.positions.positions_per_second;
  Json text = TextJson(decoder);
  text["model_type"] = "qwen2_5_omni_text";
  text["rope_scaling"] = MropeJson(decoder.rope);
  return Json{{"architectures", {"Qwen2_5OmniThinkerForConditionalGeneration"}},
              {"model_type", "qwen2_5_omni_thinker"},
              {"text_config", std::move(text)},
              {"vision_config", VisionJson(vision, decoder, per_second)},
              {"audio_config", AudioJson(audio, decoder)},
              {"image_token_index", special.image_pad},
              {"video_token_index", special.video_pad},
              {"audio_token_index", special.audio_pad},
              {"vision_start_token_id", special.vision_start},
              {"vision_end_token_id", special.vision_end},
              {"audio_start_token_id", special.audio_start},
              {"audio_end_token_id", special.audio_end},
              {"position_id_per_seconds", per_second},
              {"seconds_per_chunk", 2},
              {"tie_word_embeddings", decoder.tied_embeddings}};
}

absl::Status WriteProcessor(const Recipe& recipe, const QwenVisionConfig& vision,
                            const QwenAudioConfig& audio, const std::string& folder) {
  const Json json = {{"image_processor_type", "Qwen2VLImageProcessor"},
                     {"min_pixels", recipe.data.image.min_pixels},
                     {"max_pixels", recipe.data.image.max_pixels},
                     {"patch_size", vision.patch},
                     {"temporal_patch_size", vision.temporal_patch},
                     {"merge_size", vision.merge},
                     {"image_mean", vision.mean},
                     {"image_std", vision.std},
                     {"feature_size", audio.mel_bands},
                     {"sampling_rate", 16000},
                     {"hop_length", 160},
                     {"n_fft", 400}};
  return WriteFileAtomically(folder + "/preprocessor_config.json", json.dump(2) + "\n");
}

absl::Status WriteInputs(const Recipe& recipe, const std::string& folder) {
  OMNI_ASSIGN_OR_RETURN(const ConfigNode root, ConfigNode::Parse(recipe.yaml, "recipe"));
  const ConfigNode data = root.Get("data");
  std::string yaml = "data:\n";
  for (const char* key : {"template", "special_tokens", "image", "video", "audio",
                          "positions_per_second", "position_rule"}) {
    const ConfigNode node = data.Get(key);
    if (node.is_null()) continue;
    const std::string value(absl::StripSuffix(node.DumpYaml(), "\n"));
    absl::StrAppend(&yaml, "  ", key, ":\n    ", absl::StrReplaceAll(value, {{"\n", "\n    "}}),
                    "\n");
  }
  if (data.Get("template").is_null()) absl::StrAppend(&yaml, "  template: chatml\n");
  OMNI_RETURN_IF_ERROR(WriteFileAtomically(absl::StrCat(folder, "/", kDataOptionsFile), yaml));
  OMNI_ASSIGN_OR_RETURN(const std::string tokenizer, ReadFile(recipe.data.tokenizer));
  const bool is_json = absl::EndsWith(recipe.data.tokenizer, ".json");
  return WriteFileAtomically(absl::StrCat(folder, is_json ? "/tokenizer.json" : "/tokenizer.model"),
                             tokenizer);
}

}  // namespace

absl::Status DescribeModel(const Recipe& recipe, const std::string& folder) {
  const ConfigNode& section = recipe.model;
  DecoderConfig decoder;
  OMNI_RETURN_IF_ERROR(Read(section.Get("decoder"), &decoder));
  const ConfigNode towers = section.Get("encoders");
  OMNI_RETURN_IF_ERROR(CheckText(section.Get("decoder"), decoder, !towers.keys().empty()));
  Json json;
  if (towers.keys().empty()) {
    json = TextModelJson(decoder);
  } else {
    OMNI_ASSIGN_OR_RETURN(const auto vision,
                          ReadTower<QwenVisionConfig>(towers, "vision", "qwen_vision"));
    OMNI_ASSIGN_OR_RETURN(const auto audio,
                          ReadTower<QwenAudioConfig>(towers, "audio", "qwen_audio"));
    if (!vision.has_value() || !audio.has_value() || towers.keys().size() != 2) {
      return towers.Error("only models with encoders vision and audio, or none, can be exported");
    }
    if (!decoder.qkv_bias || decoder.qk_norm) {
      return section.Get("decoder").Error(
          "beside encoders only qkv_bias without qk_norm can be "
          "exported");
    }
    OMNI_RETURN_IF_ERROR(CheckVision(towers.Get("vision"), *vision));
    OMNI_ASSIGN_OR_RETURN(json, ThinkerJson(recipe, decoder, *vision, *audio));
    OMNI_RETURN_IF_ERROR(WriteProcessor(recipe, *vision, *audio, folder));
  }
  OMNI_RETURN_IF_ERROR(WriteInputs(recipe, folder));
  json["dtype"] = recipe.training.dtype == DType::kBFloat16 ? "bfloat16" : "float32";
  return WriteFileAtomically(folder + "/config.json", json.dump(2) + "\n");
}

}  // namespace omni::trainer
