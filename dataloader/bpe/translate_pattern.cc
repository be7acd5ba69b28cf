// Oniguruma's patterns into PCRE2's; see pattern.h.
#include <algorithm>
#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "dataloader/bpe/pattern.h"
#include "dataloader/bpe/unicode.h"
#include "runtime/base/status.h"

namespace omni::dataloader {
namespace {

constexpr size_t kMaxPatternBytes = 8192;
constexpr int kMaxDepth = 16;
constexpr int kMaxRepeat = 1000;
// PCRE2's own \s has U+180E too.
constexpr char kSpaces[] =
    R"(\x{9}-\x{D}\x{20}\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";
// Whose members only grew since PCRE2's version (Mn and Mc swapped some).
constexpr absl::string_view kCategories[] = {
    "L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "N",  "Nd", "Nl", "No", "P",  "Pc", "Pd",
    "Ps", "Pe", "Pi", "Pf", "Po", "S",  "Sm", "Sc", "Sk", "So", "Z",  "Zs", "Zl", "Zp"};

std::string Hex(uint32_t code_point) { return absl::StrFormat("\\x{%X}", code_point); }

// The members of a category, to stand inside of [...].
std::string Members(absl::string_view category) {
  std::string members = absl::StrCat("\\p{", category, "}");
  for (const NewerRange& range : NewerThanUnicode14()) {
    if (absl::string_view(range.category).substr(0, category.size()) != category) continue;
    absl::StrAppend(&members, Hex(range.first));
    if (range.last != range.first) absl::StrAppend(&members, "-", Hex(range.last));
  }
  return members;
}

// A character, or the members of a class and whether they are meant or all others.
struct Item {
  std::optional<uint32_t> character;
  std::string members;
  bool negated = false;
};

class Translator {
 public:
  explicit Translator(absl::string_view pattern) : pattern_(pattern) {}

  absl::StatusOr<std::string> Run() {
    if (pattern_.size() > kMaxPatternBytes) {
      return absl::InvalidArgumentError(absl::StrCat(
          "a pattern of ", pattern_.size(), " bytes, expected at most ", kMaxPatternBytes));
    }
    if (!IsWellFormed(pattern_)) return Unsupported("not UTF-8");
    OMNI_RETURN_IF_ERROR(Alternatives(0, false));
    if (!AtEnd()) return Unsupported("a \")\" without its \"(\"");
    return std::move(out_);
  }

 private:
  bool AtEnd() const { return at_ == pattern_.size(); }
  bool Skip(absl::string_view text) {
    if (pattern_.substr(at_, text.size()) != text) return false;
    at_ += text.size();
    return true;
  }
  bool Sees(char c) const { return !AtEnd() && pattern_[at_] == c; }
  absl::Status Unsupported(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat("at byte ", at_, " of the pattern: ", what,
                                                   "; dataloader/bpe/pattern.h lists what is "
                                                   "supported"));
  }

  absl::Status Alternatives(int depth, bool ignores_case) {
    if (depth > kMaxDepth) return Unsupported("groups nested too deeply");
    char previous_letter = 0;  // of a caseless literal, as the atom just before
    while (!AtEnd() && !Sees(')')) {
      if (Skip("|")) {
        out_ += '|';
        previous_letter = 0;
        continue;
      }
      if (Skip("(")) {
        if (ignores_case) return Unsupported("a group in (?i:...)");
        OMNI_RETURN_IF_ERROR(Group(depth));
        continue;
      }
      if (Skip("[")) {
        previous_letter = 0;
        OMNI_RETURN_IF_ERROR(Class(ignores_case));
      } else {
        OMNI_ASSIGN_OR_RETURN(const Item item, Atom());
        if (item.character && ignores_case) {
          OMNI_RETURN_IF_ERROR(CheckCaseless(*item.character, &previous_letter));
        } else if (ignores_case) {
          return Unsupported("a class in (?i:...)");
        }
        Emit(item);
      }
      OMNI_RETURN_IF_ERROR(Quantifier());
    }
    return absl::OkStatus();
  }

