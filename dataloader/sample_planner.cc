#include "dataloader/sample_planner.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/base/text.h"

namespace omni::dataloader {
namespace {

// A pad that a text spells would stand for a medium that is not there.
absl::Status CheckPads(const TokenizedSample& sample, const SpecialTokens& special) {
  int64_t num_rows = 0, num_pads = 0;
  for (const MediaSpan& media : sample.media) num_rows += media.shape.item.num_output_rows;
  for (const int32_t token : sample.tokens) {
    num_pads += token >= 0 && (token == special.image_pad || token == special.video_pad ||
                               token == special.audio_pad);
  }
  if (num_pads == num_rows) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("its text spells ", num_pads - num_rows,
                                          " of the pads that stand for rows of media, and ",
                                          "data.text_has_specials is set"));
}

}  // namespace

const char* Name(SampleFault fault) {
  switch (fault) {
    case SampleFault::kBroken:
      return "broken";
    case SampleFault::kOverlong:
      return "overlong";
    case SampleFault::kNoLoss:
      return "no_loss";
    case SampleFault::kCut:
      return "cut";
    case SampleFault::kBlanked:
      return "blanked";
    case SampleFault::kUnpaired:
      return "unpaired";
  }
  return "?";
}

bool IsSampleFault(const absl::Status& status) {
  return absl::IsDataLoss(status) || absl::IsInvalidArgument(status);
}

void SamplePlan::DropText() {
  dropped_tokens = num_tokens();
  TokenizedSample kept;
  kept.media = std::move(tokenized.media);
  kept.is_document = tokenized.is_document;
  // Swapped away: assigning nothing would keep the storage.
  for (MediaSpan& media : kept.media) std::vector<double>().swap(media.shape.timestamps_s);
  std::swap(tokenized, kept);
  std::string().swap(group);
  if (tokenized.media.empty()) std::string().swap(sample_id);  // media that fail are named
}

int64_t SamplePlan::held_bytes() const {
  const auto of = [](const auto& vector) {
    return static_cast<int64_t>(vector.capacity() * sizeof(vector[0]));
  };
  int64_t bytes = static_cast<int64_t>(sizeof(*this)) + of(sample_id) + of(group) +
                  of(tokenized.tokens) + of(tokenized.loss) + of(tokenized.media) +
                  of(tokenized.turn_ends) + of(media_info);
  for (const MediaSpan& media : tokenized.media) {
    bytes += of(media.run_begins) + of(media.shape.timestamps_s);
  }
  return bytes;
}

int64_t SamplePlanner::held_bytes() const {
  int64_t bytes = 0;
  for (const OpenedSource& source : sources_) bytes += source.store->held_bytes();
  return bytes;
}

int64_t SamplePlanner::max_held_bytes() const {
  int64_t bytes = 0;
  for (const OpenedSource& source : sources_) bytes += source.store->max_held_bytes();
  return bytes;
}

SamplePlanner::SamplePlanner(DataConfig config, std::vector<OpenedSource> sources,
                             std::shared_ptr<const Tokenizer> tokenizer)
    : config_(std::move(config)), sources_(std::move(sources)), tokenizer_(std::move(tokenizer)) {
  OMNI_CHECK(tokenizer_ != nullptr);
}

std::string SamplePlanner::sample_id(const SampleKey& key) const {
  return sources_[key.source].store->sample_id(key.index);
}

