#include "dataloader/tokenizer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "dataloader/bpe/bpe_tokenizer.h"
#include "dataloader/sentencepiece_model.h"
#include "runtime/base/file.h"
#include "runtime/base/status.h"

namespace omni::dataloader {
namespace {

std::vector<std::string> NonEmpty(const SpecialTokenNames& names) {
  std::vector<std::string> symbols;
  for (const std::string& name :
       {names.im_start, names.im_end, names.header_end, names.vision_start, names.vision_end,
        names.image_pad, names.video_pad, names.audio_start, names.audio_end, names.audio_pad,
        names.bos, names.eos}) {
    if (!name.empty()) symbols.push_back(name);
  }
  return symbols;
}

}  // namespace

struct Tokenizer::Model {
  virtual ~Model() = default;
  virtual void Append(absl::string_view text, bool finds_symbols, bool adds_prefix,
                      std::vector<int32_t>* ids) const = 0;
  virtual std::string Decode(absl::Span<const int32_t> ids) const = 0;
  virtual std::string Piece(int32_t id) const = 0;
  virtual int32_t SymbolId(const std::string& name) const = 0;  // -1: no symbol
  virtual int32_t size() const = 0;
  virtual int32_t bos() const { return -1; }
  virtual int32_t eos() const { return -1; }
  // What to do about a symbol that is missing.
  virtual const char* advice() const = 0;
};

struct Tokenizer::SentencePiece : Model {
  void Append(absl::string_view text, bool finds_symbols, bool /*adds_prefix*/,
              std::vector<int32_t>* ids) const override {
    if (finds_symbols) return model.Encode(text.data(), text.size(), ids);
    // SentencePiece would read a symbol out of the text. Cutting each after its first character
    // leaves the same characters, as ordinary pieces.
    while (!text.empty()) {
      size_t cut = text.size();
      for (const std::string& symbol : symbols) {
        const size_t found = text.find(symbol);
        if (found != absl::string_view::npos) cut = std::min(cut, found + 1);
      }
      model.Encode(text.data(), cut, ids);
      text.remove_prefix(cut);
    }
  }
  std::string Decode(absl::Span<const int32_t> ids) const override {
    return model.Decode(std::vector<int>(ids.begin(), ids.end()));
  }
  std::string Piece(int32_t id) const override { return model.Piece(id); }
  int32_t SymbolId(const std::string& name) const override { return model.SymbolId(name); }
  int32_t size() const override { return model.size(); }
  int32_t bos() const override { return model.bos(); }
  int32_t eos() const override { return model.eos(); }
  const char* advice() const override {
    return "train it with this user-defined symbol or name another one";
  }

  SentencePieceModel model;
  std::vector<std::string> symbols;
};

struct Tokenizer::Bpe : Model {
  void Append(absl::string_view text, bool finds_symbols, bool adds_prefix,
              std::vector<int32_t>* ids) const override {
    model->Encode(text, {.finds_reserved = finds_symbols, .adds_prefix = adds_prefix}, ids);
  }
  std::string Decode(absl::Span<const int32_t> ids) const override { return model->Decode(ids); }
  std::string Piece(int32_t id) const override { return model->Piece(id); }
  int32_t SymbolId(const std::string& name) const override { return model->AddedTokenId(name); }
  int32_t size() const override { return model->size(); }
  const char* advice() const override { return "add it to added_tokens or name another one"; }

  std::unique_ptr<BpeTokenizer> model;
};

Tokenizer::Tokenizer(std::unique_ptr<Model> model) : model_(std::move(model)) {}
Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& path,
                                                           const SpecialTokenNames& names) {
  const absl::StatusOr<std::string> bytes = ReadFile(path);
  if (absl::IsNotFound(bytes.status())) return Annotate(bytes.status(), "tokenizer");
  if (!bytes.ok() || bytes->empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tokenizer ", path,
        " is empty or can't be read, expected a SentencePiece model or a tokenizer.json",
        bytes.ok() ? "" : absl::StrCat(": ", bytes.status().message())));
  }
  if (absl::EndsWith(path, ".json") || bytes->front() == '{') return FromJson(*bytes, path, names);
  return FromModel(*bytes, path, names);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromModel(absl::string_view serialized,
                                                                const std::string& origin,
                                                                const SpecialTokenNames& names) {
  auto model = std::make_unique<SentencePiece>();
  if (const std::string error = model->model.Load(std::string(serialized)); !error.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokenizer ", origin, " is not a SentencePiece model: ", error));
  }
  model->symbols = NonEmpty(names);
  std::unique_ptr<Tokenizer> tokenizer(new Tokenizer(std::move(model)));
  OMNI_RETURN_IF_ERROR(tokenizer->Resolve(names, origin));
  return tokenizer;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromJson(absl::string_view json,
                                                               const std::string& origin,
                                                               const SpecialTokenNames& names) {
  auto model = std::make_unique<Bpe>();
  OMNI_ASSIGN_OR_RETURN(model->model, BpeTokenizer::FromJson(json, origin, NonEmpty(names)));
  std::unique_ptr<Tokenizer> tokenizer(new Tokenizer(std::move(model)));
  OMNI_RETURN_IF_ERROR(tokenizer->Resolve(names, origin));
  return tokenizer;
}

absl::Status Tokenizer::Resolve(const SpecialTokenNames& names, const std::string& origin) {
  struct Wanted {
    const char* key;
    const std::string& name;
    int32_t* id;
  };
  const Wanted wanted[] = {{"im_start", names.im_start, &special_.im_start},
                           {"im_end", names.im_end, &special_.im_end},
                           {"header_end", names.header_end, &special_.header_end},
                           {"vision_start", names.vision_start, &special_.vision_start},
                           {"vision_end", names.vision_end, &special_.vision_end},
                           {"image_pad", names.image_pad, &special_.image_pad},
                           {"video_pad", names.video_pad, &special_.video_pad},
                           {"audio_start", names.audio_start, &special_.audio_start},
                           {"audio_end", names.audio_end, &special_.audio_end},
                           {"audio_pad", names.audio_pad, &special_.audio_pad},
                           {"bos", names.bos, &special_.bos},
                           {"eos", names.eos, &special_.eos}};
  special_.bos = model_->bos();
  special_.eos = model_->eos();
  for (const auto& [key, name, id] : wanted) {
    if (name.empty()) continue;
    *id = model_->SymbolId(name);
    if (*id >= 0) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "tokenizer ", origin, " has no symbol \"", name, "\" among its ", model_->size(),
        " pieces; ", model_->advice(), " in data.special_tokens.", key));
  }
  return absl::OkStatus();
}

void Tokenizer::Append(absl::string_view text, std::vector<int32_t>* ids) const {
  model_->Append(text, false, false, ids);
}

void Tokenizer::AppendWithSpecials(absl::string_view text, std::vector<int32_t>* ids) const {
  model_->Append(text, true, false, ids);
}

std::vector<int32_t> Tokenizer::Encode(absl::string_view text) const {
  std::vector<int32_t> ids;
  Append(text, &ids);
  return ids;
}

std::vector<int32_t> Tokenizer::EncodeWithSpecials(absl::string_view text, bool adds_prefix) const {
  std::vector<int32_t> ids;
  model_->Append(text, true, adds_prefix, &ids);
  return ids;
}

std::string Tokenizer::Decode(absl::Span<const int32_t> ids) const { return model_->Decode(ids); }

std::string Tokenizer::Piece(int32_t id) const { return model_->Piece(id); }

int32_t Tokenizer::vocab_size() const { return model_->size(); }

}  // namespace omni::dataloader
