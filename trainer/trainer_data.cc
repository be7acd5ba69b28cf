// What all ranks agree on before a step is computed: that everybody has its data, that the data are
// the same, whose samples are blank. And what is said of samples that are left out.
#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/base/rng.h"
#include "runtime/base/status.h"
#include "trainer/gather_strings.h"
#include "trainer/step_state.h"
#include "trainer/trainer.h"

namespace omni::trainer {
namespace {

using dataloader::FaultEvent;
using dataloader::StepBatch;

constexpr size_t kRecentFaults = 64;
constexpr size_t kNamedDifferences = 3;

// Of what is left out of a step: by it all ranks stop in the same one (SampleTally::Check).
uint64_t LeftOutDigest(const StepBatch& batch) {
  std::string text;
  for (const int64_t drawn : batch.drawn) absl::StrAppend(&text, drawn, ";");
  for (const FaultEvent& fault : batch.left_out) {
    absl::StrAppend(&text, Name(fault.fault), fault.source.size(), ":", fault.source);
  }
  return StreamOf(text);
}

}  // namespace

std::shared_ptr<dataloader::Storage> Trainer::NewStorage() {
  // Less than the loader is waited for: so the file is named, and not only the sample.
  const absl::Duration retry =
      std::min(absl::Seconds(options_.recipe.data.loader.retry_s), limits().data / 1.5);
  return std::make_shared<dataloader::Storage>(
      dataloader::Storage::Options{.retry = retry, .on_trouble = [this](const std::string& text) {
                                     if (options_.log != nullptr) options_.log->Warning(text);
                                     options_.link->Notice("warning", text);
                                   }});
}

absl::Status Trainer::AgreeOnData(StepState* state) {
  LogFaults(*state);  // before anything that may end this rank
  StepBatch& batch = state->batch;
  const auto given_up = [] { return absl::CancelledError("stopped, without the step's data"); };
  if (world() == 1) {
    if (state->gave_up) return given_up();
    data_failed_ = !state->failure.ok();
    OMNI_RETURN_IF_ERROR(state->failure);
    return CountSamples(batch);
  }
  // Ranks that failed; ranks that gave up; of every rank how many samples it could not decode.
  std::vector<double> sums(2 + world(), 0.0);
  sums[0] = state->failure.ok() ? 0.0 : 1.0;
  sums[1] = state->gave_up ? 1.0 : 0.0;
  sums[2 + rank()] = static_cast<double>(batch.failed.size());
  const absl::Status agreed = AllReduce(&sums, ReduceOp::kSum);
  data_failed_ = agreed.ok() && sums[0] > 0;
  // This rank's own failure is the cause of whatever the others say.
  OMNI_RETURN_IF_ERROR(state->failure);
  OMNI_RETURN_IF_ERROR(agreed);
  if (sums[0] > 0) {
    return absl::AbortedError(
        absl::StrCat("step ", step_ + 1, " failed on ", sums[0], " other ranks"));
  }
  if (sums[1] > 0) return given_up();
  for (const FaultEvent& fault : batch.left_out) {
    recent_faults_.push_back(
        absl::StrCat(fault.sample_id, " is ", Name(fault.fault), ": ", fault.message));
    if (recent_faults_.size() > kRecentFaults) recent_faults_.pop_front();
  }
  // Halves of the digest and their negatives: the largest are the smallest if all are equal.
  const uint64_t digest = batch.layout.Digest() ^ LeftOutDigest(batch);
  const auto high = static_cast<double>(digest >> 32),
             low = static_cast<double>(digest & 0xffffffff);
  std::vector<double> maxima = {high, low, -high, -low};
  OMNI_RETURN_IF_ERROR(AllReduce(&maxima, ReduceOp::kMax));
  if (maxima[0] != -maxima[2] || maxima[1] != -maxima[3]) {
    data_failed_ = true;
    return WhyRanksDisagree(batch);
  }
  const bool any_failed =
      std::any_of(sums.begin() + 2, sums.end(), [](double count) { return count > 0; });
  if (any_failed) OMNI_RETURN_IF_ERROR(ShareFailures(&batch));
  return CountSamples(batch);
}

absl::Status Trainer::ShareFailures(StepBatch* batch) {
  std::vector<std::string> mine;
  for (const dataloader::SampleFailure& failure : batch->failed) {
    mine.insert(mine.end(),
                {absl::StrCat(failure.lane), absl::StrCat(failure.sample), failure.message});
  }
  ExecContext ctx{.device = *device_, .stream = *stream_, .tape = nullptr, .arena = arena_.get()};
  OMNI_ASSIGN_OR_RETURN(const auto all, GatherStrings(ctx, options_.comm, limits().step, mine));
  std::vector<std::vector<dataloader::SampleFailure>> failed(world());
  for (int32_t r = 0; r < world(); ++r) {
    for (size_t i = 0; i + 2 < all[r].size(); i += 3) {
      failed[r].push_back({.message = all[r][i + 2]});
      OMNI_CHECK(absl::SimpleAtoi(all[r][i], &failed[r].back().lane));
      OMNI_CHECK(absl::SimpleAtoi(all[r][i + 1], &failed[r].back().sample));
    }
  }
  dataloader::ApplyFailures(failed, rank(), batch);
  return absl::OkStatus();
}

// Names what some ranks found and others did not: most often a file that one host can't read.
absl::Status Trainer::WhyRanksDisagree(const StepBatch& batch) {
  std::vector<std::string> mine = {
      absl::StrCat(batch.global.samples, " samples of ", batch.global.tokens, " tokens")};
  mine.insert(mine.end(), recent_faults_.begin(), recent_faults_.end());
  ExecContext ctx{.device = *device_, .stream = *stream_, .tape = nullptr, .arena = arena_.get()};
  OMNI_ASSIGN_OR_RETURN(const auto all, GatherStrings(ctx, options_.comm, limits().step, mine));
  std::map<std::string, std::set<int32_t>> found;  // fault -> ranks that have it
  std::vector<std::string> sizes;
  for (int32_t r = 0; r < world(); ++r) {
    sizes.push_back(absl::StrCat("rank ", r, " has ", all[r][0]));
    for (size_t i = 1; i < all[r].size(); ++i) found[all[r][i]].insert(r);
  }
  std::vector<std::string> differences;
  for (const auto& [fault, ranks] : found) {
    if (static_cast<int32_t>(ranks.size()) == world()) continue;
    if (differences.size() == kNamedDifferences) break;
    differences.push_back(absl::StrCat("on rank ", absl::StrJoin(ranks, ", "), " only, ", fault));
  }
  return absl::FailedPreconditionError(
      absl::StrCat("step ", step_ + 1, ": ranks disagree on what the step's data are: ",
                   absl::StrJoin(differences.empty() ? sizes : differences, "; "),
                   "; do all see the same files?"));
}

void Trainer::LogFaults(const StepState& state) {
  if (options_.log == nullptr) return;
  if (!state.failure.ok()) {
    options_.log->Error("step ", step_ + 1, ": the data failed: ", state.failure.ToString());
  }
  for (const FaultEvent& fault : state.batch.faults) {
    options_.log->Info("sample ", fault.sample_id, " of ", fault.source, " is ",
                       dataloader::Name(fault.fault), ": ", fault.message);
  }
}

// The same on all ranks, and so is what comes of it.
absl::Status Trainer::CountSamples(const StepBatch& batch) {
  tally_.Add(batch);
  if (rank() == 0) {
    for (const std::string& line : tally_.News()) options_.link->Notice("data", line);
  }
  const absl::Status status = tally_.Check(options_.recipe.data.max_broken);
  data_failed_ = !status.ok();
  return status;
}

// A step whose data failed on all ranks alike loses no step before it: they are saved.
absl::Status Trainer::EndForData(const absl::Status& status) {
  if (rank() == 0 && !tally_.empty()) TellLeftOut();
  if (!data_failed_ || keeper_ == nullptr || step_ == 0) return status;
  if (keeper_->saved_step() == step_) return status;
  if (skipped_in_a_row_ > 0) return status;
  absl::Status saved = BeginSave();
  if (saved.ok()) saved = FinishSave();
  if (!saved.ok() || keeper_->saved_step() != step_) return status;
  return absl::Status(status.code(), absl::StrCat(status.message(), "; the run is saved at step ",
                                                  step_, " and goes on from there"));
}

void Trainer::TellLeftOut() {
  const std::string table = tally_.Table();
  if (table.empty()) return;
  options_.link->Notice("data", absl::StrCat("samples left out or cut:\n", table));
  if (options_.log != nullptr) options_.log->Info("samples left out or cut: ", tally_.ToJson());
}

}  // namespace omni::trainer
