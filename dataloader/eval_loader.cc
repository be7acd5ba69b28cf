#include "dataloader/eval_loader.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "dataloader/microbatch_builder.h"
#include "runtime/base/check.h"
#include "runtime/base/rng.h"
#include "runtime/base/status.h"
#include "runtime/base/text.h"

namespace omni::dataloader {

EvalLoader::EvalLoader(std::unique_ptr<SamplePlanner> planner, int64_t num_samples,
                       const Options& options)
    : planner_(std::move(planner)),
      decoder_(planner_->config(), options.video, &progress_),
      options_(options),
      num_samples_(num_samples),
      next_(options.rank) {}

absl::StatusOr<std::unique_ptr<EvalLoader>> EvalLoader::Create(const DataConfig& config,
                                                               const std::string& name,
                                                               const Options& options) {
  std::vector<std::string> names;
  for (const EvalConfig& eval : config.eval) {
    names.push_back(eval.name);
    if (eval.name != name) continue;
    auto store = OpenSource(
        eval.path,
        {.video = options.video, .group_key = eval.group_by, .storage = options.storage});
    if (!store.ok()) {
      return Annotate(store.status(), absl::StrCat("evaluation source \"", name, "\""));
    }
    return Create(config, {name, *std::move(store), eval.video_fps}, eval.max_samples, options);
  }
  const std::string nearest = NearestName(name, names);
  return absl::NotFoundError(
      absl::StrCat("data.eval has no source \"", name, "\"",
                   nearest.empty() ? "" : absl::StrCat("; did you mean \"", nearest, "\"?")));
}

absl::StatusOr<std::unique_ptr<EvalLoader>> EvalLoader::Create(const DataConfig& config,
                                                               OpenedSource source,
                                                               int64_t max_samples,
                                                               const Options& options) {
  OMNI_CHECK(options.rank >= 0 && options.rank < options.world);
  std::shared_ptr<const Tokenizer> tokenizer = options.tokenizer;
  if (tokenizer == nullptr) {
    OMNI_ASSIGN_OR_RETURN(tokenizer, Tokenizer::Load(config.tokenizer, config.special_tokens));
  }
  int64_t num_samples = source.store->num_samples();
  if (max_samples > 0) num_samples = std::min(num_samples, max_samples);
  auto planner = std::make_unique<SamplePlanner>(
      config, std::vector<OpenedSource>{std::move(source)}, std::move(tokenizer));
  std::unique_ptr<EvalLoader> loader(new EvalLoader(std::move(planner), num_samples, options));
  if (options.blind == Blind::kSwapped) OMNI_RETURN_IF_ERROR(loader->PairUp());
  return loader;
}

absl::Status EvalLoader::PairUp() {
  std::map<std::string, std::vector<int64_t>> groups;  // by question and kinds of media
  donors_.assign(num_samples_, -1);
  const SampleStore& store = *planner_->sources()[0].store;
  for (int64_t i = 0; i < num_samples_; ++i) {
    donors_[i] = i;
    const auto conversation = store.LoadConversation(i);
    const absl::Status status =
        conversation.ok() ? store.Metadata(i).status() : conversation.status();
    if (!status.ok() && !IsSampleFault(status)) return status;
    // A broken one has no partner; it is reported when its turn comes.
    if (!status.ok()) continue;
    std::string key = absl::StrCat(conversation->question, "\n");
    for (const Part* part : conversation->media()) {
      absl::StrAppend(&key, static_cast<int>(part->kind));
    }
    if (!conversation->media().empty()) groups[key].push_back(i);
  }
  for (const auto& [key, members] : groups) {
    const size_t n = members.size();
    const Permutation order(n, planner_->config().seed, StreamOf(key));
    for (size_t i = 0; i < n; ++i) {
      donors_[members[order(i)]] = n == 1 ? -1 : members[order((i + 1) % n)];
    }
  }
  return absl::OkStatus();
}

std::vector<std::string> EvalLoader::in_work() const {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!decoding_.empty()) return {decoding_};
  }
  return planner_->in_work();
}

absl::StatusOr<std::optional<Microbatch>> EvalLoader::Next() {
  const DataConfig& config = planner_->config();
  const int64_t capacity = config.sequence_length * config.micro_batch_sequences;
  std::vector<PlacedSample> placed;
  int64_t tokens = 0;
  while (true) {
    if (carried_ == nullptr) {
      if (next_ >= num_samples_) break;
      const SampleKey key{.index = next_};
      SampleKey media_key = key;
      if (!donors_.empty()) media_key.index = donors_[next_];
      next_ += options_.world;
      if (media_key.index < 0) {
        faults_.push_back({SampleFault::kUnpaired, planner_->sources()[0].name,
                           Printable(planner_->sample_id(key)),
                           "no other sample asks its question with as many media"});
        continue;
      }
      OMNI_ASSIGN_OR_RETURN(SamplePlanner::Result result, planner_->Plan(key, media_key));
      progress_.Tick();
      if (result.fault != nullptr) faults_.push_back(std::move(*result.fault));
      if (result.plan == nullptr) continue;
      carried_ = std::move(result.plan);
    }
    if (tokens + carried_->num_tokens() > capacity) break;
    tokens += carried_->num_tokens();
    placed.push_back({.plan = std::move(carried_), .lane = options_.rank});
  }
  if (placed.empty()) return std::nullopt;
  MicrobatchBuilder builder(*planner_, placed);
  const auto at = [&](const std::string& sample_id) {
    const std::lock_guard<std::mutex> lock(mutex_);
    decoding_ = sample_id;
  };
  for (int64_t i = 0; i < builder.num_samples(); ++i) {
    at(placed[i].plan->sample_id);
    OMNI_RETURN_IF_ERROR(
        builder.Fill(i, decoder_, {.blank_media = options_.blind == Blind::kBlanked}));
    progress_.Tick();
  }
  at("");
  return builder.Finish(&faults_);
}

}  // namespace omni::dataloader
