#include "trainer/recipe.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "runtime/base/config_record.h"
#include "runtime/base/exists.h"
#include "runtime/base/status.h"
#include "trainer/assemble.h"
#include "trainer/huggingface/describe.h"
#include "trainer/huggingface/pretrained.h"
#include "trainer/recipe_paths.h"

namespace omni::trainer {

absl::Status Read(const ConfigNode& node, CheckpointConfig* out) {
  ConfigReader reader(node);
  reader.Read("every", &out->every, NonNegative());
  reader.Read("keep", &out->keep, NonNegative());
  reader.ReadEnum("export", &out->export_huggingface, {{"none", false}, {"huggingface", true}});
  return reader.Finish();
}

absl::Status Read(const ConfigNode& node, TrainingConfig* out) {
  ConfigReader reader(node);
  reader.Read("steps", &out->steps, Positive());
  reader.Require("steps");
  reader.Read("seed", &out->seed);
  reader.ReadEnum(
      "dtype", &out->dtype,
      {{"fp32", DType::kFloat32}, {"bf16", DType::kBFloat16}, {"fp64", DType::kFloat64}});
  reader.ReadStruct("optimizer", &out->optimizer);
  reader.ReadStruct("schedule", &out->schedule);
  reader.ReadMap("modules", &out->modules);
  reader.ReadList("phases", &out->phases);
  reader.Read("eval_every", &out->eval_every, NonNegative());
  reader.Read("eval_at_end", &out->eval_at_end);
  reader.ReadStruct("checkpoint", &out->checkpoint);
  reader.Read("init_from", &out->init_from);
  reader.Read("init_optimizer", &out->init_optimizer);
  if (out->init_optimizer && out->init_from.empty()) {
    reader.Keep(reader.Error("init_optimizer", "there is no training.init_from to take it from"));
  }
  return reader.Finish();
}

absl::Status Read(const ConfigNode& node, RuntimeConfig* out) {
  ConfigReader reader(node);
  reader.ReadEnum("device", &out->device,
                  {{"cpu", DeviceKind::kCpu},
                   {"cpu_async", DeviceKind::kCpuAsync},
                   {"cuda", DeviceKind::kCuda},
                   {"cuda_emulated", DeviceKind::kCudaEmulated}});
  reader.Read("threads", &out->threads, Between(1, 1024));
  reader.Read("reserve_gib", &out->reserve_gib, Positive());
  std::string comm = out->comm;
  reader.ReadEnum<std::string>("comm", &comm, {{"auto", "auto"}, {"shm", "shm"}, {"tcp", "tcp"}});
  out->comm = comm;
  reader.ReadEnum("gpu_comm", &out->gpu_comm,
                  {{"auto", GpuComm::kAuto}, {"nccl", GpuComm::kNccl}, {"host", GpuComm::kHost}});
  reader.Read("deadline_s", &out->deadline_s, Positive());
  reader.ReadStruct("fault", &out->fault);
  return reader.Finish();
}

absl::Status Read(const ConfigNode& node, ObserveConfig* out) {
  ConfigReader reader(node);
  reader.Read("prometheus", &out->prometheus);
  reader.Read("metrics_host", &out->metrics_host);
  reader.Read("metrics_port", &out->metrics_port, Between(0, 65535));
  reader.Read("tensorboard", &out->tensorboard);
  reader.Read("trace_steps", &out->trace_steps, NonNegative());
  return reader.Finish();
}

namespace {

absl::Status CheckModules(const MultimodalModel& model, const Recipe& recipe,
                          const ConfigNode& training) {
  const std::vector<std::string> known = model.Modules();
  for (const std::string& name : recipe.modules().Mentioned()) {
    if (std::find(known.begin(), known.end(), name) != known.end()) continue;
    const std::string nearest = NearestName(name, known);
    return training.Get("modules").Error(
        absl::StrCat("no module \"", name, "\"",
                     nearest.empty() ? "" : absl::StrCat("; did you mean \"", nearest, "\"?")));
  }
  return absl::OkStatus();
}

// With adapters everything else is frozen, but for modules the recipe speaks of.
void FreezeBase(const MultimodalModel& model, TrainingConfig* training) {
  for (const std::string& name : model.Modules()) {
    const bool is_mentioned = std::any_of(training->modules.begin(), training->modules.end(),
                                          [&](const auto& entry) { return entry.first == name; });
    if (is_mentioned || absl::StartsWith(name, "lora.")) continue;
    training->modules.push_back({name, {.lr_scale = 1.0, .frozen = true}});
  }
}

// Tokens and "to the end" become steps.
absl::Status ResolvePhases(const ConfigNode& list, const dataloader::DataConfig& data,
                           TrainingConfig* training) {
  int64_t previous_end = 0;
  for (size_t i = 0; i < training->phases.size(); ++i) {
    TrainingPhase& phase = training->phases[i];
    if (phase.until_tokens > 0) phase.until_step = data.StepAtTokens(phase.until_tokens);
    if (phase.until_step == 0) {
      if (i + 1 < training->phases.size()) {
        return list.items()[i].Error("expected until_step or until_tokens: another phase follows");
      }
      phase.until_step = std::max(training->steps, previous_end + 1);
    }
    if (phase.until_step <= previous_end) {
      return list.items()[i].Error(absl::StrCat("ends at step ", phase.until_step,
                                                ", the phase before it at step ", previous_end,
                                                "; expected a later one"));
    }
    previous_end = phase.until_step;
  }
  return absl::OkStatus();
}

// The loader prepares rows for encoders it does not know: the geometry comes from them.
absl::Status MatchEncoders(const MultimodalModel& model, const ConfigNode& data_node,
                           dataloader::DataConfig* data) {
  data->has_vision = model.encoder(data->vision_encoder) != nullptr;
  data->has_audio = model.encoder(data->audio_encoder) != nullptr;
  if (const auto* vision = model.encoder(data->vision_encoder)) {
    const encoders::InputGeometry geometry = vision->geometry();
    data->SetPatchGeometry({.patch = geometry.patch,
                            .temporal_patch = geometry.temporal_patch,
                            .merge = geometry.merge});
  }
  if (const auto* audio = model.encoder(data->audio_encoder)) {
    const encoders::InputGeometry geometry = audio->geometry();
    if (geometry.mel_bands != data->audio.mel_bands) {
      return data_node.Get("audio").Error(absl::StrCat("mel_bands is ", data->audio.mel_bands,
                                                       ", model.encoders.", data->audio_encoder,
                                                       " has ", geometry.mel_bands));
    }
    const double window_seconds =
        static_cast<double>(geometry.mel_window) * dataloader::kMelHop / dataloader::kAudioRate;
    if (geometry.mel_window > 0 && data->audio.max_seconds > window_seconds) {
      return data_node.Get("audio").Error(absl::StrCat("max_seconds is ", data->audio.max_seconds,
                                                       ", model.encoders.", data->audio_encoder,
                                                       " hears ", window_seconds, " s"));
    }
    data->audio.window_frames = geometry.mel_window;
    data->audio.context_frames = geometry.mel_context;
  }
  return absl::OkStatus();
}

absl::StatusOr<parallel::Layout> MakeLayout(const ConfigNode& section,
                                            const parallel::ParallelConfig& config,
                                            const MultimodalModel& model) {
  std::vector<std::string> encoders;
  for (const auto& [name, encoder] : model.encoders()) encoders.push_back(name);
  return parallel::Layout::Create(section, config, model.decoder().config().shape(), encoders);
}

absl::StatusOr<Recipe> ReadRecipe(const ConfigNode& root) {
  Recipe recipe;
  recipe.yaml = root.DumpYaml();
  ConfigReader reader(root);
  reader.Read("name", &recipe.name);
  reader.Require("model");
  reader.Require("data");
  reader.Require("training");
  recipe.model = reader.Child("model");
  if (const ConfigNode from = recipe.model.Get("from"); !from.is_null()) {
    auto path = from.AsString();
    if (path.ok()) recipe.pretrained = *path;
    reader.Keep(path.status());
  }
  reader.ReadStruct("data", &recipe.data);
  reader.ReadStruct("training", &recipe.training);
  reader.ReadStruct("parallel", &recipe.parallel);
  reader.ReadStruct("runtime", &recipe.runtime);
  reader.ReadStruct("observe", &recipe.observe);
  OMNI_RETURN_IF_ERROR(reader.Finish());
  OMNI_RETURN_IF_ERROR(
      ResolvePhases(root.Get("training").Get("phases"), recipe.data, &recipe.training));
  encoders::EncoderRegistry registry;
  encoders::RegisterEncoders(registry);
  OMNI_ASSIGN_OR_RETURN(const auto model, MultimodalModel::Create(recipe.model, registry));
  OMNI_RETURN_IF_ERROR(CheckModules(*model, recipe, root.Get("training")));
  if (!model->lora_targets().empty()) FreezeBase(*model, &recipe.training);
  OMNI_RETURN_IF_ERROR(MatchEncoders(*model, root.Get("data"), &recipe.data));
  OMNI_ASSIGN_OR_RETURN(const parallel::Layout layout,
                        MakeLayout(root.Get("parallel"), recipe.parallel, *model));
  if (model->decoder().config().moe.balance == BalanceSets::kPooled &&
      model->decoder().config().num_moe_layers() > 0 && layout.num_chunks() > 1) {
    return root.Get("parallel")
        .Get("pipeline")
        .Error(absl::StrCat(
            "the decoder is in ", layout.num_chunks(),
            " chunks, but model.decoder.moe.balance_loss.mode reference takes all layers together; "
            "expected one chunk, or mode per_sequence"));
  }
  recipe.decoder_mesh = layout.decoder_mesh().ToString();
  recipe.sequence_ranks = layout.sequence().num_ranks();
  return recipe;
}

}  // namespace

parallel::Layout Recipe::layout(const MultimodalModel& model) const {
  auto layout = MakeLayout(ConfigNode(), parallel, model);
  OMNI_CHECK_OK(layout.status());
  return *std::move(layout);
}

scheduler::PlanOptions Recipe::plan_options() const {
  return {.num_workers = parallel.workers,
          .num_replicas = parallel.data(),
          .sequence_ranks = sequence_ranks,
          .decoder_mesh = decoder_mesh,
          .decoder_weights = std::string(Name(parallel.weights)),
          .num_lanes = data.lanes,
          .comm_engine = runtime.comm,
          .device = DeviceName(runtime.device),
          .threads_per_worker = runtime.threads,
          .reserved_bytes = static_cast<int64_t>(runtime.reserve_gib * (int64_t{1} << 30)),
          .deadline_s = runtime.deadline_s,
          .dtype = std::string(Name(training.dtype))};
}

namespace {

std::string Indented(const std::string& yaml) {
  return absl::StrCat("  ", absl::StrReplaceAll(absl::StripSuffix(yaml, "\n"), {{"\n", "\n  "}}));
}

absl::Status FillFromPretrained(ConfigNode* root, const std::string& recipe_path) {
  const ConfigNode model = root->Get("model");
  if (model.Get("from").is_null() || !model.Get("family").is_null()) return absl::OkStatus();
  OMNI_ASSIGN_OR_RETURN(const std::string from, model.Get("from").AsString());
  const std::string path = ResolvePath(from, recipe_path);
  const auto pretrained = PretrainedModel::Open(path);
  if (!pretrained.ok()) return Annotate(pretrained.status(), model.Get("from").where());
  const FamilyModel& family = (*pretrained)->family();
  OMNI_ASSIGN_OR_RETURN(const ConfigNode defaults,
                        ConfigNode::Parse(absl::StrCat("model:\n  family: ", family.family, "\n",
                                                       Indented(family.model_yaml), "\ndata:\n",
                                                       Indented(family.data_yaml), "\n"),
                                          path + "/config.json"));
  const std::string options = absl::StrCat(path, "/", kDataOptionsFile);
  if (Exists(options)) {
    OMNI_ASSIGN_OR_RETURN(const ConfigNode own, ConfigNode::LoadFile(options));
    root->FillFrom(own);
  }
  root->FillFrom(defaults);
  std::string words = absl::StrCat("data: {template: ", family.chat_template);
  for (const char* name : {"tokenizer.model", "tokenizer.json"}) {
    if (!Exists(absl::StrCat(path, "/", name))) continue;
    absl::StrAppend(&words, ", tokenizer: \"", path, "/", name, "\"");
    break;
  }
  OMNI_ASSIGN_OR_RETURN(const ConfigNode word_defaults,
                        ConfigNode::Parse(words + "}", path + "/config.json"));
  root->FillFrom(word_defaults);
  encoders::EncoderRegistry registry;
  encoders::RegisterEncoders(registry);
  OMNI_ASSIGN_OR_RETURN(const auto built, MultimodalModel::Create(root->Get("model"), registry));
  return Annotate(family.tensors.Match(built->BaseParameters()).status(),
                  model.Get("from").where());
}

absl::StatusOr<Recipe> Resolve(ConfigNode root, const std::string& path,
                               absl::Span<const std::string> overrides) {
  OMNI_RETURN_IF_ERROR(root.ApplyOverrides(overrides));
  OMNI_RETURN_IF_ERROR(FillFromPretrained(&root, path));
  // Read first as it was written, so that errors say where; then with absolute paths.
  OMNI_RETURN_IF_ERROR(ReadRecipe(root).status());
  OMNI_RETURN_IF_ERROR(root.ApplyOverrides(AbsolutePaths(root, path)));
  return ReadRecipe(root);
}

}  // namespace

absl::StatusOr<Recipe> LoadRecipe(const std::string& path,
                                  absl::Span<const std::string> overrides) {
  OMNI_ASSIGN_OR_RETURN(const ConfigNode root, ConfigNode::LoadFile(path));
  return Resolve(root, path, overrides);
}

absl::StatusOr<Recipe> LoadRecipeText(const std::string& yaml, const std::string& file_name,
                                      absl::Span<const std::string> overrides) {
  OMNI_ASSIGN_OR_RETURN(const ConfigNode root, ConfigNode::Parse(yaml, file_name));
  return Resolve(root, file_name, overrides);
}

absl::StatusOr<Recipe> ParseRecipe(const std::string& yaml, const std::string& file_name) {
  OMNI_ASSIGN_OR_RETURN(const ConfigNode root, ConfigNode::Parse(yaml, file_name));
  return ReadRecipe(root);
}

absl::StatusOr<std::map<std::string, std::string>> ReadRecipeValues(const std::string& yaml,
                                                                    const std::string& file_name) {
  OMNI_ASSIGN_OR_RETURN(ConfigNode root, ConfigNode::Parse(yaml, file_name));
  OMNI_RETURN_IF_ERROR(ReadRecipe(root).status());
  OMNI_RETURN_IF_ERROR(root.ApplyOverrides(AbsolutePaths(root, file_name)));  // of runs of before
  std::map<std::string, std::string> values;
  {
    const ConfigRecording recording(&values);
    OMNI_RETURN_IF_ERROR(ReadRecipe(root).status());
  }
  // Sections that were noted as a whole and then read key by key.
  for (auto it = values.begin(); it != values.end();) {
    const auto next = values.lower_bound(it->first + ".");
    const bool is_section = next != values.end() && absl::StartsWith(next->first, it->first + ".");
    it = is_section ? values.erase(it) : std::next(it);
  }
  return values;
}

}  // namespace omni::trainer