absl::StatusOr<std::unique_ptr<SamplePlan>> SamplePlanner::Tokenize(
    const SampleKey& key, const SampleKey& media_key) const {
  const SampleStore& store = *sources_[key.source].store;
  const SampleStore& media_store = *sources_[media_key.source].store;
  OMNI_ASSIGN_OR_RETURN(const Conversation conversation, store.LoadConversation(key.index));
  auto plan = std::make_unique<SamplePlan>();
  plan->key = key;
  plan->media_key = media_key;
  plan->sample_id = conversation.sample_id;
  plan->group = conversation.group;
  const std::vector<const Part*> parts = conversation.media();
  if (!parts.empty()) {
    OMNI_ASSIGN_OR_RETURN(SampleMetadata metadata, media_store.Metadata(media_key.index));
    plan->media_info = std::move(metadata.media);
  }
  if (parts.size() != plan->media_info.size()) {
    return absl::DataLossError(absl::StrCat("has ", parts.size(), " media in its messages and ",
                                            plan->media_info.size(), " in its metadata"));
  }
  std::vector<MediaShape> shapes;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (MediaKindOf(parts[i]->kind) != plan->media_info[i].kind) {
      return absl::DataLossError(absl::StrCat("medium ", i, " is of kind ",
                                              Name(plan->media_info[i].kind), ", expected ",
                                              Name(MediaKindOf(parts[i]->kind))));
    }
    if (!SymbolsOf(plan->media_info[i].kind, *tokenizer_).exist()) {
      // No fault of the sample's.
      const char* kind = plan->media_info[i].kind == MediaKind::kAudio ? "audio" : "vision";
      const char* pad = plan->media_info[i].kind == MediaKind::kAudio   ? "audio"
                        : plan->media_info[i].kind == MediaKind::kVideo ? "video"
                                                                        : "image";
      return absl::FailedPreconditionError(
          absl::StrCat("has a medium of kind ", Name(plan->media_info[i].kind),
                       ", data.special_tokens names no ", kind, "_start, ", pad, "_pad and ", kind,
                       "_end and data.template has none of its own"));
    }
    const absl::StatusOr<MediaShape> shape =
        MediaShapeOf(plan->media_info[i], config_, sources_[media_key.source].video_fps);
    if (!shape.ok()) return Annotate(shape.status(), parts[i]->text);
    shapes.push_back(*shape);
  }
  plan->tokenized = ApplyTemplate(conversation, shapes, *tokenizer_,
                                  {.kind = config_.chat_template,
                                   .frame_text = config_.frame_text,
                                   .add_generation_prompt = config_.as_prompts,
                                   .ends_last_turn = config_.ends_last_turn,
                                   .text_has_specials = config_.text_has_specials});
  if (config_.text_has_specials) {
    OMNI_RETURN_IF_ERROR(CheckPads(plan->tokenized, tokenizer_->special()));
  }
  return plan;
}

std::vector<std::string> SamplePlanner::in_work() const {
  std::vector<SampleKey> keys;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    keys = in_work_;
  }
  std::vector<std::string> names;
  for (const SampleKey& key : keys) names.push_back(sample_id(key));
  return names;
}

absl::StatusOr<SamplePlanner::Result> SamplePlanner::Plan(const SampleKey& key,
                                                          const SampleKey& media_key,
                                                          std::optional<int64_t> max_tokens) const {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    in_work_.push_back(key);
  }
  absl::StatusOr<Result> result = PlanOne(key, media_key, max_tokens);
  const std::lock_guard<std::mutex> lock(mutex_);
  in_work_.erase(std::find(in_work_.begin(), in_work_.end(), key));
  progress_.Tick();
  return result;
}

absl::StatusOr<SamplePlanner::Result> SamplePlanner::PlanOne(
    const SampleKey& key, const SampleKey& media_key, std::optional<int64_t> max_tokens) const {
  Result result;
  const int64_t limit = max_tokens.value_or(config_.sequence_length);
  const auto fault = [&](SampleFault kind, absl::string_view message) {
    const std::string id = sample_id(key);
    absl::ConsumePrefix(&message, absl::StrCat(id, ": "));  // the stores' messages start with it
    result.fault = std::make_unique<FaultEvent>(
        FaultEvent{kind, sources_[key.source].name, Printable(id), Printable(message)});
  };
  auto plan = Tokenize(key, media_key);
  if (!plan.ok()) {
    if (!IsSampleFault(plan.status())) {
      return absl::StartsWith(plan.status().message(), sample_id(key))
                 ? plan.status()
                 : Annotate(plan.status(), sample_id(key));
    }
    fault(SampleFault::kBroken, plan.status().message());
    return result;
  }
  TokenizedSample& tokenized = (*plan)->tokenized;
  if (tokenized.num_loss_tokens() == 0 && !config_.as_prompts) {
    fault(SampleFault::kNoLoss, "nothing in it has loss: no answer, no text");
    return result;
  }
  if ((*plan)->num_tokens() > limit) {
    const std::string message =
        absl::StrCat((*plan)->num_tokens(), " tokens, data.sequence_length is ", limit);
    if (config_.overlong == Overlong::kDrop || !CutTo(limit, &tokenized)) {
      fault(SampleFault::kOverlong, message);
      return result;
    }
    (*plan)->was_cut = true;
    fault(SampleFault::kCut, absl::StrCat(message, ", cut to ", (*plan)->num_tokens()));
  }
  (*plan)->loss_tokens = tokenized.num_loss_tokens();
  result.plan = *std::move(plan);
  return result;
}

}  // namespace omni::dataloader
