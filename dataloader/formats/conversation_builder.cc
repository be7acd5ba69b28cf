#include "dataloader/formats/conversation_builder.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"

namespace omni::dataloader {
namespace {

struct Placeholder {
  absl::string_view tag;
  PartKind kind;
};
constexpr Placeholder kPlaceholders[] = {
    {"<image>", PartKind::kImage}, {"<video>", PartKind::kVideo}, {"<audio>", PartKind::kAudio}};

const char* ListName(PartKind kind) {
  return kind == PartKind::kImage ? "images" : kind == PartKind::kVideo ? "videos" : "audios";
}

}  // namespace

ConversationBuilder::ConversationBuilder(std::string sample_id) {
  conversation_.sample_id = std::move(sample_id);
}

void ConversationBuilder::SetQuestion(std::string question) {
  conversation_.question = std::move(question);
}

void ConversationBuilder::AddListed(PartKind kind, std::string reference) {
  listed_[static_cast<size_t>(kind)].push_back(std::move(reference));
}

void ConversationBuilder::BeginMessage(Role role) {
  conversation_.messages.push_back({.role = role, .parts = {}});
}

void ConversationBuilder::BeginDocument() {
  conversation_.is_document = true;
  BeginMessage(Role::kAssistant);
}

void ConversationBuilder::AddText(std::string text) {
  OMNI_CHECK(!conversation_.messages.empty());
  if (text.empty()) return;
  conversation_.messages.back().parts.push_back({.kind = PartKind::kText, .text = std::move(text)});
}

void ConversationBuilder::AddMedia(PartKind kind, std::string reference) {
  OMNI_CHECK(!conversation_.messages.empty());
  conversation_.messages.back().parts.push_back({.kind = kind, .text = std::move(reference)});
}

// An empty reference, filled from the lists by Finish.
void ConversationBuilder::AddPlaceholder(PartKind kind) { AddMedia(kind, ""); }

void ConversationBuilder::AddTextWithPlaceholders(absl::string_view text) {
  // A document without media is just text: it may be a web page about <video>.
  bool has_media = !conversation_.is_document;
  for (const auto& list : listed_) has_media |= !list.empty();
  if (!has_media) return AddText(std::string(text));
  while (true) {
    size_t nearest = absl::string_view::npos;
    const Placeholder* found = nullptr;
    for (const Placeholder& placeholder : kPlaceholders) {
      const size_t at = text.find(placeholder.tag);
      if (at < nearest) {
        nearest = at;
        found = &placeholder;
      }
    }
    if (found == nullptr) break;
    AddText(std::string(text.substr(0, nearest)));
    AddPlaceholder(found->kind);
    text.remove_prefix(nearest + found->tag.size());
  }
  AddText(std::string(text));
}

absl::StatusOr<Conversation> ConversationBuilder::Finish() {
  std::array<size_t, 4> num_placeholders{};
  int32_t media_index = 0;
  for (Message& message : conversation_.messages) {
    for (Part& part : message.parts) {
      if (part.kind == PartKind::kText) continue;
      part.media_index = media_index++;
      if (!part.text.empty()) continue;
      const size_t kind = static_cast<size_t>(part.kind);
      const size_t next = num_placeholders[kind]++;
      if (next < listed_[kind].size()) part.text = listed_[kind][next];
    }
  }
  for (const PartKind kind : {PartKind::kImage, PartKind::kVideo, PartKind::kAudio}) {
    const size_t i = static_cast<size_t>(kind);
    if (num_placeholders[i] == listed_[i].size()) continue;
    const char* name = Name(MediaKindOf(kind));
    return absl::DataLossError(absl::StrCat(num_placeholders[i], " <", name, "> placeholders, but ",
                                            listed_[i].size(), " entries in \"", ListName(kind),
                                            "\""));
  }
  if (media_index == 0) {
    bool has_text = false;
    for (const Message& message : conversation_.messages) has_text |= !message.parts.empty();
    if (!has_text) return absl::DataLossError("no text and no media");
  }
  return std::move(conversation_);
}

}  // namespace omni::dataloader
