// Cases of the tiny Qwen2.5-Omni thinker written by tools/golden/omni_thinker.py.
#pragma once

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "tests/support/model_harness.h"

namespace omni::testing {

inline constexpr char kThinkerYaml[] = R"(
decoder: {hidden: 24, layers: 2, heads: 4, kv_heads: 2, head_dim: 8, ffn: 40, vocab: 64,
          norm_eps: 1e-6, qkv_bias: true, rope: {theta: 10000, sections: [2, 1, 1]}}
encoders:
  vision: {kind: qwen_vision, hidden: 16, layers: 2, heads: 2, ffn: 20, patch: 4,
           temporal_patch: 2, merge: 2, window: 16, full_attention_layers: [1]}
  audio: {kind: qwen_audio, mel_bands: 8, hidden: 16, layers: 2, heads: 2, ffn: 40,
          chunk_frames: 200}
)";

struct GoldenCase {
  std::unique_ptr<SafetensorsFile> file;
  parallel::TokenPack tokens;
  trainer::MediaPacks media;
  double scale = 0;  // 1 / loss tokens

  template <typename T>
  std::vector<T> Values(const std::string& name) const {
    const auto view = file->Get(name);
    OMNI_CHECK_OK(view.status());
    const T* data = view->template ptr<const T>();
    return {data, data + view->num_elements()};
  }
  std::vector<double> Doubles(const std::string& name) const {
    const std::vector<float> values = Values<float>(name);
    return {values.begin(), values.end()};
  }
};

inline std::unique_ptr<SafetensorsFile> OpenGolden(const std::string& name) {
  auto file = SafetensorsFile::Open(std::string(OMNI_SOURCE_DIR) + "/tests/golden/omni_thinker/" +
                                    name + ".safetensors");
  OMNI_CHECK_OK(file.status());
  return *std::move(file);
}

inline GoldenCase LoadGoldenCase(const std::string& name, const trainer::MultimodalModel& model) {
  GoldenCase golden{OpenGolden(name), {}, {}, 0.0};
  golden.tokens.token_ids = golden.Values<int32_t>("token_ids");
  golden.tokens.targets = golden.Values<int32_t>("targets");
  golden.tokens.positions = golden.Values<float>("positions");
  golden.tokens.cu_seqlens = {0, static_cast<int32_t>(golden.tokens.num_tokens())};
  int num_targets = 0;
  for (const int32_t target : golden.tokens.targets) num_targets += target >= 0;
  golden.scale = 1.0 / num_targets;
  for (const char* encoder : {"vision", "audio"}) {
    const std::string prefix = std::string(encoder) + ".";
    if (!golden.file->Has(prefix + "payload")) continue;
    parallel::MediaPack& pack = golden.media[encoder];
    const TensorView payload = *golden.file->Get(prefix + "payload");
    pack.dtype = payload.dtype;
    pack.row_elements = static_cast<int32_t>(payload.size(1));
    const auto* bytes = static_cast<const uint8_t*>(payload.data);
    pack.payload.assign(bytes, bytes + payload.num_bytes());
    pack.token_rows = golden.Values<int32_t>(prefix + "token_rows");
    const std::vector<int32_t> grids = golden.Values<int32_t>(prefix + "items");
    int64_t row = 0;
    for (size_t i = 0; i + 2 < grids.size(); i += 3) {
      parallel::MediaItem item{.t = grids[i], .h = grids[i + 1], .w = grids[i + 2]};
      item.input_row = row;
      item.num_input_rows = item.t * std::max(1, item.h * item.w);
      item.num_output_rows = model.encoder(encoder)->NumOutputRows(item);
      row += item.num_input_rows;
      pack.items.push_back(item);
    }
  }
  return golden;
}

// `other` after `first` in the same packs.
inline void Append(const GoldenCase& other, parallel::TokenPack* tokens,
                   trainer::MediaPacks* media) {
  const auto shift = static_cast<int32_t>(tokens->num_tokens());
  std::vector<float> positions;
  for (int axis = 0; axis < 3; ++axis) {
    const auto begin = tokens->positions.begin() + axis * shift;
    positions.insert(positions.end(), begin, begin + shift);
    const int64_t num_tokens = other.tokens.num_tokens();
    const auto more = other.tokens.positions.begin() + axis * num_tokens;
    positions.insert(positions.end(), more, more + num_tokens);
  }
  tokens->positions = positions;
  const auto append = [](const auto& from, auto* to) {
    to->insert(to->end(), from.begin(), from.end());
  };
  append(other.tokens.token_ids, &tokens->token_ids);
  append(other.tokens.targets, &tokens->targets);
  if (tokens->cu_seqlens.empty()) tokens->cu_seqlens = {0};
  tokens->cu_seqlens.push_back(shift + static_cast<int32_t>(other.tokens.num_tokens()));
  for (const auto& [name, pack] : other.media) {
    parallel::MediaPack& into = (*media)[name];
    const int64_t first_row = into.num_rows();
    into.dtype = pack.dtype;
    into.row_elements = pack.row_elements;
    append(pack.payload, &into.payload);
    for (parallel::MediaItem item : pack.items) {
      item.input_row += first_row;
      into.items.push_back(item);
    }
    for (const int32_t row : pack.token_rows) into.token_rows.push_back(row + shift);
  }
}

inline constexpr const char* kGoldenCases[] = {
    "text",  "image_divisible", "image_ragged", "images_two",
    "video", "audio_099",       "audio_201",    "mixed"};

}  // namespace omni::testing
