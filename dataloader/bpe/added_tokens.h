// Finds added tokens in a text: at each place the longest that starts there, left to right.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/strings/string_view.h"
#include "dataloader/bpe/tokenizer_json.h"

namespace omni::dataloader {

// Immutable: threads may share one.
class AddedTokenFinder {
 public:
  struct Entry {
    AddedToken token;
    bool is_reserved = false;  // text may spell it without meaning it
  };
  explicit AddedTokenFinder(std::vector<Entry> entries);

  // Calls `part` with the stretches of well-formed `text` in order: text with id -1, or a token's
  // id. Without `finds_reserved` reserved tokens stay text: each is passed over as a whole, so what
  // is written inside of one is not found either.
  void Split(absl::string_view text, bool finds_reserved,
             absl::FunctionRef<void(absl::string_view text, int32_t id)> part) const;

 private:
  // Index of the longest entry that `text` starts with, or -1.
  int32_t LongestAt(absl::string_view text) const;

  std::vector<Entry> entries_;
  // A trie: children_[node << 8 | byte] is a node, 0 the root; entry_[node] is an index or -1.
  absl::flat_hash_map<uint64_t, int32_t> children_;
  std::vector<int32_t> entry_;
  bool starts_token_[256] = {};
};

}  // namespace omni::dataloader
