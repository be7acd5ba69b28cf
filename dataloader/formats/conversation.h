// One training sample as text and references to media, whatever form its JSON had.
//
// Accepted forms (one JSON object a sample):
//   {"messages": [{"role": "user", "content": [{"type": "image", "image": "0.jpg"},
//                                              {"type": "text", "text": "What is it?"}]}, ...]}
//   {"messages": [{"role": "user", "content": "<image>What is it?"}, ...], "images": ["a.jpg"]}
//        also "videos" and "audios"; as LLaMA-Factory and ms-swift write it
//   {"conversations": [{"from": "human", "value": "<image>What is it?"}, ...], "images": [...]}
//   {"query": "...", "response": "...", "history": [["q", "a"], ...], "system": "..."}
//   {"instruction": "...", "input": "...", "output": "...", "history": ..., "system": "..."}
//   {"text": "a plain document"}       placeholders and "images" ... allowed
//   {"content": [{"type": "text", ...}, {"type": "image", ...}]}    an interleaved document
// with an optional "question" naming a closed-answer question of the evaluation. Unknown keys
// are ignored: real data sets carry many.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "dataloader/media/media_info.h"

namespace omni::dataloader {

enum class Role : uint8_t { kSystem, kUser, kAssistant, kTool };
const char* Name(Role role);  // "assistant"

enum class PartKind : uint8_t { kText, kImage, kAudio, kVideo };
MediaKind MediaKindOf(PartKind kind);  // not of kText

struct Part {
  PartKind kind = PartKind::kText;
  std::string text;          // the text; or the reference to the media as the sample wrote it
  int32_t media_index = -1;  // counts the sample's media in order of appearance; -1 for text

  bool operator==(const Part&) const = default;
};

struct Message {
  Role role = Role::kUser;
  std::vector<Part> parts;
};

struct Conversation {
  std::string sample_id;          // "shard.tar:key" or "file.jsonl:line"
  std::string question;           // "" if none
  std::string group;              // the value of the group key; "" if there is none
  bool is_document = false;       // then messages is one of Role::kAssistant: loss on its text
  std::vector<Message> messages;  // at least one

  std::vector<const Part*> media() const;  // in order of appearance; points into this object
};

// DataLoss, starting with the sample's id: not JSON, missing or ill-typed keys (with their
// path, "messages[2].content"), unknown roles (with the nearest valid one), a number of
// placeholders other than the number of media of that kind (with both).
// `group_key`: a further key of the sample whose value, a string, number or truth value, becomes
// Conversation::group.
absl::StatusOr<Conversation> ParseConversation(absl::string_view json, std::string sample_id,
                                               const std::string& group_key = "");

}  // namespace omni::dataloader
