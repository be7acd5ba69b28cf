#include "dataloader/bpe/unicode.h"

#include <utf8proc.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"

namespace omni::dataloader {
namespace {

// Length of the well-formed sequence at the start of `text`; or, with `*is_whole` false, of the
// longest start of one (at least 1).
size_t SequenceLength(absl::string_view text, bool* is_whole) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  *is_whole = lead < 0x80;
  if (*is_whole || lead < 0xC2 || lead > 0xF4) return 1;
  const size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte's range keeps out long forms, surrogates and what is beyond U+10FFFF.
  unsigned char low = 0x80, high = 0xBF;
  if (lead == 0xE0) low = 0xA0;
  if (lead == 0xED) high = 0x9F;
  if (lead == 0xF0) low = 0x90;
  if (lead == 0xF4) high = 0x8F;
  for (size_t i = 1; i < length; ++i) {
    if (i == text.size() || byte(i) < low || byte(i) > high) return i;
    low = 0x80;
    high = 0xBF;
  }
  *is_whole = true;
  return length;
}

const NewerRange* FindNewer(uint32_t code_point) {
  const absl::Span<const NewerRange> ranges = NewerThanUnicode14();
  const auto* it =
      std::lower_bound(ranges.begin(), ranges.end(), code_point,
                       [](const NewerRange& range, uint32_t value) { return range.last < value; });
  return it != ranges.end() && it->first <= code_point ? it : nullptr;
}

}  // namespace

uint32_t NextCodePoint(absl::string_view text, size_t* at) {
  const auto byte = [&](size_t i) {
    return static_cast<uint32_t>(static_cast<unsigned char>(text[*at + i]));
  };
  const uint32_t lead = byte(0);
  uint32_t value = lead;
  size_t length = 1;
  if (lead >= 0xF0) {
    value = (lead & 7) << 18 | (byte(1) & 63) << 12 | (byte(2) & 63) << 6 | (byte(3) & 63);
    length = 4;
  } else if (lead >= 0xE0) {
    value = (lead & 15) << 12 | (byte(1) & 63) << 6 | (byte(2) & 63);
    length = 3;
  } else if (lead >= 0xC0) {
    value = (lead & 31) << 6 | (byte(1) & 63);
    length = 2;
  }
  *at += length;
  return value;
}

uint32_t PreviousCodePoint(absl::string_view text, size_t* end) {
  OMNI_DCHECK(*end > 0);
  size_t at = *end - 1;
  while ((static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  *end = at;
  return NextCodePoint(text, &at);
}

void AppendCodePoint(uint32_t code_point, std::string* text) {
  utf8proc_uint8_t bytes[4];
  const auto length = utf8proc_encode_char(static_cast<utf8proc_int32_t>(code_point), bytes);
  text->append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(length));
}

bool IsWellFormed(absl::string_view text) {
  while (!text.empty()) {
    bool is_whole = false;
    const size_t length = SequenceLength(text, &is_whole);
    if (!is_whole) return false;
    text.remove_prefix(length);
  }
  return true;
}

std::string ReplaceIllFormed(absl::string_view text) {
  std::string result;
  while (!text.empty()) {
    bool is_whole = false;
    const size_t length = SequenceLength(text, &is_whole);
    absl::StrAppend(&result, is_whole ? text.substr(0, length) : "\xEF\xBF\xBD");
    text.remove_prefix(length);
  }
  return result;
}

bool IsSpace(uint32_t c) {
  if (c < 0x80) return c == ' ' || (c >= 9 && c <= 13);
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
         c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool IsWord(uint32_t c) {
  if (c == 0x200C || c == 0x200D) return true;  // joiners
  if ((c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) ||
      (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189)) {
    return true;  // symbols that are Alphabetic: letters in circles and squares
  }
  const NewerRange* newer = FindNewer(c);
  const absl::string_view category =
      newer != nullptr ? newer->category
                       : utf8proc_category_string(static_cast<utf8proc_int32_t>(c));
  return category[0] == 'L' || category[0] == 'M' || category == "Nd" || category == "Nl" ||
         category == "Pc";
}

}  // namespace omni::dataloader
