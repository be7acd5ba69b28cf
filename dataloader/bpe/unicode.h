// What of Unicode the tokenizers need, in the version of the reference (PyPI's `tokenizers`).
//
// Ids depend on which characters are letters, numbers, spaces and combining marks. The reference's
// regular expressions know Unicode 16 and its NFC one before Unicode 10, Debian's PCRE2 knows 14
// and utf8proc 15. unicode_tables.cc holds the differences.
#pragma once

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace omni::dataloader {

struct CodePointRange {
  uint32_t first, last;
};
struct NewerRange {
  uint32_t first, last;
  char category[3];  // "Lu"
};

// In order; code points that have a category since Unicode 15 or 16.
absl::Span<const NewerRange> NewerThanUnicode14();
// In order; marks that the reference's NFC passes over as if they were letters.
absl::Span<const CodePointRange> UnknownToReferenceNfc();

inline bool IsAscii(absl::string_view text) {
  for (const char c : text) {
    if (static_cast<unsigned char>(c) >= 0x80) return false;
  }
  return true;
}

// The code point at `*at` of well-formed UTF-8; moves `*at` behind it.
uint32_t NextCodePoint(absl::string_view text, size_t* at);
// The code point that ends at `end`, where `end` is not 0; moves `*end` before it.
uint32_t PreviousCodePoint(absl::string_view text, size_t* end);
void AppendCodePoint(uint32_t code_point, std::string* text);

bool IsWellFormed(absl::string_view text);
// Each longest start of a sequence that can't go on becomes one U+FFFD, as Python's
// errors="replace" and Rust's from_utf8_lossy do.
std::string ReplaceIllFormed(absl::string_view text);

// White_Space.
bool IsSpace(uint32_t code_point);
// What \w matches: Alphabetic, marks, decimal numbers, connectors and joiners.
bool IsWord(uint32_t code_point);

}  // namespace omni::dataloader
