// Byte-level BPE out of a tokenizer.json: gives the ids that PyPI's `tokenizers` gives.
//
// A text's way: added tokens out of it; the rest normalised; added tokens that are looked for after
// that; words by the pre-tokenizer's patterns; each word's bytes by the merges.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "dataloader/bpe/added_tokens.h"
#include "dataloader/bpe/byte_pairs.h"
#include "dataloader/bpe/normalizer.h"
#include "dataloader/bpe/pattern.h"
#include "dataloader/bpe/tokenizer_json.h"

namespace omni::dataloader {

struct BpeEncodeOptions {
  // Whether a reserved token that the text spells becomes its id. `tokenizers` does so, unless its
  // encode_special_tokens is set.
  bool finds_reserved = false;
  bool adds_prefix = false;  // what the post-processor puts around: Llama's <|begin_of_text|>
};

// Threads may share one.
class BpeTokenizer {
 public:
  // Tokens that are `special` in the file are reserved, and so are added tokens named in
  // `reserved`. InvalidArgument, naming the file (`origin`) and the key.
  static absl::StatusOr<std::unique_ptr<BpeTokenizer>> FromJson(
      absl::string_view json, const std::string& origin,
      const std::vector<std::string>& reserved = {});

  // Appends to `ids`. Bytes that are not UTF-8 are read as U+FFFD.
  void Encode(absl::string_view text, const BpeEncodeOptions& options,
              std::vector<int32_t>* ids) const;
  // With added tokens as they are written. What is not UTF-8 becomes U+FFFD; ids that do not exist
  // are nothing.
  std::string Decode(absl::Span<const int32_t> ids) const;
  std::string Piece(int32_t id) const;  // its bytes; "" if there is no such id

  int32_t size() const { return static_cast<int32_t>(pieces_.size()); }  // greatest id + 1
  int32_t AddedTokenId(absl::string_view content) const;                 // -1: none such

 private:
  struct SplitPattern {
    Pattern pattern;
    bool removes_matches, removes_others;
  };

  explicit BpeTokenizer(BytePairOptions options) : byte_pairs_(std::move(options)) {}

  void EncodeNormalized(absl::string_view text, bool finds_reserved,
                        std::vector<int32_t>* ids) const;
  void EncodeWords(absl::string_view text, size_t split_index, std::vector<int32_t>* ids) const;

  std::unique_ptr<AddedTokenFinder> before_normalizing_, after_normalizing_;  // null: no tokens
  std::unique_ptr<NfcNormalizer> normalizer_;                                 // null: none
  std::vector<SplitPattern> splits_;
  BytePairs byte_pairs_;
  std::vector<int32_t> prefix_, suffix_;
  std::vector<std::string> pieces_;  // [size()]: bytes
  absl::flat_hash_map<std::string, int32_t> added_ids_;
};

}  // namespace omni::dataloader
