// Saving and resuming.
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "runtime/base/exists.h"
#include "runtime/base/status.h"
#include "runtime/checkpoint/host_ranges.h"
#include "runtime/checkpoint/layout.h"
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
    bool is_damaged = false;
    return LoadCheckpoint(options_.checkpoint, /*given_state=*/"", &is_damaged);
  }
  int64_t found = -1;
  if (options_.resume && !options_.run_dir.empty()) {
    SetPhase("looking for a checkpoint");
    OMNI_ASSIGN_OR_RETURN(found, LoadNewest());
  }
  if (found >= 0) {
    Bind();
    if (rank() == 0) options_.link->Notice("info", absl::StrCat("resuming from step ", step_));
  } else if (options_.trains && !options_.recipe.training.init_from.empty()) {
    OMNI_RETURN_IF_ERROR(InitFromRun());
  } else if (pretrained_ != nullptr) {
    OMNI_RETURN_IF_ERROR(LoadPretrained());
  }
  pretrained_.reset();
  if (keeper_ != nullptr) keeper_->set_saved_step(found);
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
                    .storage = storage,
                    .progress = progress_}));
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

SharedLoadOptions Trainer::load_options() {
  return {.comm = options_.comm,
          .limit = limits().step,
          .on_block = [this](absl::string_view path, absl::string_view block) {
            if (options_.on_block) OMNI_RETURN_IF_ERROR(options_.on_block(path, block));
            progress_->Tick();
            return absl::OkStatus();
          }};
}

// If the run has checkpoints and none is whole that is an error: to start over would do its work
// again and delete the rest of it.
absl::StatusOr<int64_t> Trainer::LoadNewest() {
  const std::string folder = options_.run_dir + "/checkpoints";
  const SharedLoadOptions options = load_options();
  std::string listed;  // steps, the newest first
  absl::Status own;
  if (rank() == 0) {
    if (options_.trains) RemovePartialCheckpoints(folder, options.on_block);
    const auto all = ListCheckpoints(folder);
    own = all.status();
    for (size_t i = 0; own.ok() && i < all->size(); ++i) {
      listed = absl::StrCat((*all)[i].first, " ", listed);
    }
  }
  OMNI_RETURN_IF_ERROR(AgreeOnStatus(own, options));
  OMNI_ASSIGN_OR_RETURN(listed, ShareText(listed, options));
  const std::vector<std::string> steps = absl::StrSplit(listed, ' ', absl::SkipEmpty());
  absl::Status newest;
  for (const std::string& text : steps) {
    int64_t step = 0;
    OMNI_CHECK(absl::SimpleAtoi(text, &step));
    bool is_damaged = false;
    const std::string state = step == options_.saved_step ? options_.saved_state : "";
    const absl::Status status =
        LoadCheckpoint(checkpoint_layout::Folder(folder, step), state, &is_damaged);
    if (status.ok()) return step;
    if (!is_damaged) return status;
    newest.Update(status);
    if (rank() == 0 && steps.size() > 1) {
      options_.link->Notice("warning", absl::StrCat("checkpoint left out: ", status.message()));
    }
  }
  if (steps.empty()) return -1;
  return absl::DataLossError(absl::StrCat(folder, ": none of its ", steps.size(),
                                          " checkpoints is whole; the newest: ", newest.message()));
}

