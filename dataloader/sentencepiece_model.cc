#include "dataloader/sentencepiece_model.h"

#include <dlfcn.h>

#include "absl/strings/str_cat.h"
#include "dataloader/sentencepiece/plugin.h"
#include "runtime/base/check.h"
#include "runtime/base/plugin.h"

namespace omni::dataloader {
namespace {

// Sanitizers replace functions by name and so refuse DEEPBIND; the tests they check that read text
// do not link gRPC, so there is no second protobuf to meet.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int kOpenFlags = 0;
#else
constexpr int kOpenFlags = RTLD_DEEPBIND;
#endif

constexpr Plugin kPlugin = {.file = "omnitrain_sentencepiece.so",
                            .environment = "OMNITRAIN_SENTENCEPIECE_PLUGIN",
                            .entry = OMNI_SENTENCEPIECE_ENTRY,
                            .open_flags = kOpenFlags};

// Fills `table`; "" or why not. Opening the plugin again is cheap.
std::string FillTable(OmniSentencePieceTable* table) {
  const absl::Status status = OpenPlugin(kPlugin, /*path=*/"", [&](void* entry) {
    return reinterpret_cast<OmniSentencePieceFillTableFunction>(entry)(
               OMNI_SENTENCEPIECE_ABI_VERSION, table) == 0;
  });
  if (status.ok()) return "";
  return absl::StrCat("the SentencePiece plugin does not load (set ", kPlugin.environment,
                      " to its path); ", status.message());
}

void AppendTo(void* argument, const char* data, size_t size) {
  static_cast<std::string*>(argument)->append(data, size);
}

}  // namespace

struct SentencePieceModel::Impl {
  OmniSentencePieceTable table{};
  void* model = nullptr;
};

SentencePieceModel::SentencePieceModel() : impl_(std::make_unique<Impl>()) {}

SentencePieceModel::~SentencePieceModel() {
  if (impl_->model != nullptr) impl_->table.release(impl_->model);
}

std::string SentencePieceModel::PluginError() {
  OmniSentencePieceTable table{};
  return FillTable(&table);
}

std::string SentencePieceModel::Load(const std::string& serialized) {
  OMNI_CHECK(impl_->model == nullptr);
  if (std::string error = FillTable(&impl_->table); !error.empty()) return error;
  char error[512] = "";
  impl_->model = impl_->table.load(serialized.data(), serialized.size(), error, sizeof(error));
  return error;
}

void SentencePieceModel::Encode(const char* text, size_t size, std::vector<int32_t>* ids) const {
  const size_t before = ids->size();
  int64_t capacity = static_cast<int64_t>(size) + 8;
  ids->resize(before + capacity);
  int64_t count = impl_->table.encode(impl_->model, text, size, ids->data() + before, capacity);
  if (count > capacity) {
    capacity = count;
    ids->resize(before + capacity);
    count = impl_->table.encode(impl_->model, text, size, ids->data() + before, capacity);
  }
  OMNI_CHECK_GE(count, 0);
  ids->resize(before + count);
}

std::string SentencePieceModel::Decode(const std::vector<int>& ids) const {
  std::string text;
  OMNI_CHECK(impl_->table.decode(impl_->model, ids.data(), static_cast<int64_t>(ids.size()),
                                 AppendTo, &text) == 0);
  return text;
}

int32_t SentencePieceModel::size() const { return impl_->table.size(impl_->model); }
int32_t SentencePieceModel::bos() const { return impl_->table.bos(impl_->model); }
int32_t SentencePieceModel::eos() const { return impl_->table.eos(impl_->model); }

int32_t SentencePieceModel::SymbolId(const std::string& piece) const {
  return impl_->table.symbol_id(impl_->model, piece.data(), piece.size());
}

std::string SentencePieceModel::Piece(int32_t id) const {
  std::string piece;
  OMNI_CHECK(impl_->table.piece(impl_->model, id, AppendTo, &piece) == 0);
  return piece;
}

std::string TrainSentencePiece(const std::unordered_map<std::string, std::string>& options,
                               const std::vector<std::string>& lines, std::string* model) {
  OmniSentencePieceTable table{};
  if (std::string error = FillTable(&table); !error.empty()) return error;
  std::vector<const char*> pairs;
  for (const auto& [name, value] : options) {
    pairs.push_back(name.c_str());
    pairs.push_back(value.c_str());
  }
  std::string text;
  for (const std::string& line : lines) text += line + "\n";
  char error[512] = "";
  model->clear();
  if (table.train(pairs.data(), static_cast<int32_t>(options.size()), text.data(), text.size(),
                  AppendTo, model, error, sizeof(error)) != 0) {
    return error[0] == '\0' ? "training failed" : error;
  }
  return "";
}

}  // namespace omni::dataloader
