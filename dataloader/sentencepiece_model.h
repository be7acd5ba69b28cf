// SentencePiece, reached through its plugin (dataloader/sentencepiece/plugin.h says why).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

namespace omni::dataloader {

class SentencePieceModel {
 public:
  SentencePieceModel();
  ~SentencePieceModel();

  // "" if the plugin loads, else why not.
  static std::string PluginError();
  std::string Load(const std::string& serialized);  // "" or what is wrong with it
  // Appends to `ids`.
  void Encode(const char* text, size_t size, std::vector<int32_t>* ids) const;
  std::string Decode(const std::vector<int>& ids) const;

  int32_t size() const;
  int32_t bos() const;  // -1: none
  int32_t eos() const;
  // Of a piece that is one symbol wherever it stands in a text; -1 if there is none such.
  int32_t SymbolId(const std::string& piece) const;
  std::string Piece(int32_t id) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Trains on `lines` with the trainer's `options` (its command line's names). Returns "" and fills
// `model` with the serialised model, or returns what went wrong.
std::string TrainSentencePiece(const std::unordered_map<std::string, std::string>& options,
                               const std::vector<std::string>& lines, std::string* model);

}  // namespace omni::dataloader
