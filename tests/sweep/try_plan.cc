// try_plan 'workers: 2, tensor: 2' ['tied=1 moe=1 ...']: one plan against one rank. For
// development.
#include <cstdio>
#include <map>

#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "tests/support/tiny_job.h"
#include "tests/sweep/plan_run.h"

namespace omni::test {
namespace {

std::string Recipe(const std::string& parallel, const std::map<std::string, std::string>& o) {
  const auto get = [&](const char* key, const char* fallback) {
    return o.count(key) ? o.at(key) : std::string(fallback);
  };
  const std::string moe =
      get("moe", "0") == "1"
          ? ", moe: {experts: 4, top_k: 2, ffn: 24, shared_ffn: 16, shared_gate: true, "
            "dense_layers: [0], "
            "balance_loss: {coefficient: 0.02}, z_loss: 1e-3, bias_update_rate: 1e-3}"
          : "";
  const std::string vision = get("deepstack", "0") == "1"
                                 ? "{kind: qwen3_vision, hidden: 32, layers: 3, heads: 4, ffn: 48, "
                                   "patch: 14, temporal_patch: 2, "
                                   "merge: 2, position_side: 8, deepstack_layers: [0, 1]}"
                                 : "{kind: qwen_vision, hidden: 32, layers: 2, heads: 4, ffn: 48, "
                                   "patch: 14, temporal_patch: 2, "
                                   "merge: 2, window: 56, full_attention_layers: [1]}";
  return absl::StrFormat(
      R"(name: sweep
model:
  decoder: {hidden: 32, layers: %s, heads: %s, kv_heads: %s, head_dim: 8, ffn: 48, vocab: 512, tied_embeddings: %s,
            qk_norm: %s, rope: {theta: 10000, sections: [1, 1, 2]}%s}
  encoders:
    vision: %s
    audio: {kind: qwen_audio, mel_bands: 80, hidden: 32, layers: 1, heads: 2, ffn: 48, chunk_frames: 200}
%s
data:
  seed: 3
  lanes: %s
  sequence_length: 160
  window: 12
  tokenizer: %s/tokenizer.model
  image: {min_pixels: 784, max_pixels: 100352}
  video: {fps: 8, min_frames: 4, max_frames: 4, min_pixels_per_frame: 784, max_pixels_per_frame: 3136}
  audio: {mel_bands: 80, max_seconds: 10, mask_frames: 10, mask_bands: 20}
  loader: {threads: 1, prefetch_steps: 2, memory_mib: 64}
  sources:
    - {name: image, path: %s/train/image}
    - {name: audio, path: %s/train/audio}
    - {name: video, path: %s/train/video}
    - {name: text, path: %s/train/text}
    - {name: mixed, path: %s/train/mixed}
training:
  steps: 3
  seed: 5
  dtype: %s
  optimizer: {kind: %s, lr: 1e-3}
  schedule: {kind: constant, warmup_steps: 0}
%s
parallel: {%s}
runtime: {device: %s, threads: 1, reserve_gib: 2, comm: shm, deadline_s: 20}
)",
      get("layers", "4"), get("heads", "4"), get("kv", "2"),
      get("tied", "0") == "1" ? "true" : "false", get("qk_norm", "0") == "1" ? "true" : "false",
      moe, vision, absl::StrReplaceAll(get("lora", ""), {{"_", " "}}), get("lanes", "5"),
      TinyData(), TinyData(), TinyData(), TinyData(), TinyData(), TinyData(), get("dtype", "fp64"),
      get("opt", "adamw"), absl::StrReplaceAll(get("training", ""), {{"_", " "}}), parallel,
      get("device", "cpu"));
}

int Main(int argc, char** argv) {
  std::map<std::string, std::string> options;
  if (argc > 2) {
    for (absl::string_view pair : absl::StrSplit(argv[2], ' ', absl::SkipEmpty())) {
      const std::pair<std::string, std::string> kv = absl::StrSplit(pair, absl::MaxSplits('=', 1));
      options[kv.first] = kv.second;
    }
  }
  const auto one = RunPlan(Recipe("workers: 1", options), "shm", 3);
  if (!one.ok()) return std::printf("one rank: %s\n", one.status().ToString().c_str()), 2;
  const auto run = RunPlan(Recipe(argv[1], options), "shm", 3);
  if (!run.ok()) return std::printf("%s: %s\n", argv[1], run.status().ToString().c_str()), 2;
  const WorstError worst = Compare(*run, *one, 1e-6);
  std::printf("%s %s: loss %.6f (one rank %.6f), worst %.3g at %s\n", argv[1],
              argc > 2 ? argv[2] : "", run->losses.back(), one->losses.back(), worst.value,
              worst.where.c_str());
  return worst.value <= 1e-9 ? 0 : 1;
}

}  // namespace
}  // namespace omni::test

int main(int argc, char** argv) { return omni::test::Main(argc, argv); }
