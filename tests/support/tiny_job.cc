#include "tests/support/tiny_job.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "runtime/base/check.h"
#include "tools/data_make.h"

namespace omni::test {

const std::string& TinyData() {
  static const std::string folder = [] {
    // Not by process id: those come again, and what an earlier run left lies beside it.
    std::string path = absl::StrCat(::testing::TempDir(), "/omnitrain-tiny-XXXXXX");
    OMNI_CHECK(mkdtemp(path.data()) != nullptr);
    OMNI_CHECK_OK(tools::MakeQuickstartData({.out = path, .seed = 1, .scale = 0.02}));
    return path;
  }();
  return folder;
}

std::string TinyRecipeYaml(const TinyRecipe& recipe) {
  std::string sources, phases = recipe.phases;
  absl::string_view list = recipe.sources;
  absl::ConsumePrefix(&list, "[");
  absl::ConsumeSuffix(&list, "]");
  for (absl::string_view name : absl::StrSplit(list, ", ")) {
    absl::StrAppendFormat(&sources, "    - {name: %s, path: %s/train/%s}\n", name, TinyData(),
                          name);
  }
  return absl::StrFormat(
      R"(name: tiny
model:
  decoder: {hidden: 32, layers: 2, heads: 2, kv_heads: 1, head_dim: 16, ffn: 48, vocab: 512,
            rope: {theta: 10000, sections: [2, 3, 3]}%s}
  encoders:
    vision: {kind: qwen_vision, hidden: 32, layers: 2, heads: 2, ffn: 48, patch: 14,
             temporal_patch: 2, merge: 2, window: 56, full_attention_layers: [1]}
    audio: {kind: qwen_audio, mel_bands: 80, hidden: 32, layers: 1, heads: 2, ffn: 48,
            chunk_frames: 200}
data:
  seed: 3
  lanes: %d
  micro_batch_sequences: %d
  sequence_length: 160
  window: 12
  tokenizer: %s/tokenizer.model
  image: {min_pixels: 784, max_pixels: 100352}
  video: {fps: 8, min_frames: 4, max_frames: 4, min_pixels_per_frame: 784, max_pixels_per_frame: 3136}
  audio: {mel_bands: 80, max_seconds: 10, mask_frames: 10, mask_bands: 20}
  loader: {threads: 1, prefetch_steps: 2, memory_mib: 64}
  sources:
%s  phases: %s
training:
  steps: %d
  seed: 5
  dtype: %s
  optimizer: {kind: %s, lr: 1e-3}
  schedule: {kind: cosine, warmup_steps: 2}
  checkpoint: {every: %d, keep: 3}
%sparallel: {%sworkers: %d}
runtime: {device: %s, threads: %d, reserve_gib: 2, comm: %s, gpu_comm: %s, deadline_s: 60}
%s)",
      recipe.moe.empty() ? "" : ", moe: " + recipe.moe, recipe.lanes, recipe.micro_batch_sequences,
      TinyData(), sources, phases, recipe.steps, recipe.dtype, recipe.optimizer,
      recipe.checkpoint_every, recipe.extra_training, recipe.extra_parallel, recipe.workers,
      recipe.device, recipe.threads, recipe.comm, recipe.gpu_comm, recipe.extra);
}

std::map<int64_t, std::map<std::string, std::string>> ReadMetrics(const std::string& path) {
  std::map<int64_t, std::map<std::string, std::string>> steps;
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object() || !json.contains("loss")) continue;
    auto& values = steps[json["step"].get<int64_t>()];
    for (const auto& [name, value] : json.items()) values[name] = value.dump();
  }
  return steps;
}

}  // namespace omni::test
