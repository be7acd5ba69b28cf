// Parts that families share: configurations out of config.json, their YAML, their tensors.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "backbone/decoder.h"
#include "encoders/qwen_audio.h"
#include "encoders/qwen_vision.h"
#include "trainer/huggingface/config_keys.h"
#include "trainer/huggingface/family.h"

namespace omni::trainer {

// What differs between text models and is not in config.json.
struct TextTraits {
  bool qkv_bias = false;
  bool qk_norm = false;
  bool moe = false;
  double rope_theta = 10000.0;                    // where the file has none
  RopeLayout rope_layout = RopeLayout::kChunked;  // of M-RoPE sections, where there are any
  // Sizes where the file has none; 0: it must.
  int32_t hidden = 0, layers = 0, heads = 0, ffn = 0, vocab = 0;
};

// `text`: the mapping with hidden_size and so on; `root`: the whole file, whose
// tie_word_embeddings counts where `text` has none.
absl::StatusOr<backbone::DecoderConfig> ReadTextConfig(const ConfigNode& text,
                                                       const ConfigNode& root,
                                                       const TextTraits& traits);
absl::StatusOr<encoders::QwenVisionConfig> ReadQwenVisionConfig(const FamilyInput& input,
                                                                const ConfigNode& vision);
absl::StatusOr<encoders::QwenAudioConfig> ReadQwenAudioConfig(const ConfigNode& audio);
// What all Whisper-like towers have.
absl::Status ReadWhisperConfig(const ConfigNode& audio, encoders::WhisperTowerConfig* out);

// The keys of a mixture of experts into `config`: num_experts and so on, where there are any.
absl::Status ReadMoeConfig(const ConfigNode& text, backbone::DecoderConfig* config);

// Sections of a recipe, in flow style.
std::string ToYaml(const backbone::DecoderConfig& config);
std::string ToYaml(const encoders::QwenVisionConfig& config);
std::string ToYaml(const encoders::QwenAudioConfig& config);
// "mel_bands: 128, hidden: ...": of all Whisper-like towers.
std::string WhisperYaml(const encoders::WhisperTowerConfig& config);
std::string YamlList(const std::vector<int32_t>& values);
std::string YamlList(const std::vector<double>& values);  // exact

enum class ExpertLayout : uint8_t {
  kSeparate,  // experts.E.gate_proj, up_proj, down_proj, each as a linear map's weight
  kFused,     // experts.gate_up_proj [E, H, 2 I] and down_proj [E, I, H]: x @ W, so transposed
};
// `prefix`: of the text model's tensors ("model."); `head`: "lm_head.weight".
void MapDecoder(const backbone::DecoderConfig& config, const std::string& prefix,
                const std::string& head, TensorMap* map,
                ExpertLayout experts = ExpertLayout::kSeparate);
// `fused_qkv`: one attn.qkv, else attn.q, attn.k and attn.v.
void MapQwenVision(const encoders::QwenVisionConfig& config, int64_t output_hidden,
                   const std::string& prefix, bool fused_qkv, TensorMap* map);
// Names of a Whisper-like tower's ends, which differ between families.
struct WhisperNames {
  std::string prefix;     // "audio_tower."
  std::string post_norm;  // "audio_tower.ln_post"
  std::string projector;
};
void MapWhisper(const encoders::WhisperTowerConfig& config, int64_t output_hidden,
                const WhisperNames& names, TensorMap* map);

// What transformers' "longrope" divides the frequencies theta^(-i/n) by to get those of `rope`.
std::vector<double> LongropeFactors(const RopeOptions& rope);

// torch_dtype, or dtype since transformers 4.56; fp32 where the file has none.
absl::StatusOr<DType> ReadStoredType(const ConfigNode& config);

}  // namespace omni::trainer
