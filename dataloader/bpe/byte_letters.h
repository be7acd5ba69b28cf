// Byte-level vocabularies spell each of the 256 bytes as one printable character: '!' to '~',
// U+00A1 to U+00AC and U+00AE to U+00FF stand for the bytes of their numbers, the others in order
// for U+0100, U+0101 and so on. A space is U+0120.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace omni::dataloader {

std::string LetterOf(uint8_t byte);
// Nothing if a character of the well-formed `letters` stands for no byte.
std::optional<std::string> BytesOf(absl::string_view letters);

}  // namespace omni::dataloader