  // Case folding beyond ASCII differs, and Oniguruma lets some pairs stand for one character
  // ("ss" for U+00DF, "ff" "fi" "fl" "st" for ligatures).
  absl::Status CheckCaseless(uint32_t c, char* previous_letter) const {
    if (c >= 0x80) return Unsupported("a character beyond ASCII in (?i:...)");
    const char letter = absl::ascii_tolower(static_cast<unsigned char>(c));
    const char pair[] = {*previous_letter, letter};
    for (const absl::string_view folds : {"ss", "ff", "fi", "fl", "st"}) {
      if (folds == absl::string_view(pair, 2)) {
        return Unsupported(absl::StrCat("\"", folds, "\" in (?i:...)"));
      }
    }
    *previous_letter = letter;
    return absl::OkStatus();
  }

  absl::Status Group(int depth) {
    bool is_assertion = false, ignores_case = false;
    if (Skip("?i:")) {
      ignores_case = true;
      out_ += "(?i:";
    } else if (Skip("?=") || Skip("?!")) {
      is_assertion = true;
      absl::StrAppend(&out_, "(?", pattern_.substr(at_ - 1, 1));
    } else if (Skip("?:") || !Sees('?')) {
      out_ += "(?:";
    } else {
      return Unsupported("a group other than (...), (?:...), (?i:...), (?=...) and (?!...)");
    }
    OMNI_RETURN_IF_ERROR(Alternatives(depth + 1, ignores_case));
    if (!Skip(")")) return Unsupported("a group without its \")\"");
    out_ += ')';
    if (Sees('*') || Sees('+') || Sees('{') || (is_assertion && Sees('?'))) {
      return Unsupported("a repeated group");
    }
    return Quantifier();
  }

  absl::Status Quantifier() {
    if (AtEnd()) return absl::OkStatus();
    const char kind = pattern_[at_];
    if (kind == '{') {
      OMNI_RETURN_IF_ERROR(Counts());
      // Here {n}? and {n,m}+ are quantifiers of quantifiers to Oniguruma.
      if (Sees('+') || Sees('?')) return Unsupported("a \"+\" or \"?\" after {...}");
    } else if (kind == '?' || kind == '*' || kind == '+') {
      ++at_;
      out_ += kind;
      if (Sees('+') || Sees('?')) out_ += pattern_[at_++];
    }
    if (Sees('?') || Sees('*') || Sees('+') || Sees('{')) {
      return Unsupported("a quantifier after a quantifier");
    }
    return absl::OkStatus();
  }

  absl::Status Counts() {
    int counts[2] = {-1, -1};
    size_t num_counts = 0;
    ++at_;
    for (;; ++num_counts) {
      if (num_counts == 2) return Unsupported("expected {n}, {n,} or {n,m}");
      while (!AtEnd() && absl::ascii_isdigit(static_cast<unsigned char>(pattern_[at_]))) {
        int& count = counts[num_counts];
        count = std::max(count, 0) * 10 + (pattern_[at_++] - '0');
        if (count > kMaxRepeat) return Unsupported(absl::StrCat("more than ", kMaxRepeat));
      }
      if (Skip("}")) break;
      if (!Skip(",")) return Unsupported("expected {n}, {n,} or {n,m}");
    }
    // {,m} and counts that fall mean something else to Oniguruma.
    const bool falls = num_counts == 1 && counts[1] >= 0 && counts[1] < counts[0];
    if (counts[0] < 0 || falls) return Unsupported("expected {n}, {n,} or {n,m} with n <= m");
    absl::StrAppend(&out_, "{", counts[0]);
    if (num_counts == 1) out_ += ',';
    if (counts[1] >= 0) absl::StrAppend(&out_, counts[1]);
    out_ += '}';
    return absl::OkStatus();
  }

  absl::Status Class(bool ignores_case) {
    out_ += Skip("^") ? "[^" : "[";
    if (Sees(']')) return Unsupported("an empty class");
    while (!Skip("]")) {
      if (AtEnd()) return Unsupported("a class without its \"]\"");
      if (Sees('[')) return Unsupported("a \"[\" in a class");
      if (pattern_.substr(at_, 2) == "&&") return Unsupported("\"&&\" in a class");
      OMNI_ASSIGN_OR_RETURN(const Item item, Member());
      if (!item.character) {
        if (item.negated) return Unsupported("a negation in a class");
        if (ignores_case) return Unsupported("a class in (?i:...)");
        out_ += item.members;
        if (Sees('-') && pattern_.substr(at_, 2) != "-]") {
          return Unsupported("a range that starts with a class");
        }
        continue;
      }
      if (ignores_case && *item.character >= 0x80) {
        return Unsupported("a character beyond ASCII in (?i:...)");
      }
      out_ += Hex(*item.character);
      if (!Sees('-') || pattern_.substr(at_, 2) == "-]") continue;
      if (ignores_case) return Unsupported("a range in (?i:...)");
      ++at_;
      if (AtEnd() || Sees('[')) return Unsupported("a range without an end");
      OMNI_ASSIGN_OR_RETURN(const Item last, Member());
      if (!last.character || *last.character < *item.character) {
        return Unsupported("a range that ends before it starts");
      }
      absl::StrAppend(&out_, "-", Hex(*last.character));
    }
    out_ += ']';
    return absl::OkStatus();
  }

