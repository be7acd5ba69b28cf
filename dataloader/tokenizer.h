// Text into token ids: a SentencePiece model and the symbols of the chat template.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "dataloader/data_config.h"
#include "dataloader/sentencepiece_model.h"

namespace omni::dataloader {

struct SpecialTokens {
  int32_t im_start = -1, im_end = -1;
  int32_t vision_start = -1, vision_end = -1, image_pad = -1, video_pad = -1;
  int32_t audio_start = -1, audio_end = -1, audio_pad = -1;
  int32_t bos = -1, eos = -1;  // the model's own; -1 if it has none
};

// Immutable: threads may share one.
class Tokenizer {
 public:
  // NotFound: no such file. InvalidArgument, naming the file: not a SentencePiece model, or one
  // that lacks a symbol (named) or treats it as ordinary text.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& path,
                                                         const SpecialTokenNames& names = {});
  // `origin` names the model in messages.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromModel(absl::string_view serialized,
                                                              const std::string& origin,
                                                              const SpecialTokenNames& names = {});

  // Never yields a special token: the symbols written in a text are text.
  std::vector<int32_t> Encode(absl::string_view text) const;
  void Append(absl::string_view text, std::vector<int32_t>* ids) const;
  std::string Decode(absl::Span<const int32_t> ids) const;
  std::string Piece(int32_t id) const;  // for looking at a sample

  int32_t vocab_size() const;
  const SpecialTokens& special() const { return special_; }

 private:
  Tokenizer() = default;

  SentencePieceModel model_;
  SpecialTokens special_;
  std::vector<std::string> symbols_;
};

}  // namespace omni::dataloader
