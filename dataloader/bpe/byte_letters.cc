#include "dataloader/bpe/byte_letters.h"

#include "dataloader/bpe/unicode.h"

namespace omni::dataloader {
namespace {

constexpr bool IsItsOwnLetter(uint32_t byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

// The bytes that are not, in order: letter U+0100 + i stands for others[i].
struct Others {
  uint8_t bytes[256] = {};
  uint32_t count = 0;
  constexpr Others() {
    for (uint32_t byte = 0; byte < 256; ++byte) {
      if (!IsItsOwnLetter(byte)) bytes[count++] = static_cast<uint8_t>(byte);
    }
  }
};
constexpr Others kOthers;

}  // namespace

std::string LetterOf(uint8_t byte) {
  std::string letter;
  if (IsItsOwnLetter(byte)) {
    AppendCodePoint(byte, &letter);
    return letter;
  }
  uint32_t i = 0;
  while (kOthers.bytes[i] != byte) ++i;
  AppendCodePoint(0x100 + i, &letter);
  return letter;
}

std::optional<std::string> BytesOf(absl::string_view letters) {
  std::string bytes;
  for (size_t at = 0; at < letters.size();) {
    const uint32_t c = NextCodePoint(letters, &at);
    if (c < 0x100 && IsItsOwnLetter(c)) {
      bytes += static_cast<char>(c);
    } else if (c >= 0x100 && c - 0x100 < kOthers.count) {
      bytes += static_cast<char>(kOthers.bytes[c - 0x100]);
    } else {
      return std::nullopt;
    }
  }
  return bytes;
}

}  // namespace omni::dataloader
