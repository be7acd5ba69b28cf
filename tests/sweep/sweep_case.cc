#include "tests/sweep/sweep_case.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace omni::test {
namespace {

// The YAML of a level.
using Fragments = std::map<std::string, std::string>;

const Fragments& Moe() {
  static const Fragments fragments = {
      {"none", ""},
      {"top1", ", moe: {experts: 4, top_k: 1, ffn: 20, balance_loss: {coefficient: 0.02}}"},
      {"shared",
       ", moe: {experts: 6, top_k: 2, ffn: 12, shared_ffn: 20, shared_gate: true, dense_layers: "
       "[0],"
       " balance_loss: {coefficient: 0.02}, z_loss: 1e-3}"},
      {"top3",
       ", moe: {experts: 6, top_k: 3, ffn: 12, normalize_top_k: false, sparse_step: 2, "
       "balance_loss: {coefficient: 0}, bias_update_rate: 1e-2}"}};
  return fragments;
}

const Fragments& Vision() {
  static const Fragments fragments = {
      {"qwen",
       "{kind: qwen_vision, hidden: 32, layers: 2, heads: 4, ffn: 36, patch: 14, temporal_patch: "
       "2, "
       "merge: 2, window: 56, full_attention_layers: [1]}"},
      {"qwen3",
       "{kind: qwen3_vision, hidden: 24, layers: 3, heads: 6, ffn: 36, patch: 14, "
       "temporal_patch: 2, merge: 2, position_side: 8, deepstack_layers: [0, 1]}"},
      {"seed",
       "{kind: seed_vision, hidden: 32, layers: 2, heads: 2, ffn: 36, patch: 14, "
       "temporal_patch: 2, merge: 2}"}};
  return fragments;
}

const Fragments& Audio() {
  static const Fragments fragments = {
      {"qwen",
       "{kind: qwen_audio, mel_bands: 80, hidden: 24, layers: 1, heads: 3, ffn: 36, "
       "chunk_frames: 200}"},
      {"qwen2",
       "{kind: qwen2_audio, mel_bands: 80, hidden: 32, layers: 1, heads: 4, ffn: 36, "
       "max_positions: 501}"}};
  return fragments;
}

std::string Modules(const Levels& job, const char* value) {
  std::vector<std::string> modules;
  const std::string& frozen = job.at("frozen");
  const auto add = [&](const char* name) {
    modules.push_back(absl::StrCat(name, ": {frozen: ", value, "}"));
  };
  const JobShape shape = ShapeOf(job);
  if (frozen == "decoder" || frozen == "thaw") add("decoder");
  if (frozen == "embedding") add("decoder.embedding");
  if (frozen == "vision" || frozen == "tower") add("vision");
  if (frozen == "encoders" || frozen == "thaw") {
    if (shape.has_vision) add("vision");
  }
  if (frozen == "encoders" && shape.has_audio) add("audio");
  if (frozen == "tower") modules.push_back("vision.merger: {frozen: false}");
  return absl::StrCat("{", absl::StrJoin(modules, ", "), "}");
}

std::string Training(const Levels& job) {
  // Beside adapters of the decoder, as is usual.
  if (job.at("lora") == "projector") return "  modules: {vision.merger: {frozen: false}}\n";
  if (job.at("frozen") == "none") return "";
  const std::string modules = Modules(job, "true");
  if (job.at("frozen") != "thaw") return absl::StrCat("  modules: ", modules, "\n");
  return absl::StrCat("  phases: [{until_step: 1, modules: ", modules, "}]\n");
}

std::string Lora(const Levels& job) {
  const std::string& lora = job.at("lora");
  if (lora == "none") return "";
  std::vector<std::string> targets;
  if (lora != "towers") targets.push_back("decoder.layers");
  const JobShape shape = ShapeOf(job);
  const bool has_towers = lora == "towers" || lora == "all";
  if (has_towers && shape.has_vision) targets.push_back("vision");
  if (has_towers && shape.has_audio) targets.push_back("audio");
  return absl::StrFormat("  lora: {rank: 3, alpha: 6, targets: [%s]}\n",
                         absl::StrJoin(targets, ", "));
}

std::string Sources(const Levels& job, const std::string& data_dir, std::string* phases) {
  const JobShape shape = ShapeOf(job);
  std::vector<std::string> names = {"text"};
  const bool all = job.at("data") != "image" && job.at("data") != "text";
  if (all || job.at("data") == "image") {
    if (shape.has_vision) names.push_back("image");
    if (shape.has_vision && all) names.push_back("video");
    if (shape.has_audio && all) names.push_back("audio");
    if (shape.has_vision && shape.has_audio) names.push_back("mixed");
  }
  if (job.at("data") == "text_first") *phases = "[{until_step: 1, weights: {text: 1}}]";
  if (job.at("data") == "few_first") {  // other programs in later steps
    *phases = absl::StrFormat("[{until_step: 1, lanes: %d}]", (shape.lanes + 1) / 2);
  }
  std::string yaml;
  for (const std::string& name : names) {
    const int weight = name == "image" && job.at("data") == "image" ? 4 : 1;
    absl::StrAppendFormat(&yaml, "    - {name: %s, path: %s/train/%s, weight: %d}\n", name,
                          data_dir, name, weight);
  }
  return yaml;
}

}  // namespace

