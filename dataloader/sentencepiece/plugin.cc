#include "dataloader/sentencepiece/plugin.h"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

using sentencepiece::SentencePieceProcessor;

const SentencePieceProcessor& Model(const void* model) {
  return *static_cast<const SentencePieceProcessor*>(model);
}

void* Load(const char* serialized, size_t size, char* error, size_t error_size) {
  auto* model = new SentencePieceProcessor();
  const auto status = model->LoadFromSerializedProto({serialized, size});
  if (status.ok()) return model;
  std::snprintf(error, error_size, "%s", status.ToString().c_str());
  delete model;
  return nullptr;
}

void Release(void* model) { delete static_cast<SentencePieceProcessor*>(model); }

int64_t Encode(const void* model, const char* text, size_t size, int32_t* out, int64_t capacity) {
  std::vector<int> ids;
  if (!Model(model).Encode({text, size}, &ids).ok()) return -1;
  const auto count = static_cast<int64_t>(ids.size());
  std::copy_n(ids.begin(), std::min(count, capacity), out);
  return count;
}

int32_t Decode(const void* model, const int32_t* ids, int64_t num_ids, OmniEmit emit,
               void* argument) {
  std::string text;
  if (!Model(model).Decode(std::vector<int>(ids, ids + num_ids), &text).ok()) return 1;
  emit(argument, text.data(), text.size());
  return 0;
}

int32_t SymbolId(const void* model, const char* piece, size_t size) {
  const std::string name(piece, size);
  const int id = Model(model).PieceToId(name);
  if (Model(model).IsUnknown(id) || Model(model).IdToPiece(id) != name) return -1;
  return id;
}

int32_t Piece(const void* model, int32_t id, OmniEmit emit, void* argument) {
  if (id < 0 || id >= Model(model).GetPieceSize()) return 1;
  const std::string& piece = Model(model).IdToPiece(id);
  emit(argument, piece.data(), piece.size());
  return 0;
}

class Lines : public sentencepiece::SentenceIterator {
 public:
  Lines(const char* text, size_t size) {
    const char* const end = text + size;
    while (text < end) {
      const char* stop = std::find(text, end, '\n');
      lines_.emplace_back(text, stop);
      text = stop == end ? end : stop + 1;
    }
  }
  bool done() const override { return next_ >= lines_.size(); }
  void Next() override { ++next_; }
  const std::string& value() const override { return lines_[next_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  std::vector<std::string> lines_;
  size_t next_ = 0;
};

int32_t Train(const char* const* options, int32_t num_options, const char* lines, size_t size,
              OmniEmit emit, void* argument, char* error, size_t error_size) {
  std::unordered_map<std::string, std::string> named;
  for (int32_t i = 0; i < num_options; ++i) named[options[2 * i]] = options[2 * i + 1];
  Lines iterator(lines, size);
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(named, &iterator, &model);
  if (!status.ok()) {
    std::snprintf(error, error_size, "%s", status.ToString().c_str());
    return 1;
  }
  emit(argument, model.data(), model.size());
  return 0;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) int32_t OmniSentencePieceFillTable(
    int32_t abi_version, OmniSentencePieceTable* table) {
  if (abi_version != OMNI_SENTENCEPIECE_ABI_VERSION) return 1;
  table->load = Load;
  table->release = Release;
  table->encode = Encode;
  table->decode = Decode;
  table->size = [](const void* model) -> int32_t { return Model(model).GetPieceSize(); };
  table->bos = [](const void* model) -> int32_t { return Model(model).bos_id(); };
  table->eos = [](const void* model) -> int32_t { return Model(model).eos_id(); };
  table->symbol_id = SymbolId;
  table->piece = Piece;
  table->train = Train;
  return 0;
}
