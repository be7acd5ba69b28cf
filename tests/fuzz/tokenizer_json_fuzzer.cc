// Any bytes as a tokenizer.json: an error that names the file, or a tokenizer that takes any text.
// The first line is the text, what follows is the file.
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "dataloader/bpe/bpe_tokenizer.h"
#include "dataloader/bpe/unicode.h"
#include "runtime/base/check.h"

namespace omni::dataloader {
namespace {

void FuzzTokenizerJson(absl::string_view input) {
  const size_t line = std::min(input.find('\n'), input.size());
  const absl::string_view text = input.substr(0, std::min<size_t>(line, 256));
  input.remove_prefix(std::min(line + 1, input.size()));
  const auto tokenizer = BpeTokenizer::FromJson(input, "t.json");
  if (!tokenizer.ok()) {
    OMNI_CHECK(absl::IsInvalidArgument(tokenizer.status()));
    OMNI_CHECK(absl::StartsWith(tokenizer.status().message(), "tokenizer t.json"));
    OMNI_CHECK(IsWellFormed(tokenizer.status().message()));
    return;
  }
  for (const bool finds_reserved : {false, true}) {
    std::vector<int32_t> ids, again;
    const BpeEncodeOptions options{.finds_reserved = finds_reserved, .adds_prefix = true};
    (*tokenizer)->Encode(text, options, &ids);
    (*tokenizer)->Encode(text, options, &again);
    OMNI_CHECK(ids == again);
    for (const int32_t id : ids) OMNI_CHECK(id >= 0 && id < (*tokenizer)->size());
    OMNI_CHECK(IsWellFormed((*tokenizer)->Decode(ids)));
  }
}

}  // namespace
}  // namespace omni::dataloader

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  omni::dataloader::FuzzTokenizerJson({reinterpret_cast<const char*>(data), size});
  return 0;
}