  absl::StatusOr<Item> Member() {
    if (Sees('\\')) return Escape();
    return Item{.character = NextCodePoint(pattern_, &at_)};
  }

  absl::StatusOr<Item> Atom() {
    const char c = pattern_[at_];
    if (c == '\\') return Escape();
    if (absl::string_view(".^$*+?{}]").find(c) != absl::string_view::npos) {
      return Unsupported(absl::StrCat("\"", absl::string_view(&c, 1), "\" unescaped"));
    }
    return Item{.character = NextCodePoint(pattern_, &at_)};
  }

  absl::StatusOr<Item> Escape() {
    ++at_;
    if (AtEnd()) return Unsupported("a \"\\\" at the end");
    const char c = pattern_[at_++];
    switch (c) {
      case 'n':
        return Item{.character = '\n'};
      case 'r':
        return Item{.character = '\r'};
      case 't':
        return Item{.character = '\t'};
      case 'f':
        return Item{.character = '\f'};
      case 'v':
        return Item{.character = '\v'};
      case 's':
      case 'S':
        return Item{.members = kSpaces, .negated = c == 'S'};
      case 'd':
      case 'D':
        return Item{.members = Members("Nd"), .negated = c == 'D'};
      case 'p':
      case 'P':
        return Property(c == 'P');
      case 'x': {
        const absl::string_view digits = pattern_.substr(at_, 2);
        uint32_t value = 0;
        if (digits.size() == 2 && absl::ascii_isxdigit(static_cast<unsigned char>(digits[0])) &&
            absl::ascii_isxdigit(static_cast<unsigned char>(digits[1])) &&
            absl::SimpleHexAtoi(digits, &value) && value < 0x80) {
          at_ += 2;
          return Item{.character = value};
        }
        break;
      }
      default:
        if (absl::ascii_ispunct(static_cast<unsigned char>(c)) || c == ' ') {
          return Item{.character = static_cast<unsigned char>(c)};
        }
    }
    --at_;
    return Unsupported(absl::ascii_isprint(static_cast<unsigned char>(c))
                           ? absl::StrCat("\"\\", absl::string_view(&c, 1), "\"")
                           : "a \"\\\" before a character beyond ASCII");
  }

  absl::StatusOr<Item> Property(bool negated) {
    if (!Skip("{")) return Unsupported("\\p without a \"{\"");
    if (Skip("^")) negated = !negated;
    const size_t end = pattern_.find('}', at_);
    const absl::string_view name =
        end == absl::string_view::npos ? "" : pattern_.substr(at_, end - at_);
    if (std::find(std::begin(kCategories), std::end(kCategories), name) == std::end(kCategories)) {
      return Unsupported(
          "\\p{...} of something other than a general category of letters, marks, "
          "numbers, punctuation, symbols or separators");
    }
    at_ = end + 1;
    return Item{.members = Members(name), .negated = negated};
  }

  void Emit(const Item& item) {
    if (item.character) {
      out_ += Hex(*item.character);
    } else {
      absl::StrAppend(&out_, item.negated ? "[^" : "[", item.members, "]");
    }
  }

  const absl::string_view pattern_;
  size_t at_ = 0;
  std::string out_;
};

}  // namespace

absl::StatusOr<std::string> TranslatePattern(absl::string_view oniguruma) {
  return Translator(oniguruma).Run();
}

std::string LiteralPattern(absl::string_view text) {
  std::string pattern;
  for (size_t at = 0; at < text.size();) absl::StrAppend(&pattern, Hex(NextCodePoint(text, &at)));
  return pattern;
}

}  // namespace omni::dataloader
