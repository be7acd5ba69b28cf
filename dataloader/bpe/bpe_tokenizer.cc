#include "dataloader/bpe/bpe_tokenizer.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "dataloader/bpe/byte_letters.h"
#include "dataloader/bpe/unicode.h"
#include "runtime/base/status.h"

namespace omni::dataloader {
namespace {

absl::StatusOr<BytePairOptions> BytePairsOf(const TokenizerJson& json,
                                            const std::set<int32_t>& reserved,
                                            const std::string& origin) {
  BytePairOptions options;
  options.merges = json.merges;
  options.byte_ids.assign(256, -1);
  absl::flat_hash_map<std::string, int32_t> words;
  for (const auto& [letters, id] : json.vocabulary) {
    std::optional<std::string> bytes = BytesOf(letters);
    // What no text can spell, and what none may, is left out.
    if (!bytes || bytes->empty() || reserved.count(id) > 0) continue;
    if (bytes->size() == 1) options.byte_ids[static_cast<unsigned char>((*bytes)[0])] = id;
    if (json.ignore_merges) options.whole_words.emplace(*std::move(bytes), id);
  }
  for (int byte = 0; byte < 256; ++byte) {
    if (options.byte_ids[byte] >= 0) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("tokenizer ", origin, ": model.vocab: has no ordinary token \"",
                     LetterOf(static_cast<uint8_t>(byte)), "\" for byte ", byte,
                     ", expected one for each of the 256"));
  }
  for (size_t i = 0; i < json.merges.size(); ++i) {
    if (reserved.count(json.merges[i].merged) == 0) continue;
    return absl::InvalidArgumentError(absl::StrCat("tokenizer ", origin, ": model.merges[", i,
                                                   "]: makes id ", json.merges[i].merged,
                                                   ", a special token that text must not spell"));
  }
  return options;
}

}  // namespace

absl::StatusOr<std::unique_ptr<BpeTokenizer>> BpeTokenizer::FromJson(
    absl::string_view json_text, const std::string& origin,
    const std::vector<std::string>& reserved) {
  OMNI_ASSIGN_OR_RETURN(const TokenizerJson json, ParseTokenizerJson(json_text, origin));
  std::set<int32_t> reserved_ids;
  for (const AddedToken& token : json.added_tokens) {
    if (token.special ||
        std::find(reserved.begin(), reserved.end(), token.content) != reserved.end()) {
      reserved_ids.insert(token.id);
    }
  }
  OMNI_ASSIGN_OR_RETURN(BytePairOptions options, BytePairsOf(json, reserved_ids, origin));
  std::unique_ptr<BpeTokenizer> tokenizer(new BpeTokenizer(std::move(options)));
  if (json.nfc) tokenizer->normalizer_ = std::make_unique<NfcNormalizer>();
  for (const SplitStep& step : json.splits) {
    OMNI_ASSIGN_OR_RETURN(Pattern pattern, Pattern::Compile(step.pattern));
    tokenizer->splits_.push_back({std::move(pattern), step.removes_matches, step.removes_others});
  }
  tokenizer->prefix_ = json.prefix;
  tokenizer->suffix_ = json.suffix;

  int32_t size = json.vocabulary.empty() ? 0 : json.vocabulary.back().second + 1;
  for (const AddedToken& token : json.added_tokens) size = std::max(size, token.id + 1);
  tokenizer->pieces_.resize(size);
  for (const auto& [letters, id] : json.vocabulary) {
    tokenizer->pieces_[id] = BytesOf(letters).value_or(letters);
  }
  std::vector<AddedTokenFinder::Entry> before, after;
  for (const AddedToken& token : json.added_tokens) {
    // As the reference's decoder: letters of bytes are bytes, in added tokens too.
    tokenizer->pieces_[token.id] = BytesOf(token.content).value_or(token.content);
    tokenizer->added_ids_.emplace(token.content, token.id);
    AddedTokenFinder::Entry entry{token, reserved_ids.count(token.id) > 0};
    if (token.normalized && json.nfc) {
      entry.token.content = tokenizer->normalizer_->Normalize(token.content);
    }
    (token.normalized ? after : before).push_back(std::move(entry));
  }
  if (!before.empty()) {
    tokenizer->before_normalizing_ = std::make_unique<AddedTokenFinder>(std::move(before));
  }
  if (!after.empty()) {
    tokenizer->after_normalizing_ = std::make_unique<AddedTokenFinder>(std::move(after));
  }
  return tokenizer;
}

void BpeTokenizer::Encode(absl::string_view text, const BpeEncodeOptions& options,
                          std::vector<int32_t>* ids) const {
  std::string repaired;
  if (!IsWellFormed(text)) {
    repaired = ReplaceIllFormed(text);
    text = repaired;
  }
  if (options.adds_prefix) ids->insert(ids->end(), prefix_.begin(), prefix_.end());
  if (before_normalizing_ == nullptr) {
    EncodeNormalized(text, options.finds_reserved, ids);
  } else {
    before_normalizing_->Split(text, options.finds_reserved,
                               [&](absl::string_view part, int32_t id) {
                                 if (id >= 0) {
                                   ids->push_back(id);
                                 } else {
                                   EncodeNormalized(part, options.finds_reserved, ids);
                                 }
                               });
  }
  if (options.adds_prefix) ids->insert(ids->end(), suffix_.begin(), suffix_.end());
}

void BpeTokenizer::EncodeNormalized(absl::string_view text, bool finds_reserved,
                                    std::vector<int32_t>* ids) const {
  std::string normalized;
  if (normalizer_ != nullptr && normalizer_->MayChange(text)) {
    normalized = normalizer_->Normalize(text);
    text = normalized;
  }
  if (after_normalizing_ == nullptr) return EncodeWords(text, 0, ids);
  after_normalizing_->Split(text, finds_reserved, [&](absl::string_view part, int32_t id) {
    if (id >= 0) {
      ids->push_back(id);
    } else {
      EncodeWords(part, 0, ids);
    }
  });
}

void BpeTokenizer::EncodeWords(absl::string_view text, size_t split_index,
                               std::vector<int32_t>* ids) const {
  if (split_index == splits_.size()) return byte_pairs_.Append(text, ids);
  const SplitPattern& split = splits_[split_index];
  split.pattern.Split(text, [&](absl::string_view piece, bool is_match) {
    if (is_match ? split.removes_matches : split.removes_others) return;
    EncodeWords(piece, split_index + 1, ids);
  });
}

std::string BpeTokenizer::Decode(absl::Span<const int32_t> ids) const {
  std::string bytes;
  for (const int32_t id : ids) {
    if (id >= 0 && id < size()) bytes += pieces_[id];
  }
  return IsWellFormed(bytes) ? bytes : ReplaceIllFormed(bytes);
}

std::string BpeTokenizer::Piece(int32_t id) const {
  return id >= 0 && id < size() ? pieces_[id] : "";
}

int32_t BpeTokenizer::AddedTokenId(absl::string_view content) const {
  const auto it = added_ids_.find(content);
  return it == added_ids_.end() ? -1 : it->second;
}

}  // namespace omni::dataloader
