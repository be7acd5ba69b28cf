// A tokenizer.json of PyPI's `tokenizers` as plain values: byte-level BPE as the Qwen and Llama
// families write it.
//
//   model             BPE; merges as "a b" or ["a", "b"]; ignore_merges; no dropout, no byte
//                     fallback, no prefix or suffix of subwords; all 256 bytes in the vocabulary
//   normalizer        null, NFC, or a Sequence of NFC
//   pre_tokenizer     ByteLevel, or a Sequence of Splits (a Regex that pattern.h takes, or a
//                     String; Isolated or Removed) with a ByteLevel last; no prefix space
//   added_tokens      all of their flags; ids as `tokenizers` would give them itself
//   post_processor    null, ByteLevel, TemplateProcessing, or a Sequence; of a template its
//                     `single` (there are no pairs of texts here)
//   decoder           ByteLevel
//   truncation, padding   null
//
// Anything else is an error that names the key: a tokenizer that is read by halves gives other
// ids without a word. `trim_offsets` and `type_id` are taken as they come: offsets and types are
// not computed.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "dataloader/bpe/byte_pairs.h"

namespace omni::dataloader {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool single_word = false;  // only where no letter, mark or number is next to it
  bool lstrip = false;       // takes the white space before it
  bool rstrip = false;       // takes the white space behind it
  bool normalized = false;   // looked for after normalisation, else before
  bool special = false;
};

struct SplitStep {
  std::string pattern;  // for Pattern::Compile
  bool removes_matches = false;
  bool removes_others = false;
};

struct TokenizerJson {
  bool nfc = false;
  std::vector<SplitStep> splits;  // one after the other
  // Spelled in byte letters (byte_letters.h), in order of ids.
  std::vector<std::pair<std::string, int32_t>> vocabulary;
  std::vector<Merge> merges;
  bool ignore_merges = false;
  std::vector<AddedToken> added_tokens;  // in the file's order
  std::vector<int32_t> prefix, suffix;   // what the post-processor puts around a text
};

// InvalidArgument: not JSON, ill-typed, inconsistent or unsupported; starts with
// "tokenizer `origin`: `key`".
absl::StatusOr<TokenizerJson> ParseTokenizerJson(absl::string_view text, const std::string& origin);

}  // namespace omni::dataloader
