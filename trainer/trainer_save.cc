// Saving and resuming.
#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "runtime/base/status.h"
#include "trainer/huggingface/export.h"
#include "trainer/trainer.h"

namespace omni::trainer {
namespace {

using Json = nlohmann::json;

}  // namespace

absl::Status Trainer::Resume() {
  Bind();
  if (!options_.checkpoint.empty()) {
    OMNI_CHECK(world() == 1 && !options_.trains);
    pretrained_.reset();
    return LoadCheckpoint(options_.checkpoint);
  }
  int64_t found = -1;
  if (options_.resume && !options_.run_dir.empty()) {
    SetPhase("looking for a checkpoint");
    OMNI_ASSIGN_OR_RETURN(found, AgreeOnCheckpoint());
  }
  if (found >= 0) {
    SetPhase("loading the checkpoint");
    for (const auto& [step, path] : ListCheckpoints(options_.run_dir + "/checkpoints")) {
      if (step == found) OMNI_RETURN_IF_ERROR(LoadCheckpoint(path));
    }
    if (step_ != found) {
      return absl::DataLossError(
          absl::StrCat("rank ", rank(), " does not see the checkpoint of step ", found, " in ",
                       options_.run_dir, "; is the folder shared by all hosts?"));
    }
    Bind();
    if (rank() == 0) options_.link->Notice("info", absl::StrCat("resuming from step ", step_));
  } else if (options_.trains && !options_.recipe.training.init_from.empty()) {
    OMNI_RETURN_IF_ERROR(InitFromRun());
  } else if (pretrained_ != nullptr) {
    OMNI_RETURN_IF_ERROR(LoadPretrained());
  }
  pretrained_.reset();
  saved_step_ = found;
  if (!options_.trains) return absl::OkStatus();
  const std::shared_ptr<dataloader::Storage> storage = NewStorage();
  OMNI_ASSIGN_OR_RETURN(auto sources,
                        dataloader::OpenSources(options_.recipe.data, /*video=*/nullptr, storage));
  OMNI_RETURN_IF_ERROR(CarryData(*sources));
  if (rank() == 0) options_.link->Notice(kResumed, absl::StrCat(step_));
  OMNI_ASSIGN_OR_RETURN(
      loader_, dataloader::Loader::Create(
                   std::move(sources),
                   {.rank = rank(),
                    .data = data_layout_,
                    .costs = {.item =
                                  [this](int32_t encoder, const parallel::MediaItem& item) {
                                    return costs_->encoders()[encoder].second->Cost(item);
                                  },
                              .split =
                                  [this](int32_t encoder, const parallel::MediaItem& item) {
                                    const auto& tower = *costs_->encoders()[encoder].second;
                                    return parallel::SplitCost(tower.Cost(item), item);
                                  }},
                    .start = loader_state_,
                    .video = nullptr,
                    .storage = storage}));
  return absl::OkStatus();
}

absl::Status Trainer::LoadPretrained() {
  SetPhase("loading the pretrained weights");
  const absl::Time begin = absl::Now();
  ExecContext ctx{.device = *device_, .stream = *stream_, .tape = nullptr, .arena = arena_.get()};
  OMNI_RETURN_IF_ERROR(optimizer_->LoadValues(
      ctx, *pretrained_, [&](const std::string& path) { return given_.count(path) > 0; }));
  if (rank() != 0) return absl::OkStatus();
  int64_t num_bytes = 0;
  for (const MappedTensor& tensor : pretrained_->family().tensors.tensors()) {
    num_bytes +=
        tensor.num_elements() * SizeOf(pretrained_->folder().tensors().at(tensor.name).dtype);
  }
  const double seconds = absl::ToDoubleSeconds(absl::Now() - begin);
  options_.link->Notice(
      "info", absl::StrFormat("%s: %.2f GB of weights (%s) in %.1f s", pretrained_->folder().path(),
                              num_bytes / 1e9, pretrained_->family().family, seconds));
  // Of the whole model: this rank's stage has a part of the folder's tensors.
  OMNI_ASSIGN_OR_RETURN(const auto without,
                        pretrained_->family().tensors.Match(costs_->BaseParameters()));
  for (const auto& [what, names] :
       {std::pair{"not in the folder, so at their initial values: ", without},
        {"in the folder but not used: ", pretrained_->UnusedTensors()}}) {
    if (!names.empty()) {
      options_.link->Notice("warning", absl::StrCat(what, absl::StrJoin(names, ", ")));
    }
  }
  return absl::OkStatus();
}

// Rank 0 finds the newest checkpoint that is whole; -1 if the run has none yet. If it has some and
// none is whole that is an error: to start over would do its work again and delete the rest of it.
absl::StatusOr<int64_t> Trainer::AgreeOnCheckpoint() {
  const std::string folder = options_.run_dir + "/checkpoints";
  std::vector<double> found = {0.0};
  if (rank() == 0) {
    if (options_.trains) RemovePartialCheckpoints(folder);
    const auto all = ListCheckpoints(folder);
    if (!all.empty()) found[0] = -1.0;
    for (auto it = all.rbegin(); it != all.rend() && found[0] < 0; ++it) {
      const absl::Status status = Checkpoint::Open(it->second).status();
      if (status.ok()) {
        found[0] = static_cast<double>(it->first + 1);
      } else if (all.size() > 1) {
        options_.link->Notice("warning", absl::StrCat("checkpoint left out: ", status.message()));
      }
    }
  }
  OMNI_RETURN_IF_ERROR(AllReduce(&found, ReduceOp::kSum));
  if (found[0] < 0) {
    // Each rank looks for itself: whichever is heard first names the file.
    const auto all = ListCheckpoints(folder);
    const absl::Status newest =
        all.empty() ? absl::OkStatus() : Checkpoint::Open(all.back().second).status();
    return absl::DataLossError(
        absl::StrCat(folder, ": none of its ", all.size(),
                     " checkpoints is whole; the newest: ", newest.message()));
  }
  return static_cast<int64_t>(found[0]) - 1;
}

absl::Status Trainer::LoadCheckpoint(const std::string& path) {
  OMNI_ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(path));
  const Json state = Json::parse(checkpoint->state(), nullptr, /*allow_exceptions=*/false);
  if (!state.is_object()) return absl::DataLossError(path + "/state.json: is not JSON");
  ExecContext ctx{.device = *device_, .stream = *stream_, .tape = nullptr, .arena = arena_.get()};
  std::map<std::string, int64_t> update_counts;
  std::string recipe;  // of the checkpoint
  try {
    OMNI_ASSIGN_OR_RETURN(loader_state_,
                          dataloader::LoaderState::FromJson(state.at("loader").get<std::string>()));
    update_counts = state.at("update_counts");
    recipe = state.value("recipe", "");
    tokens_done_ = state.at("tokens");
    skipped_steps_ = state.at("skipped_steps");
    skipped_in_a_row_ = state.at("skipped_in_a_row");
    step_ = state.at("step");
    // Checkpoints of before these were counted have none.
    if (state.contains("samples")) {
      OMNI_RETURN_IF_ERROR(tally_.Restore(state.at("samples").get<std::string>()));
    }
  } catch (const Json::exception& e) {
    return absl::DataLossError(absl::StrCat(path, "/state.json: ", e.what()));
  }
  OMNI_RETURN_IF_ERROR(
      optimizer_->LoadValues(ctx, *checkpoint, [](const std::string&) { return true; }));
  if (options_.trains) {
    OMNI_RETURN_IF_ERROR(LoadMoments(*checkpoint, std::move(update_counts)));
    TellLearningRate(recipe);
  }
  return routers_->Load(ctx, *checkpoint);
}