absl::Status Trainer::LoadCheckpoint(const std::string& path, const std::string& given_state,
                                     bool* is_damaged) {
  const SharedLoadOptions options = load_options();
  const auto index = ShareIndex(path, options, given_state);
  *is_damaged = absl::IsDataLoss(index.status()) || absl::IsInvalidArgument(index.status());
  OMNI_RETURN_IF_ERROR(index.status());
  const Checkpoint& checkpoint = **index;
  const Json state = Json::parse(checkpoint.state(), nullptr, /*allow_exceptions=*/false);
  if (!state.is_object()) return absl::DataLossError(path + "/state.json: is not JSON");
  ExecContext ctx{.device = *device_, .stream = *stream_, .tape = nullptr, .arena = arena_.get()};
  absl::Status seen;
  if (!Exists(path)) {
    seen = absl::FailedPreconditionError(absl::StrCat("rank ", rank(), " does not see ", path,
                                                      "; is the folder shared by all hosts?"));
  }
  OMNI_RETURN_IF_ERROR(AgreeOnStatus(seen, options));
  SetPhase("loading the checkpoint");
  std::vector<TensorRange> ranges =
      optimizer_->ValuesToLoad(ctx, [](const std::string&) { return true; });
  std::set<std::string> restarted;
  if (options_.trains) {
    restarted = KeysWithoutMoments(checkpoint);
    for (TensorRange& range : optimizer_->MomentsToLoad(ctx, restarted)) {
      ranges.push_back(std::move(range));
    }
  }
  for (TensorRange& range : routers_->StateRanges()) ranges.push_back(std::move(range));
  HostRanges host(ctx, std::move(ranges));
  const absl::Status loaded = LoadShared(checkpoint, host.ranges(), options);
  *is_damaged = absl::IsDataLoss(loaded);
  OMNI_RETURN_IF_ERROR(loaded);
  host.Upload();
  routers_->Loaded(ctx);
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
  if (options_.trains) {
    SetUpdateCounts(restarted, std::move(update_counts));
    TellLearningRate(recipe);
  }
  return absl::OkStatus();
}

absl::Status Trainer::BuildKeeper() {
  const Recipe& recipe = options_.recipe;
  const std::string folder = options_.run_dir + "/checkpoints";
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  std::unique_ptr<Communicator> comm;
  if (world() > 1) {
    std::vector<int32_t> all(world());
    std::iota(all.begin(), all.end(), 0);
    OMNI_ASSIGN_OR_RETURN(comm, options_.comm->Split(all, "keeper"));
  }
  // Copies: an export that stalls may outlive the trainer.
  std::function<absl::Status(const std::string&, const OnBlock&)> export_checkpoint;
  if (rank() == 0 && recipe.training.checkpoint.export_huggingface) {
    export_checkpoint = [recipe, run_dir = options_.run_dir](const std::string& path,
                                                             const OnBlock& tick) {
      const std::string to = path + "/huggingface";
      const absl::Status status = ExportCheckpoint(recipe, run_dir, path, to, std::nullopt,
                                                   /*adapter_only=*/false, tick);
      std::error_code ignored;
      if (!status.ok()) std::filesystem::remove_all(to, ignored);
      return status;
    };
  }
  keeper_ = std::make_unique<Keeper>(
      KeeperOptions{.folder = folder,
                    .rank = rank(),
                    .num_ranks = world(),
                    .keep = recipe.training.checkpoint.keep,
                    .comm = std::move(comm),
                    .limits = limits(),
                    .progress = progress_,
                    .export_checkpoint = std::move(export_checkpoint),
                    .warn =
                        [link = options_.link, log = options_.log](const std::string& text) {
                          link->Notice("warning", text);
                          if (log != nullptr) log->Error(text);
                        },
                    .stops = [link = options_.link] { return link->stop_requested(); },
                    .on_block = options_.on_block});
  return absl::OkStatus();
}

absl::Status Trainer::BeginSave() {
  if (keeper_ == nullptr || keeper_->saved_step() == step_) return absl::OkStatus();
  if (keeper_->is_open() && keeper_->begun_step() == step_) return absl::OkStatus();
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
  // From a device they are copied by the stream that computes.
  const CopyOut copy_out = [this](const TensorView& from, void* to) {
    return device_->CopyOut(*stream_, from, to);
  };
  keeper_->Save(step_, StateRanges(),
                state.dump(1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace),
                copy_out);
  return absl::OkStatus();
}

// Not while gradients are not finite: what made them so would take the place of good weights.
absl::Status Trainer::SaveIfOwed() {
  if (!save_owed_ || skipped_in_a_row_ > 0) return absl::OkStatus();
  save_owed_ = false;
  return BeginSave();
}

absl::Status Trainer::FinishSave() {
  if (keeper_ == nullptr) return absl::OkStatus();
  return keeper_->FinishSave([this] {
    return world() == 1 ? absl::OkStatus() : options_.comm->Barrier()->WaitHost(limits().step);
  });
}

}  // namespace omni::trainer