const std::vector<Feature>& JobFeatures() {
  static const std::vector<Feature> features = {
      {"layers", {"4", "3", "5", "8"}},
      {"heads", {"4/2", "4/1", "6/3", "6/2", "6/1", "8/4", "8/2"}},
      {"tied", {"no", "yes"}},
      {"norms", {"bias", "qk_norm", "both"}},
      {"moe", {"none", "top1", "shared", "top3"}},
      {"vision", {"qwen", "qwen3", "seed", "none"}},
      {"audio", {"qwen", "qwen2", "none"}},
      {"frozen", {"none", "decoder", "embedding", "vision", "tower", "encoders", "thaw"}},
      {"lora", {"none", "decoder", "towers", "all", "projector"}},
      {"optimizer", {"adamw", "muon"}},
      {"data", {"mixed", "image", "text", "text_first", "few_first"}},
      {"lanes", {"5", "1", "2", "3", "4", "7", "8"}},
  };
  return features;
}

absl::StatusOr<Levels> ParseJob(absl::string_view text) {
  Levels job;
  for (const Feature& feature : JobFeatures()) job[feature.name] = feature.levels[0];
  for (const absl::string_view word : absl::StrSplit(text, ' ', absl::SkipEmpty())) {
    const std::pair<std::string, std::string> pair = absl::StrSplit(word, absl::MaxSplits('=', 1));
    const auto feature =
        std::find_if(JobFeatures().begin(), JobFeatures().end(),
                     [&](const Feature& candidate) { return pair.first == candidate.name; });
    if (feature == JobFeatures().end()) {
      return absl::InvalidArgumentError(absl::StrCat("no feature \"", pair.first, "\" of a job"));
    }
    if (std::find(feature->levels.begin(), feature->levels.end(), pair.second) ==
        feature->levels.end()) {
      return absl::InvalidArgumentError(absl::StrCat("found \"", word, "\", expected one of ",
                                                     absl::StrJoin(feature->levels, ", ")));
    }
    job[pair.first] = pair.second;
  }
  if (!IsJob(job)) return absl::InvalidArgumentError("these levels make no sense together");
  return job;
}

bool IsJob(const Levels& job) {
  const JobShape shape = ShapeOf(job);
  const std::string& frozen = job.at("frozen");
  const std::string& lora = job.at("lora");
  const bool has_merger = job.at("vision") == "qwen" || job.at("vision") == "qwen3";
  if ((frozen == "vision" || frozen == "tower") && !shape.has_vision) return false;
  if (frozen == "tower" && !has_merger) return false;
  if (frozen == "encoders" && !shape.has_vision && !shape.has_audio) return false;
  if (lora == "towers" && !shape.has_vision && !shape.has_audio) return false;
  if (lora == "projector" && !has_merger) return false;
  if (lora != "none" && frozen != "none") return false;  // adapters freeze the rest
  if (job.at("data") == "image" && !shape.has_vision) return false;
  return true;
}

JobShape ShapeOf(const Levels& job) {
  JobShape shape{};
  const std::vector<std::string> heads = absl::StrSplit(job.at("heads"), '/');
  const bool read = absl::SimpleAtoi(job.at("layers"), &shape.layers) &&
                    absl::SimpleAtoi(heads[0], &shape.heads) &&
                    absl::SimpleAtoi(heads[1], &shape.kv_heads) &&
                    absl::SimpleAtoi(job.at("lanes"), &shape.lanes);
  if (!read) return {};
  shape.experts = job.at("moe") == "none" ? 0 : job.at("moe") == "top1" ? 4 : 6;
  shape.has_vision = job.at("vision") != "none";
  shape.has_audio = job.at("audio") != "none";
  return shape;
}

