#include "runtime/base/text.h"

#include <cstdint>

#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace omni {
namespace {

// Bytes of the UTF-8 character at the front; 0: none is there (RFC 3629: shortest form, no
// surrogates, at most U+10FFFF).
size_t CharacterBytes(absl::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t first = byte(0);
  if (first < 0x80) return 1;
  const size_t count = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4 || text.size() < count) return 0;
  for (size_t i = 1; i < count; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  const uint8_t second = byte(1);
  if (first == 0xe0 && second < 0xa0) return 0;
  if (first == 0xed && second > 0x9f) return 0;
  if (first == 0xf0 && second < 0x90) return 0;
  if (first == 0xf4 && second > 0x8f) return 0;
  return count;
}

std::string Escape(absl::string_view text, bool keeps_lines) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const size_t count = CharacterBytes(text);
    const auto c = static_cast<uint8_t>(text[0]);
    // U+0080 to U+009F are control characters too.
    const bool is_control =
        c < 0x20 || c == 0x7f || (count == 2 && c == 0xc2 && static_cast<uint8_t>(text[1]) < 0xa0);
    if (count > 0 && (!is_control || (keeps_lines && c == '\n'))) {
      out.append(text.data(), count);
    } else if (c == '\n') {
      out.append("\\n");
    } else if (c == '\t') {
      out.append("\\t");
    } else if (c == '\r') {
      out.append("\\r");
    } else {
      for (size_t i = 0; i < (count == 0 ? 1 : count); ++i) {
        absl::StrAppendFormat(&out, "\\x%02x", static_cast<uint8_t>(text[i]));
      }
    }
    text.remove_prefix(count == 0 ? 1 : count);
  }
  return out;
}

}  // namespace

std::string Printable(absl::string_view text) { return Escape(text, false); }
std::string PrintableLines(absl::string_view text) { return Escape(text, true); }

std::string MetricPart(absl::string_view name) {
  return absl::StrReplaceAll(Printable(name), {{"%", "%25"}, {"/", "%2F"}});
}

}  // namespace omni
