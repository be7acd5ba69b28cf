#include "dataloader/tokenizer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/file.h"
#include "runtime/base/status.h"

namespace omni::dataloader {

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& path,
                                                           const SpecialTokenNames& names) {
  const absl::StatusOr<std::string> bytes = ReadFile(path);
  if (absl::IsNotFound(bytes.status())) return Annotate(bytes.status(), "tokenizer");
  if (!bytes.ok() || bytes->empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tokenizer ", path, " is empty or can't be read, expected a SentencePiece model",
        bytes.ok() ? "" : absl::StrCat(": ", bytes.status().message())));
  }
  return FromModel(*bytes, path, names);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromModel(absl::string_view serialized,
                                                                const std::string& origin,
                                                                const SpecialTokenNames& names) {
  std::unique_ptr<Tokenizer> tokenizer(new Tokenizer());
  SentencePieceModel& model = tokenizer->model_;
  if (const std::string error = model.Load(std::string(serialized)); !error.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokenizer ", origin, " is not a SentencePiece model: ", error));
  }
  SpecialTokens& special = tokenizer->special_;
  const std::pair<const std::string&, int32_t*> wanted[] = {
      {names.im_start, &special.im_start},         {names.im_end, &special.im_end},
      {names.vision_start, &special.vision_start}, {names.vision_end, &special.vision_end},
      {names.image_pad, &special.image_pad},       {names.video_pad, &special.video_pad},
      {names.audio_start, &special.audio_start},   {names.audio_end, &special.audio_end},
      {names.audio_pad, &special.audio_pad}};
  for (const auto& [name, id] : wanted) {
    *id = model.SymbolId(name);
    if (*id < 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "tokenizer ", origin, " has no symbol \"", name, "\" among its ", model.size(),
          " pieces; train it with this user-defined symbol or name another one in "
          "data.special_tokens"));
    }
    tokenizer->symbols_.push_back(name);
  }
  special.bos = model.bos();
  special.eos = model.eos();
  return tokenizer;
}

void Tokenizer::Append(absl::string_view text, std::vector<int32_t>* ids) const {
  // SentencePiece would read a symbol out of the text. Cutting each after its first character
  // leaves the same characters, as ordinary pieces.
  while (!text.empty()) {
    size_t cut = text.size();
    for (const std::string& symbol : symbols_) {
      const size_t found = text.find(symbol);
      if (found != absl::string_view::npos) cut = std::min(cut, found + 1);
    }
    model_.Encode(text.data(), cut, ids);
    text.remove_prefix(cut);
  }
}

std::vector<int32_t> Tokenizer::Encode(absl::string_view text) const {
  std::vector<int32_t> ids;
  Append(text, &ids);
  return ids;
}

std::string Tokenizer::Decode(absl::Span<const int32_t> ids) const {
  return model_.Decode(std::vector<int>(ids.begin(), ids.end()));
}

std::string Tokenizer::Piece(int32_t id) const { return model_.Piece(id); }

int32_t Tokenizer::vocab_size() const { return model_.size(); }

}  // namespace omni::dataloader
