#include "dataloader/bpe/pattern.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "absl/strings/str_cat.h"
#include "dataloader/bpe/unicode.h"
#include "tests/dataloader/bpe/golden_file.h"

namespace omni::dataloader {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// The pieces, matches in brackets.
std::vector<std::string> Pieces(const std::string& oniguruma, absl::string_view text) {
  const auto translated = TranslatePattern(oniguruma);
  EXPECT_TRUE(translated.ok()) << translated.status();
  const auto pattern = Pattern::Compile(*translated);
  EXPECT_TRUE(pattern.ok()) << pattern.status() << " " << *translated;
  std::vector<std::string> pieces;
  pattern->Split(text, [&](absl::string_view piece, bool is_match) {
    pieces.push_back(is_match ? absl::StrCat("[", piece, "]") : std::string(piece));
  });
  return pieces;
}

TEST(PatternTest, ClassesHaveTheReferencesMembersInAllOfUnicode) {
  std::string everything;
  for (uint32_t c = 0; c < 0x110000; ++c) {
    if (c < 0xD800 || c >= 0xE000) AppendCodePoint(c, &everything);
  }
  GoldenFile golden("categories.zst");
  const uint64_t num_patterns = golden.Number();
  ASSERT_GE(num_patterns, 60u);
  for (uint64_t i = 0; i < num_patterns; ++i) {
    const std::string name = golden.String();
    std::vector<bool> expected(0x110000), found(0x110000);
    size_t end = 0;
    for (uint64_t r = golden.Number(); r > 0; --r) {
      const size_t first = end + golden.Number();
      end = first + golden.Number();
      for (size_t c = first; c < end; ++c) expected[c] = true;
    }
    if (name == "word") {
      for (uint32_t c = 0; c < 0x110000; ++c) {
        found[c] = (c < 0xD800 || c >= 0xE000) && IsWord(c);
      }
    } else {
      const auto translated = TranslatePattern(name);
      ASSERT_TRUE(translated.ok()) << translated.status();
      const auto pattern = Pattern::Compile(*translated);
      ASSERT_TRUE(pattern.ok()) << pattern.status();
      pattern->Split(everything, [&](absl::string_view piece, bool is_match) {
        for (size_t at = 0; at < piece.size();) found[NextCodePoint(piece, &at)] = is_match;
      });
      if (name == "\\s") {
        std::vector<bool> spaces(0x110000);
        for (uint32_t c = 0; c < 0x110000; ++c) spaces[c] = IsSpace(c);
        EXPECT_EQ(spaces, expected);
      }
    }
    if (found == expected) continue;
    for (uint32_t c = 0; c < 0x110000; ++c) {
      ASSERT_EQ(found[c], expected[c]) << name << " and " << absl::StrCat("U+", absl::Hex(c));
    }
  }
  EXPECT_TRUE(golden.AtEnd());
}

TEST(PatternTest, SplitsIntoMatchesAndTheRest) {
  EXPECT_THAT(Pieces("a+", "baac"), ElementsAre("b", "[aa]", "c"));
  EXPECT_THAT(Pieces("a+", "aa"), ElementsAre("[aa]"));
  EXPECT_THAT(Pieces("a", "aa"), ElementsAre("[a]", "[a]"));
  EXPECT_THAT(Pieces("a", "b"), ElementsAre("b"));
  EXPECT_THAT(Pieces("a", ""), ElementsAre());
  EXPECT_THAT(Pieces("ab|a", "aba"), ElementsAre("[ab]", "[a]"));
  EXPECT_THAT(Pieces("\\s+(?!\\S)|\\s+", "a   b "), ElementsAre("a", "[  ]", "[ ]", "b", "[ ]"));
}

TEST(PatternTest, EscapesMeanWhatTheyMeanToOniguruma) {
  EXPECT_THAT(Pieces("\\v", "\n\v"), ElementsAre("\n", "[\v]"));  // not any vertical space
  EXPECT_THAT(Pieces("\\s", "\xE1\xA0\x8E"), ElementsAre("\xE1\xA0\x8E"));  // U+180E
  EXPECT_THAT(Pieces("[\\]\\-\\[]+", "a]-["), ElementsAre("a", "[]-[]"));
  EXPECT_THAT(Pieces("\\x41[\\x42-\\x44]", "ABC"), ElementsAre("[AB]", "C"));
  EXPECT_THAT(Pieces("\\$\\^\\.\\(\\)", "$^.()"), ElementsAre("[$^.()]"));
  EXPECT_THAT(Pieces("[-a]+[b-]", "-a-"), ElementsAre("[-a-]"));
}

TEST(PatternTest, QuantifiersAreGreedyLazyOrPossessive) {
  EXPECT_THAT(Pieces("a{1,2}", "aaa"), ElementsAre("[aa]", "[a]"));
  EXPECT_THAT(Pieces("a{2}", "aaa"), ElementsAre("[aa]", "a"));
  EXPECT_THAT(Pieces("a{2,}", "aaa"), ElementsAre("[aaa]"));
  EXPECT_THAT(Pieces("a+?", "aa"), ElementsAre("[a]", "[a]"));
  EXPECT_THAT(Pieces("a?+a", "a"), ElementsAre("a"));  // gives nothing back
  EXPECT_THAT(Pieces("b(ac|a)?+", "bac"), ElementsAre("[bac]"));
  EXPECT_THAT(Pieces("(?i:it's)", "IT'S"), ElementsAre("[IT'S]"));
}

TEST(PatternTest, LongTextsNeedNoLuck) {
  const std::string letters(1 << 20, 'a'), spaces(1 << 20, ' ');
  EXPECT_THAT(Pieces("\\p{L}+", letters), ElementsAre("[" + letters + "]"));
  // Backtracks to the start of all spaces once.
  EXPECT_THAT(Pieces("\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+", spaces + "x"),
              ElementsAre("[" + spaces.substr(1) + "]", "[ ]", "x"));
  std::string pairs;
  for (int i = 0; i < 20000; ++i) pairs += "ab";
  EXPECT_THAT(Pieces("[ab]*+b|[ab]*(?:a|b)?a", pairs),
              ElementsAre("[" + pairs.substr(0, pairs.size() - 1) + "]", "b"));
}

TEST(PatternTest, TheInterpreterCutsAsMachineCodeDoes) {
  const auto translated = TranslatePattern(
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)");
  ASSERT_TRUE(translated.ok()) << translated.status();
  const auto compiled = Pattern::Compile(*translated), plain = Pattern::Compile(*translated, false);
  ASSERT_TRUE(compiled.ok() && plain.ok());
  for (const std::string& text : GoldenStrings()) {
    std::vector<std::pair<absl::string_view, bool>> one, other;
    compiled->Split(
        text, [&](absl::string_view piece, bool is_match) { one.emplace_back(piece, is_match); });
    plain->Split(
        text, [&](absl::string_view piece, bool is_match) { other.emplace_back(piece, is_match); });
    ASSERT_EQ(one, other) << text;
  }
}

struct Unsupported {
  const char* pattern;
  const char* message;
};

class UnsupportedPatternTest : public ::testing::TestWithParam<Unsupported> {};

TEST_P(UnsupportedPatternTest, IsAnErrorThatSaysWhat) {
  const auto translated = TranslatePattern(GetParam().pattern);
  ASSERT_EQ(translated.status().code(), absl::StatusCode::kInvalidArgument) << *translated;
  EXPECT_THAT(std::string(translated.status().message()), HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    All, UnsupportedPatternTest,
    ::testing::Values(
        Unsupported{"a.b", "\".\" unescaped"}, Unsupported{"^a", "\"^\" unescaped"},
        Unsupported{"a$", "\"$\" unescaped"}, Unsupported{"*a", "\"*\" unescaped"},
        Unsupported{"a|+b", "at byte 2"}, Unsupported{"\\w+", "\"\\w\""},
        Unsupported{"\\h", "\"\\h\""}, Unsupported{"\\b", "\"\\b\""}, Unsupported{"\\1", "\"\\1\""},
        Unsupported{"\\", "at the end"}, Unsupported{"\\x{41}", "\"\\x\""},
        Unsupported{"\\xE9", "\"\\x\""}, Unsupported{"\\p{Han}", "general category"},
        Unsupported{"\\p{C}", "general category"}, Unsupported{"\\pL", "without a \"{\""},
        Unsupported{"\\p{L", "general category"}, Unsupported{"[a[b]]", "\"[\" in a class"},
        Unsupported{"[a&&b]", "\"&&\""}, Unsupported{"[[:alpha:]]", "\"[\" in a class"},
        Unsupported{"[]a]", "empty class"}, Unsupported{"[a", "without its \"]\""},
        Unsupported{"[b-a]", "before it starts"}, Unsupported{"[a-\\s]", "before it starts"},
        Unsupported{"[\\s-a]", "starts with a class"}, Unsupported{"[\\S]", "negation in a class"},
        Unsupported{"[\\P{L}]", "negation in a class"}, Unsupported{"a{1,2}+", "after {...}"},
        Unsupported{"a{2}?", "after {...}"}, Unsupported{"a{,2}", "expected {n}"},
        Unsupported{"a{2,1}", "n <= m"}, Unsupported{"a{x}", "expected {n}"},
        Unsupported{"a{1,2,3}", "expected {n}"}, Unsupported{"a{1001}", "more than 1000"},
        Unsupported{"a++?", "after a quantifier"}, Unsupported{"(a)*", "repeated group"},
        Unsupported{"(?:a){2}", "repeated group"}, Unsupported{"(?=a)?", "repeated group"},
        Unsupported{"(?<=a)b", "a group other than"}, Unsupported{"(?<n>a)", "a group other than"},
        Unsupported{"(?i)a", "a group other than"}, Unsupported{"(a", "without its \")\""},
        Unsupported{"a)", "without its \"(\""}, Unsupported{"(?i:\xC3\xA9)", "beyond ASCII"},
        Unsupported{"(?i:[\xC3\xA9])", "beyond ASCII"}, Unsupported{"(?i:miss)", "\"ss\""},
        Unsupported{"(?i:st)", "\"st\""}, Unsupported{"(?i:\\p{Lu})", "class in (?i:"},
        Unsupported{"(?i:[a-z])", "range in (?i:"}, Unsupported{"(?i:a(b))", "group in (?i:"},
        Unsupported{"\xFF", "not UTF-8"}));

TEST(PatternTest, PatternsThatMatchNothingAreErrors) {
  for (const char* pattern : {"a*", "a?|b", "(?!a)", "", "a|"}) {
    const auto translated = TranslatePattern(pattern);
    ASSERT_TRUE(translated.ok()) << translated.status();
    EXPECT_THAT(std::string(Pattern::Compile(*translated).status().message()),
                HasSubstr("matches the empty string"))
        << pattern;
  }
  EXPECT_THAT(std::string(TranslatePattern(std::string(9000, 'a')).status().message()),
              HasSubstr("9000 bytes"));
  EXPECT_THAT(std::string(TranslatePattern(std::string(40, '(')).status().message()),
              HasSubstr("nested too deeply"));
}

}  // namespace
}  // namespace omni::dataloader
