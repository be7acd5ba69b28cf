#include "dataloader/bpe/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "dataloader/bpe/unicode.h"
#include "runtime/base/check.h"

namespace omni::dataloader {
namespace {

// Nothing from here on changes under NFC: planes 3 and above.
constexpr uint32_t kEnd = 0x30000;
constexpr auto kOptions = static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE);

// Nothing before it changes under NFC, and it is what nearly all text consists of.
constexpr uint32_t kFirstMark = 0x300;

template <typename Range>
void Mark(const Range& range, std::vector<bool>* flags) {
  for (uint32_t c = range.first; c <= range.last && c < flags->size(); ++c) (*flags)[c] = true;
}

template <typename Range>
bool Contains(absl::Span<const Range> ranges, uint32_t c) {
  const auto* it = std::lower_bound(ranges.begin(), ranges.end(), c,
                                    [](const Range& r, uint32_t value) { return r.last < value; });
  return it != ranges.end() && it->first <= c;
}

// The reference neither reorders nor composes these.
bool IsBarrier(uint32_t c) {
  return Contains(UnknownToReferenceNfc(), c) || Contains(NewerThanUnicode14(), c);
}

void AppendNfc(absl::string_view text, std::string* result) {
  if (text.empty()) return;
  utf8proc_uint8_t* out = nullptr;
  const utf8proc_ssize_t size =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()), &out, kOptions);
  OMNI_CHECK_GE(size, 0);  // only ill-formed text and want of memory make it fail
  result->append(reinterpret_cast<const char*>(out), static_cast<size_t>(size));
  std::free(out);  // NOLINT: allocated by utf8proc
}

}  // namespace

NfcNormalizer::NfcNormalizer() : may_change_(kEnd) {
  for (uint32_t c = kFirstMark; c < kEnd; ++c) {
    if (c >= 0xAC00 && c < 0xE000) continue;  // Hangul syllables are composed; surrogates
    const auto code_point = static_cast<utf8proc_int32_t>(c);
    if (utf8proc_get_property(code_point)->combining_class != 0) may_change_[c] = true;
    utf8proc_int32_t parts[8];
    int last_class = 0;
    const auto count = utf8proc_decompose_char(
        code_point, parts, 8, static_cast<utf8proc_option_t>(UTF8PROC_DECOMPOSE | UTF8PROC_STABLE),
        &last_class);
    OMNI_CHECK(count >= 1 && count <= 8);
    if (count == 1 && parts[0] == code_point) continue;
    std::string own, composed;
    AppendCodePoint(c, &own);
    AppendNfc(own, &composed);
    if (composed != own) may_change_[c] = true;  // never stands in NFC
    for (int i = 1; i < count; ++i) may_change_[parts[i]] = true;
  }
  Mark(CodePointRange{0x1161, 0x1175}, &may_change_);  // Hangul vowels
  Mark(CodePointRange{0x11A8, 0x11C2}, &may_change_);  // Hangul trailing consonants
}

bool NfcNormalizer::MayChange(absl::string_view text) const {
  for (size_t at = 0; at < text.size();) {
    if (static_cast<unsigned char>(text[at]) < 0xCC) {  // below U+0300, or inside of one
      ++at;
      continue;
    }
    const uint32_t c = NextCodePoint(text, &at);
    if (c < kEnd && may_change_[c]) return true;
  }
  return false;
}

std::string NfcNormalizer::Normalize(absl::string_view text) const {
  std::string result;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t here = at;
    const uint32_t c = NextCodePoint(text, &at);
    if (c < kFirstMark || !IsBarrier(c)) continue;
    AppendNfc(text.substr(begin, here - begin), &result);
    absl::StrAppend(&result, text.substr(here, at - here));
    begin = at;
  }
  AppendNfc(text.substr(begin), &result);
  return result;
}

}  // namespace omni::dataloader
