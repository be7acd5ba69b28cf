// Any bytes as a conversation, and as a JSON or JSONL file of them: an error or a sound result.
#include <cstdint>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "dataloader/formats/conversation.h"
#include "dataloader/formats/json_split.h"
#include "runtime/base/check.h"

namespace omni::dataloader {
namespace {

void CheckConversation(const absl::StatusOr<Conversation>& conversation) {
  if (!conversation.ok()) {
    OMNI_CHECK(absl::IsDataLoss(conversation.status()));
    OMNI_CHECK(absl::StartsWith(conversation.status().message(), "id: "));
    return;
  }
  OMNI_CHECK(!conversation->messages.empty());
  int32_t media_index = 0;
  for (const Part* part : conversation->media()) {
    OMNI_CHECK_EQ(part->media_index, media_index++);
    OMNI_CHECK(!part->text.empty());
  }
}

}  // namespace

void FuzzConversation(absl::string_view text) {
  CheckConversation(ParseConversation(text, "id"));
  JsonSplitter whole, pieces;
  const bool fed = whole.Feed(text).ok();
  const absl::string_view first = text.substr(0, text.size() / 2);
  const bool fed_in_pieces = pieces.Feed(first).ok() && pieces.Feed(text.substr(first.size())).ok();
  OMNI_CHECK_EQ(fed, fed_in_pieces);
  if (!fed) return;
  const absl::StatusOr<RangeTable> ranges = whole.Finish();
  const absl::StatusOr<RangeTable> same = pieces.Finish();
  OMNI_CHECK_EQ(ranges.ok(), same.ok());
  if (!ranges.ok()) return;
  OMNI_CHECK_EQ(ranges->size(), same->size());
  int64_t end = 0;
  for (int64_t i = 0; i < ranges->size(); ++i) {
    const JsonRange range = ranges->at(i);
    OMNI_CHECK(range == same->at(i));
    OMNI_CHECK(range.offset >= end && range.size > 0);
    end = range.offset + range.size;
    OMNI_CHECK(end <= static_cast<int64_t>(text.size()));
  }
}

}  // namespace omni::dataloader

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  omni::dataloader::FuzzConversation({reinterpret_cast<const char*>(data), size});
  return 0;
}
