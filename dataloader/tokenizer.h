// Text into token ids: a SentencePiece model or a tokenizer.json, and the symbols of the chat
// template.
//
// What a text says is text. A user who writes <|im_end|> ends no turn and a caption that spells
// <|image_pad|> gets no picture: the symbols of the template and what a tokenizer.json calls
// special are read as the ordinary characters they consist of. PyPI's `tokenizers` makes special
// tokens of them; EncodeWithSpecials does as it does, and so does all text of a sample if
// data.text_has_specials is set (grounding data spells <|box_start|>, and means it). Other added
// tokens of a tokenizer.json
// (<think>, <tool_call>) mean themselves in both: assistants write them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "dataloader/special_tokens.h"

namespace omni::dataloader {

// -1: the names say there is none.
struct SpecialTokens {
  int32_t im_start = -1, im_end = -1, header_end = -1;
  int32_t vision_start = -1, vision_end = -1, image_pad = -1, video_pad = -1;
  int32_t audio_start = -1, audio_end = -1, audio_pad = -1;
  int32_t bos = -1, eos = -1;
};

// Immutable: threads may share one.
class Tokenizer {
 public:
  // A file whose name ends in .json or that starts with "{" is a tokenizer.json, any other a
  // SentencePiece model. NotFound: no such file. InvalidArgument, naming the file: neither, or one
  // that lacks a symbol (named) or treats it as ordinary text.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& path,
                                                         const SpecialTokenNames& names = {});
  // A serialised SentencePiece model. `origin` names it in messages.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromModel(absl::string_view serialized,
                                                              const std::string& origin,
                                                              const SpecialTokenNames& names = {});
  // The text of a tokenizer.json; bpe/tokenizer_json.h says which there are.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromJson(absl::string_view json,
                                                             const std::string& origin,
                                                             const SpecialTokenNames& names = {});
  ~Tokenizer();

  // Never yields a special token.
  std::vector<int32_t> Encode(absl::string_view text) const;
  void Append(absl::string_view text, std::vector<int32_t>* ids) const;
  // Appends the reference's reading of it.
  void AppendWithSpecials(absl::string_view text, std::vector<int32_t>* ids) const;
  // The reference's reading: for text that this program wrote, and for comparing. With
  // `adds_prefix` also what the file's post-processor puts first (Llama's <|begin_of_text|>).
  std::vector<int32_t> EncodeWithSpecials(absl::string_view text, bool adds_prefix = false) const;
  std::string Decode(absl::Span<const int32_t> ids) const;
  std::string Piece(int32_t id) const;  // for looking at a sample

  int32_t vocab_size() const;  // greatest id + 1
  const SpecialTokens& special() const { return special_; }

 private:
  struct Model;
  struct SentencePiece;
  struct Bpe;

  explicit Tokenizer(std::unique_ptr<Model> model);
  absl::Status Resolve(const SpecialTokenNames& names, const std::string& origin);

  std::unique_ptr<Model> model_;
  SpecialTokens special_;
};

}  // namespace omni::dataloader
