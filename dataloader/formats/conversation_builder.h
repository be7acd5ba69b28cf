// Puts a Conversation together: placeholders meet the sample's lists of media.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "dataloader/formats/conversation.h"

namespace omni::dataloader {

class ConversationBuilder {
 public:
  explicit ConversationBuilder(std::string sample_id);

  void SetQuestion(std::string question);
  // The next of "images", "videos" or "audios".
  void AddListed(PartKind kind, std::string reference);

  void BeginMessage(Role role);
  void BeginDocument();
  // To the message begun last:
  void AddText(std::string text);
  void AddMedia(PartKind kind, std::string reference);
  void AddPlaceholder(PartKind kind);
  // <image>, <video> and <audio> in `text` are placeholders.
  void AddTextWithPlaceholders(absl::string_view text);

  // DataLoss if a kind has another number of placeholders than of listed media, naming both.
  absl::StatusOr<Conversation> Finish();

 private:
  Conversation conversation_;
  std::array<std::vector<std::string>, 4> listed_;  // by PartKind
};

}  // namespace omni::dataloader
