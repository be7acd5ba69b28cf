#include "dataloader/sentencepiece_model.h"

#include <sentencepiece_processor.h>

#include "runtime/base/check.h"

namespace omni::dataloader {

struct SentencePieceModel::Impl {
  sentencepiece::SentencePieceProcessor processor;
};

SentencePieceModel::SentencePieceModel() : impl_(std::make_unique<Impl>()) {}
SentencePieceModel::~SentencePieceModel() = default;

std::string SentencePieceModel::Load(const std::string& serialized) {
  const auto status = impl_->processor.LoadFromSerializedProto(serialized);
  return status.ok() ? "" : status.ToString();
}

void SentencePieceModel::Encode(const char* text, size_t size, std::vector<int32_t>* ids) const {
  std::vector<int> encoded;
  OMNI_CHECK(impl_->processor.Encode({text, size}, &encoded).ok());
  ids->insert(ids->end(), encoded.begin(), encoded.end());
}

std::string SentencePieceModel::Decode(const std::vector<int>& ids) const {
  std::string text;
  OMNI_CHECK(impl_->processor.Decode(ids, &text).ok());
  return text;
}

int32_t SentencePieceModel::size() const { return impl_->processor.GetPieceSize(); }
int32_t SentencePieceModel::bos() const { return impl_->processor.bos_id(); }
int32_t SentencePieceModel::eos() const { return impl_->processor.eos_id(); }

int32_t SentencePieceModel::SymbolId(const std::string& piece) const {
  const int id = impl_->processor.PieceToId(piece);
  if (impl_->processor.IsUnknown(id) || impl_->processor.IdToPiece(id) != piece) return -1;
  return id;
}

std::string SentencePieceModel::Piece(int32_t id) const { return impl_->processor.IdToPiece(id); }

}  // namespace omni::dataloader
