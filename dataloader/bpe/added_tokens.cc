#include "dataloader/bpe/added_tokens.h"

#include <algorithm>
#include <utility>

#include "dataloader/bpe/unicode.h"

namespace omni::dataloader {
namespace {

bool IsWordAt(absl::string_view text, size_t at) { return IsWord(NextCodePoint(text, &at)); }
bool IsWordBefore(absl::string_view text, size_t end) {
  return IsWord(PreviousCodePoint(text, &end));
}

// Where the white space that ends at `end` begins.
size_t SpaceBegin(absl::string_view text, size_t end) {
  while (end > 0) {
    size_t begin = end;
    if (!IsSpace(PreviousCodePoint(text, &begin))) break;
    end = begin;
  }
  return end;
}

size_t SpaceEnd(absl::string_view text, size_t begin) {
  while (begin < text.size()) {
    size_t end = begin;
    if (!IsSpace(NextCodePoint(text, &end))) break;
    begin = end;
  }
  return begin;
}

}  // namespace

AddedTokenFinder::AddedTokenFinder(std::vector<Entry> entries)
    : entries_(std::move(entries)), entry_(1, -1) {
  for (size_t i = 0; i < entries_.size(); ++i) {
    const std::string& content = entries_[i].token.content;
    int32_t node = 0;
    for (const char c : content) {
      const auto byte = static_cast<unsigned char>(c);
      const auto [it, is_new] = children_.try_emplace(static_cast<uint64_t>(node) << 8 | byte,
                                                      static_cast<int32_t>(entry_.size()));
      node = it->second;
      if (is_new) entry_.push_back(-1);
    }
    // Of two that look alike after normalisation the first one holds.
    if (entry_[node] < 0) entry_[node] = static_cast<int32_t>(i);
    starts_token_[static_cast<unsigned char>(content[0])] = true;
  }
}

int32_t AddedTokenFinder::LongestAt(absl::string_view text) const {
  int32_t node = 0, longest = -1;
  for (const char c : text) {
    const auto it =
        children_.find(static_cast<uint64_t>(node) << 8 | static_cast<unsigned char>(c));
    if (it == children_.end()) break;
    node = it->second;
    if (entry_[node] >= 0) longest = entry_[node];
  }
  return longest;
}

void AddedTokenFinder::Split(absl::string_view text, bool finds_reserved,
                             absl::FunctionRef<void(absl::string_view, int32_t)> part) const {
  size_t done = 0;  // text up to here has been given to `part`
  for (size_t at = 0; at < text.size();) {
    const int32_t index =
        starts_token_[static_cast<unsigned char>(text[at])] ? LongestAt(text.substr(at)) : -1;
    if (index < 0) {
      ++at;
      continue;
    }
    const auto& [token, is_reserved] = entries_[index];
    size_t begin = at, end = at + token.content.size();
    at = end;
    if (is_reserved && !finds_reserved) continue;
    if (token.single_word &&
        ((begin > 0 && IsWordBefore(text, begin)) || (end < text.size() && IsWordAt(text, end)))) {
      continue;
    }
    // White space that an earlier token took is gone.
    if (token.lstrip) begin = std::max(SpaceBegin(text, begin), done);
    if (token.rstrip) end = SpaceEnd(text, end);
    if (done < begin) part(text.substr(done, begin - done), -1);
    part(text.substr(begin, end - begin), token.id);
    done = end;
  }
  if (done < text.size()) part(text.substr(done), -1);
}

}  // namespace omni::dataloader
