#include "trainer/huggingface/family_parts.h"

#include <cmath>
#include <cstdlib>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "runtime/base/status.h"

namespace omni::trainer {

using backbone::DecoderConfig;
using encoders::QwenAudioConfig;
using encoders::QwenVisionConfig;

std::vector<double> LongropeFactors(const RopeOptions& rope) {
  double total = 0;
  for (const int32_t section : rope.sections) total += section;
  std::vector<double> factors;
  for (const int32_t section : rope.sections) {
    for (int32_t i = 0; i < section; ++i) {
      const auto index = static_cast<double>(factors.size());
      factors.push_back(std::pow(rope.theta, i / static_cast<double>(section) - index / total));
    }
  }
  return factors;
}

namespace {

// rope_scaling until transformers 4, rope_parameters (with the base in it) since 5.
absl::Status ReadRope(ConfigKeys& text, const TextTraits& traits, RopeOptions* rope) {
  ConfigKeys scaling(text.Has("rope_parameters") ? text.Get("rope_parameters")
                                                 : text.Get("rope_scaling"));
  rope->theta = scaling.Number("rope_theta", text.Number("rope_theta", traits.rope_theta));
  rope->layout = scaling.Bool("mrope_interleaved", traits.rope_layout == RopeLayout::kInterleaved)
                     ? RopeLayout::kInterleaved
                     : traits.rope_layout;
  rope->sections = scaling.Ints("mrope_section", {});
  const std::string type = scaling.Text("rope_type", scaling.Text("type", "default"));
  if (type == "linear") {
    rope->scaling = {.kind = RopeScaling::Kind::kLinear, .factor = scaling.Number("factor", 1)};
  } else if (type == "llama3") {
    rope->scaling = {.kind = RopeScaling::Kind::kLlama3,
                     .factor = scaling.Number("factor", 8),
                     .low_frequency_factor = scaling.Number("low_freq_factor", 1),
                     .high_frequency_factor = scaling.Number("high_freq_factor", 4),
                     .original_positions = scaling.Int("original_max_position_embeddings", 8192)};
  } else if (type == "longrope") {
    // How a model of ours with per_axis sections is exported (LongropeFactors); no other is built.
    rope->layout = RopeLayout::kPerAxis;
    const std::vector<double> expected = LongropeFactors(*rope);
    const std::vector<double> found = scaling.Numbers("short_factor", {});
    bool is_per_axis = found.size() == expected.size() && !found.empty() &&
                       scaling.Numbers("long_factor", found) == found;
    for (size_t i = 0; i < found.size() && is_per_axis; ++i) {
      is_per_axis = std::abs(found[i] - expected[i]) <= 1e-6 * expected[i];
    }
    if (!is_per_axis) {
      return scaling.Get("short_factor").Error("only per-axis sections of M-RoPE are built");
    }
  } else if (type != "default" && type != "mrope") {
    return scaling.Get(scaling.Has("rope_type") ? "rope_type" : "type")
        .Error(absl::StrCat("found \"", type, "\", expected default, mrope, linear or llama3"));
  }
  return scaling.status();
}

// %.17g, but short where short is exact.
std::string Exact(double value) {
  for (int digits = 6; digits < 17; ++digits) {
    const std::string text = absl::StrFormat("%.*g", digits, value);
    if (std::strtod(text.c_str(), nullptr) == value) return text;
  }
  return absl::StrFormat("%.17g", value);
}

// A float that came from a decimal in a file is written as that decimal again.
std::string Exact(float value) { return absl::StrCat(value); }

std::string RopeYaml(const RopeOptions& rope) {
  static constexpr const char* kLayouts[] = {"chunked", "interleaved", "per_axis"};
  std::string yaml = absl::StrCat(
      "{theta: ", Exact(rope.theta), ", layout: ", kLayouts[static_cast<int>(rope.layout)],
      rope.sections.empty() ? "" : ", sections: " + YamlList(rope.sections));
  const RopeScaling& scaling = rope.scaling;
  if (scaling.kind == RopeScaling::Kind::kLinear) {
    absl::StrAppend(&yaml, ", scaling: {kind: linear, factor: ", Exact(scaling.factor), "}");
  } else if (scaling.kind == RopeScaling::Kind::kLlama3) {
    absl::StrAppend(&yaml, ", scaling: {kind: llama3, factor: ", Exact(scaling.factor),
                    ", low_frequency_factor: ", Exact(scaling.low_frequency_factor),
                    ", high_frequency_factor: ", Exact(scaling.high_frequency_factor),
                    ", original_positions: ", scaling.original_positions, "}");
  }
  return yaml + "}";
}

const char* Bool(bool value) { return value ? "true" : "false"; }

// weight and bias of a linear map or norm under the same two names.
void AddAffine(const std::string& theirs, std::vector<int64_t> weight_shape,
               const std::string& ours, TensorMap* map) {
  map->Add(theirs + ".bias", {weight_shape[0]}, ours + ".bias");
  map->Add(theirs + ".weight", std::move(weight_shape), ours + ".weight");
}

}  // namespace

std::string YamlList(const std::vector<int32_t>& values) {
  return absl::StrCat("[", absl::StrJoin(values, ", "), "]");
}

std::string YamlList(const std::vector<double>& values) {
  return absl::StrCat(
      "[",
      absl::StrJoin(values, ", ",
                    [](std::string* out, double value) { absl::StrAppend(out, Exact(value)); }),
      "]");
}

absl::StatusOr<DecoderConfig> ReadTextConfig(const ConfigNode& text, const ConfigNode& root,
                                             const TextTraits& traits) {
  ConfigKeys keys(text), root_keys(root);
  DecoderConfig config{.hidden = keys.Size("hidden_size", traits.hidden),
                       .layers = keys.Size("num_hidden_layers", traits.layers),
                       .heads = keys.Size("num_attention_heads", traits.heads),
                       .ffn = keys.Size("intermediate_size", traits.ffn),
                       .vocab = keys.Size("vocab_size", traits.vocab)};
  config.kv_heads = keys.Int("num_key_value_heads", config.heads);
  config.head_dim = keys.Int("head_dim", config.hidden / config.heads);
  config.norm_eps = static_cast<float>(keys.Number("rms_norm_eps", 1e-6));
  config.qkv_bias = traits.qkv_bias;
  config.qk_norm = traits.qk_norm;
  config.tied_embeddings =
      keys.Bool("tie_word_embeddings", root_keys.Bool("tie_word_embeddings", false));
  keys.Expect("hidden_act", "silu");
  keys.ExpectFlag("use_sliding_window", false);
  keys.ExpectFlag("mlp_bias", false);
  keys.ExpectFlag("attention_bias", false);
  keys.Keep(ReadRope(keys, traits, &config.rope));
  OMNI_RETURN_IF_ERROR(keys.status());
  OMNI_RETURN_IF_ERROR(root_keys.status());
  return config;
}

absl::Status ReadMoeConfig(const ConfigNode& text, DecoderConfig* config) {
  ConfigKeys keys(text);
  config->moe = {.experts = keys.Size("num_experts"),
                 .top_k = keys.Int("num_experts_per_tok", 8),
                 .ffn = keys.Size("moe_intermediate_size"),
                 .normalize_top_k = keys.Bool("norm_topk_prob", false),
                 .sparse_step = keys.Int("decoder_sparse_step", 1),
                 .dense_layers = keys.Ints("mlp_only_layers", {}),
                 .balance_coefficient = keys.Number("router_aux_loss_coef", 0.001)};
  return keys.status();
}

absl::StatusOr<QwenVisionConfig> ReadQwenVisionConfig(const FamilyInput& input,
                                                      const ConfigNode& vision) {
  ConfigKeys keys(vision), processor(input.processor);
  QwenVisionConfig config;
  config.hidden = keys.Size("hidden_size");
  config.layers = keys.Size("depth");
  config.heads = keys.Size("num_heads");
  config.ffn = keys.Size("intermediate_size");
  config.channels = keys.Int("in_channels", keys.Int("in_chans", 3));
  config.patch = keys.Int("patch_size", 14);
  config.temporal_patch = keys.Int("temporal_patch_size", 2);
  config.merge = keys.Int("spatial_merge_size", 2);
  config.window = keys.Int("window_size", 112);
  config.full_attention_layers = keys.Ints("fullatt_block_indexes", {7, 15, 23, 31});
  config.mean = processor.Numbers("image_mean", config.mean);
  config.std = processor.Numbers("image_std", config.std);
  keys.Expect("hidden_act", "silu");
  OMNI_RETURN_IF_ERROR(keys.status());
  OMNI_RETURN_IF_ERROR(processor.status());
  return config;
}

absl::Status ReadWhisperConfig(const ConfigNode& audio, encoders::WhisperTowerConfig* out) {
  ConfigKeys keys(audio);
  out->mel_bands = keys.Int("num_mel_bins", 128);
  out->hidden = keys.Size("d_model");
  out->layers = keys.Size("encoder_layers");
  out->heads = keys.Size("encoder_attention_heads");
  out->ffn = keys.Size("encoder_ffn_dim");
  keys.Expect("activation_function", "gelu");
  keys.ExpectFlag("scale_embedding", false);
  return keys.status();
}

absl::StatusOr<QwenAudioConfig> ReadQwenAudioConfig(const ConfigNode& audio) {
  QwenAudioConfig config;
  OMNI_RETURN_IF_ERROR(ReadWhisperConfig(audio, &config));
  ConfigKeys keys(audio);
  config.chunk_frames = 2 * keys.Int("n_window", 100);
  OMNI_RETURN_IF_ERROR(keys.status());
  return config;
}

namespace {

std::string MoeYaml(const backbone::MoeConfig& c) {
  return absl::StrCat("{experts: ", c.experts, ", top_k: ", c.top_k, ", ffn: ", c.ffn,
                      ", normalize_top_k: ", Bool(c.normalize_top_k),
                      ", sparse_step: ", c.sparse_step,
                      ", dense_layers: ", YamlList(c.dense_layers),
                      ", balance_loss: {coefficient: ", Exact(c.balance_coefficient), "}}");
}

void MapExperts(const DecoderConfig& config, const std::string& theirs, const std::string& ours,
                ExpertLayout layout, TensorMap* map) {
  const int64_t hidden = config.hidden, ffn = config.moe.ffn, experts = config.moe.experts;
  map->Add(theirs + "gate.weight", {experts, hidden}, ours + "router.weight");
  if (layout == ExpertLayout::kFused) {
    map->Add({.name = theirs + "experts.gate_up_proj",
              .shape = {experts, hidden, 2 * ffn},
              .path = ours + "gate_up.weight",
              .transposed = true});
    map->Add({.name = theirs + "experts.down_proj",
              .shape = {experts, ffn, hidden},
              .path = ours + "down.weight",
              .transposed = true});
    return;
  }
  std::vector<std::pair<std::string, std::vector<int64_t>>> gate_up, down;
  for (int64_t e = 0; e < experts; ++e) {
    const std::string expert = absl::StrCat(theirs, "experts.", e, ".");
    gate_up.push_back({expert + "gate_proj.weight", {ffn, hidden}});
    gate_up.push_back({expert + "up_proj.weight", {ffn, hidden}});
    down.push_back({expert + "down_proj.weight", {hidden, ffn}});
  }
  map->AddStack(gate_up, ours + "gate_up.weight");
  map->AddStack(down, ours + "down.weight");
}

}  // namespace

std::string ToYaml(const DecoderConfig& c) {
  return absl::StrCat("{hidden: ", c.hidden, ", layers: ", c.layers, ", heads: ", c.heads,
                      ", kv_heads: ", c.kv_heads, ", head_dim: ", c.head_dim, ", ffn: ", c.ffn,
                      ", vocab: ", c.vocab, ", norm_eps: ", Exact(c.norm_eps),
                      ", qkv_bias: ", Bool(c.qkv_bias), ", qk_norm: ", Bool(c.qk_norm),
                      ", tied_embeddings: ", Bool(c.tied_embeddings), ", rope: ", RopeYaml(c.rope),
                      c.moe.experts == 0 ? "" : ", moe: " + MoeYaml(c.moe), "}");
}

std::string ToYaml(const QwenVisionConfig& c) {
  return absl::StrCat("{kind: qwen_vision, hidden: ", c.hidden, ", layers: ", c.layers,
                      ", heads: ", c.heads, ", ffn: ", c.ffn, ", channels: ", c.channels,
                      ", patch: ", c.patch, ", temporal_patch: ", c.temporal_patch,
                      ", merge: ", c.merge, ", window: ", c.window,
                      ", full_attention_layers: ", YamlList(c.full_attention_layers),
                      ", rope_theta: ", Exact(c.rope_theta), ", norm_eps: ", Exact(c.norm_eps),
                      ", mean: ", YamlList(c.mean), ", std: ", YamlList(c.std), "}");
}

std::string WhisperYaml(const encoders::WhisperTowerConfig& c) {
  return absl::StrCat("mel_bands: ", c.mel_bands, ", hidden: ", c.hidden, ", layers: ", c.layers,
                      ", heads: ", c.heads, ", ffn: ", c.ffn);
}

std::string ToYaml(const QwenAudioConfig& c) {
  return absl::StrCat("{kind: qwen_audio, ", WhisperYaml(c), ", chunk_frames: ", c.chunk_frames,
                      ", window_frames: ", c.window_frames, "}");
}

void MapDecoder(const DecoderConfig& config, const std::string& prefix, const std::string& head,
                TensorMap* map, ExpertLayout experts) {
  const int64_t hidden = config.hidden, q = config.q_size(), kv = config.kv_size();
  const int64_t ffn = config.ffn;
  map->Add(prefix + "embed_tokens.weight", {config.vocab, hidden}, "decoder.embedding.weight");
  for (int32_t i = 0; i < config.layers; ++i) {
    const std::string theirs = absl::StrCat(prefix, "layers.", i, ".");
    const std::string ours = absl::StrCat("decoder.layers.", i, ".");
    const std::string attention = theirs + "self_attn.";
    map->Add(theirs + "input_layernorm.weight", {hidden}, ours + "input_norm.weight");
    map->AddStack({{attention + "q_proj.weight", {q, hidden}},
                   {attention + "k_proj.weight", {kv, hidden}},
                   {attention + "v_proj.weight", {kv, hidden}}},
                  ours + "attention.qkv.weight");
    if (config.qkv_bias) {
      map->AddStack({{attention + "q_proj.bias", {q}},
                     {attention + "k_proj.bias", {kv}},
                     {attention + "v_proj.bias", {kv}}},
                    ours + "attention.qkv.bias");
    }
    if (config.qk_norm) {
      map->Add(attention + "q_norm.weight", {config.head_dim}, ours + "attention.q_norm.weight");
      map->Add(attention + "k_norm.weight", {config.head_dim}, ours + "attention.k_norm.weight");
    }
    map->Add(attention + "o_proj.weight", {hidden, q}, ours + "attention.output.weight");
    map->Add(theirs + "post_attention_layernorm.weight", {hidden}, ours + "mlp_norm.weight");
    if (config.moe.IsMoe(i)) {
      MapExperts(config, theirs + "mlp.", ours + "moe.", experts, map);
      continue;
    }
    map->AddStack({{theirs + "mlp.gate_proj.weight", {ffn, hidden}},
                   {theirs + "mlp.up_proj.weight", {ffn, hidden}}},
                  ours + "mlp.gate_up.weight");
    map->Add(theirs + "mlp.down_proj.weight", {hidden, ffn}, ours + "mlp.down.weight");
  }
  map->Add(prefix + "norm.weight", {hidden}, "decoder.norm.weight");
  if (!config.tied_embeddings) map->Add(head, {config.vocab, hidden}, "decoder.head.weight");
}

void MapQwenVision(const QwenVisionConfig& config, int64_t output_hidden, const std::string& prefix,
                   bool fused_qkv, TensorMap* map) {
  const int64_t hidden = config.hidden, ffn = config.ffn, patch = config.patch;
  const int64_t merged = hidden * config.merge * config.merge;
  map->Add(prefix + "patch_embed.proj.weight",
           {hidden, config.channels, config.temporal_patch, patch, patch},
           "vision.patch_embed.weight");
  for (int32_t i = 0; i < config.layers; ++i) {
    const std::string theirs = absl::StrCat(prefix, "blocks.", i, ".");
    const std::string ours = absl::StrCat("vision.blocks.", i, ".");
    map->Add(theirs + "norm1.weight", {hidden}, ours + "attention_norm.weight");
    map->Add(theirs + "norm2.weight", {hidden}, ours + "mlp_norm.weight");
    if (fused_qkv) {
      AddAffine(theirs + "attn.qkv", {3 * hidden, hidden}, ours + "attention.qkv", map);
    } else {
      for (const auto& [kind, shape] :
           {std::pair{".weight", std::vector<int64_t>{hidden, hidden}}, {".bias", {hidden}}}) {
        map->AddStack({{theirs + "attn.q" + kind, shape},
                       {theirs + "attn.k" + kind, shape},
                       {theirs + "attn.v" + kind, shape}},
                      ours + "attention.qkv" + kind);
      }
    }
    AddAffine(theirs + "attn.proj", {hidden, hidden}, ours + "attention.output", map);
    for (const auto& [kind, shape] :
         {std::pair{".weight", std::vector<int64_t>{ffn, hidden}}, {".bias", {ffn}}}) {
      map->AddStack(
          {{theirs + "mlp.gate_proj" + kind, shape}, {theirs + "mlp.up_proj" + kind, shape}},
          ours + "mlp.gate_up" + kind);
    }
    AddAffine(theirs + "mlp.down_proj", {hidden, ffn}, ours + "mlp.down", map);
  }
  map->Add(prefix + "merger.ln_q.weight", {hidden}, "vision.merger.norm.weight");
  AddAffine(prefix + "merger.mlp.0", {merged, merged}, "vision.merger.fc1", map);
  AddAffine(prefix + "merger.mlp.2", {output_hidden, merged}, "vision.merger.fc2", map);
}

void MapWhisper(const encoders::WhisperTowerConfig& config, int64_t output_hidden,
                const WhisperNames& names, TensorMap* map) {
  const std::string& prefix = names.prefix;
  constexpr int64_t kKernel = 3;
  const int64_t hidden = config.hidden, ffn = config.ffn;
  map->Add(prefix + "conv1.weight", {hidden, config.mel_bands, kKernel}, "audio.conv1.weight");
  map->Add(prefix + "conv1.bias", {hidden}, "audio.conv1.bias");
  map->Add(prefix + "conv2.weight", {hidden, hidden, kKernel}, "audio.conv2.weight");
  map->Add(prefix + "conv2.bias", {hidden}, "audio.conv2.bias");
  const auto add_norm = [&](const std::string& theirs, const std::string& ours) {
    map->Add(theirs + ".weight", {hidden}, ours + ".weight");
    map->Add(theirs + ".bias", {hidden}, ours + ".bias");
  };
  for (int32_t i = 0; i < config.layers; ++i) {
    const std::string theirs = absl::StrCat(prefix, "layers.", i, ".");
    const std::string ours = absl::StrCat("audio.layers.", i, ".");
    const std::string attention = theirs + "self_attn.";
    add_norm(theirs + "self_attn_layer_norm", ours + "attention_norm");
    map->AddStack({{attention + "q_proj.weight", {hidden, hidden}},
                   {attention + "v_proj.weight", {hidden, hidden}}},
                  ours + "attention.qv.weight");
    map->AddStack({{attention + "q_proj.bias", {hidden}}, {attention + "v_proj.bias", {hidden}}},
                  ours + "attention.qv.bias");
    map->Add(attention + "k_proj.weight", {hidden, hidden}, ours + "attention.k.weight");
    AddAffine(attention + "out_proj", {hidden, hidden}, ours + "attention.output", map);
    add_norm(theirs + "final_layer_norm", ours + "mlp_norm");
    AddAffine(theirs + "fc1", {ffn, hidden}, ours + "mlp.fc1", map);
    AddAffine(theirs + "fc2", {hidden, ffn}, ours + "mlp.fc2", map);
  }
  add_norm(names.post_norm, "audio.post_norm");
  AddAffine(names.projector, {output_hidden, hidden}, "audio.projector", map);
}

absl::StatusOr<DType> ReadStoredType(const ConfigNode& config) {
  for (const char* key : {"dtype", "torch_dtype"}) {
    const ConfigNode node = config.Get(key);
    if (node.is_null()) continue;
    if (node.text() == "float32") return DType::kFloat32;
    if (node.text() == "bfloat16") return DType::kBFloat16;
    if (node.text() == "float64") return DType::kFloat64;
    return node.Error(
        absl::StrCat("found \"", node.text(), "\", expected bfloat16, float32 or float64"));
  }
  return DType::kFloat32;
}

}  // namespace omni::trainer