absl::Status Trainer::BeginSave() {
  if (saved_step_ == step_) return absl::OkStatus();
  // A save still under way is waited for: one at a time.
  OMNI_RETURN_IF_ERROR(FinishSave());
  SetPhase("saving");
  const TraceSpan span(&trace_, "snapshot", "checkpoint");
  const Json state = {{"step", step_},
                      {"tokens", tokens_done_},
                      {"skipped_steps", skipped_steps_},
                      {"skipped_in_a_row", skipped_in_a_row_},
                      {"update_counts", optimizer_->update_counts()},
                      {"samples", tally_.ToJson()},
                      {"recipe", options_.recipe.yaml},
                      {"loader", loader_state_.ToJson()}};
  // A path in the recipe may be no UTF-8.
  writer_->Begin(step_, StateRanges(),
                 state.dump(1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace));
  return absl::OkStatus();
}

void Trainer::BeginExport() {
  if (rank() != 0 || !options_.recipe.training.checkpoint.export_huggingface) return;
  std::string path;
  for (const auto& [step, folder] : ListCheckpoints(options_.run_dir + "/checkpoints")) {
    if (step == saved_step_) path = folder;
  }
  export_ = std::async(std::launch::async, [this, path] {
    return ExportCheckpoint(options_.recipe, options_.run_dir, path, path + "/huggingface",
                            /*dtype=*/std::nullopt);
  });
}

void Trainer::WaitExport() {
  if (!export_.valid()) return;
  const absl::Status status = export_.get();
  if (status.ok()) return;
  options_.link->Notice("warning", absl::StrCat("export failed: ", status.message()));
  if (options_.log != nullptr) options_.log->Error(absl::StrCat("export: ", status.message()));
}

absl::Status Trainer::FinishSave() {
  if (writer_ == nullptr || writer_->progress() == CheckpointWriter::Progress::kIdle) {
    return absl::OkStatus();  // so it is on every rank
  }
  writer_->WaitWritten();
  std::vector<double> failed = {writer_->progress() == CheckpointWriter::Progress::kFailed ? 1.0
                                                                                           : 0.0};
  OMNI_RETURN_IF_ERROR(AllReduce(&failed, ReduceOp::kSum));
  return CompleteSave(failed[0] > 0);
}

// Every rank has written or failed to, and knows which. A save that fails (a full disk, say) is
// reported and training goes on.
absl::Status Trainer::CompleteSave(bool failed) {
  WaitExport();  // it reads a checkpoint that Commit may remove
  absl::Status status;
  if (!failed && rank() == 0) status = writer_->Commit();
  const int64_t step = writer_->step();
  status.Update(writer_->Finish());
  if (!status.ok()) {
    const std::string message =
        absl::StrCat("checkpoint of step ", step, " was not saved: ", status.message());
    options_.link->Notice("warning", message);
    if (options_.log != nullptr) options_.log->Error(message);
  } else if (!failed) {
    saved_step_ = step;
    BeginExport();
  }
  if (rank() == 0 && (failed || !status.ok())) {
    RemovePartialCheckpoints(options_.run_dir + "/checkpoints");
  }
  return absl::OkStatus();
}

}  // namespace omni::trainer