std::string SweepPlan::ToYaml() const {
  std::vector<std::string> items = {absl::StrCat("workers: ", workers)};
  const auto add = [&](const char* key, const auto& value, const auto& standard) {
    if (value != standard) items.push_back(absl::StrCat(key, ": ", value));
  };
  add("pipeline", pipeline, 1);
  add("chunks_per_rank", chunks_per_rank, 1);
  add("schedule", schedule, std::string("1f1b"));
  if (!layers.empty()) items.push_back(absl::StrCat("layers: [", absl::StrJoin(layers, ", "), "]"));
  add("tensor", tensor, 1);
  if (context > 1) {
    items.push_back(absl::StrFormat("context: {degree: %d, kind: %s, threshold: %d}", context,
                                    context_kind, ring_threshold));
  }
  add("expert", expert, 1);
  add("recompute", recompute, std::string("none"));
  add("weights", weights, std::string("replicated"));
  items.push_back(
      absl::StrFormat("joint: {kind: %s, q: %d, groups_ahead: %d}", joint, q, groups_ahead));
  const std::map<std::string, const char*> stagings = {{"half", "0.5"}, {"tenth", "0.1"}};
  if (const auto staging = stagings.find(rounds); staging != stagings.end()) {
    items.push_back(absl::StrFormat("reshard: {staging: %s, whole_mib: 0}", staging->second));
  }
  std::vector<std::string> towers;
  for (const auto& [name, encoder] : encoders) {
    towers.push_back(
        absl::StrFormat("%s: {sequence: %d, threshold: %s, weights: %s, recompute: %s}", name,
                        encoder.sequence, encoder.threshold, encoder.weights, encoder.recompute));
  }
  if (!towers.empty())
    items.push_back(absl::StrCat("encoders: {", absl::StrJoin(towers, ", "), "}"));
  return absl::StrJoin(items, ", ");
}

std::string SweepRecipe(const Levels& job, const RecipeOptions& options) {
  const JobShape shape = ShapeOf(job);
  std::string encoders;
  if (shape.has_vision) {
    absl::StrAppend(&encoders, "    vision: ", Vision().at(job.at("vision")), "\n");
  }
  if (shape.has_audio) {
    absl::StrAppend(&encoders, "    audio: ", Audio().at(job.at("audio")), "\n");
  }
  if (!encoders.empty()) encoders = "  encoders:\n" + encoders;
  std::string phases = "[]";
  const std::string sources = Sources(job, options.data_dir, &phases);
  // Adam divides small gradients by their own size: in fp32 that makes rounding as large as a step.
  const char* const eps = options.dtype == "fp64" ? "1e-8" : "1e-2";
  return absl::StrFormat(
      R"(name: sweep
model:
  decoder: {hidden: 32, layers: %d, heads: %d, kv_heads: %d, head_dim: 8, ffn: 44, vocab: 515,
            tied_embeddings: %s, qkv_bias: %s, qk_norm: %s,
            rope: {theta: 10000, sections: [1, 1, 2]}%s}
%s%sdata:
  seed: 3
  lanes: %d
  micro_batch_sequences: %d
  sequence_length: 160
  window: 8
  tokenizer: %s/tokenizer.model
  image: {min_pixels: 784, max_pixels: 50176}
  video: {fps: 8, min_frames: 4, max_frames: 4, min_pixels_per_frame: 784, max_pixels_per_frame: 3136}
  audio: {mel_bands: 80, max_seconds: 10, mask_frames: 10, mask_bands: 20}
  loader: {threads: 1, prefetch_steps: 2, memory_mib: 64}
  sources:
%s  phases: %s
training:
  steps: %d
  seed: 5
  dtype: %s
  optimizer: {kind: %s, lr: 1e-3, eps: %s}
  schedule: {kind: constant, warmup_steps: 0}
%sparallel: {%s}
runtime: {device: %s, threads: 1, reserve_gib: 1, comm: %s, gpu_comm: %s, deadline_s: 60}
observe: {prometheus: false, tensorboard: false}
)",
      shape.layers, shape.heads, shape.kv_heads, job.at("tied") == "yes" ? "true" : "false",
      job.at("norms") == "qk_norm" ? "false" : "true", job.at("norms") == "bias" ? "false" : "true",
      Moe().at(job.at("moe")), encoders, Lora(job), shape.lanes, options.micro_batch_sequences,
      options.data_dir, sources, phases, options.steps, options.dtype, job.at("optimizer"), eps,
      Training(job), options.parallel, options.device, options.comm, options.gpu_comm);
}

}  // namespace omni::test
