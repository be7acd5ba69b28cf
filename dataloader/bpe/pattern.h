// The regular expressions that cut a text into words, as PCRE2 runs them.
//
// A tokenizer.json is written for Oniguruma. The two agree on what the families use, but not on
// all: \v and \h mean other things, {1,3}+ is possessive in one only, [[ and && are set operations
// in one only, PCRE2's \s has U+180E, and their Unicode versions differ. So patterns are
// translated from a subset whose meaning is the same in both, and everything else is an error:
//
//   characters, also escaped; \r \n \t \f \v \xHH \s \S \d \D \p{L} \P{L} \p{^L}
//   [...] and [^...] of characters, ranges, \s \d \p{L}; alternatives; (...) (?:...)
//   (?i:...) with ASCII letters; (?=...) (?!...)
//   ? * + {n,m} on characters and classes, and ? on groups, also lazy or (not {n,m}) possessive
//
// Groups take no * or +, which keeps the time polynomial whatever a file asks for.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

struct pcre2_real_code_8;

namespace omni::dataloader {

// InvalidArgument: not of the subset; says what, and at which byte.
absl::StatusOr<std::string> TranslatePattern(absl::string_view oniguruma);
// Matches `text` itself.
std::string LiteralPattern(absl::string_view text);

// Immutable: threads may share one.
class Pattern {
 public:
  // Of a translated pattern. InvalidArgument: PCRE2 does not take it, or it matches "". Matching is
  // interpreted without `to_machine_code`, and where PCRE2 has no compiler for the processor.
  static absl::StatusOr<Pattern> Compile(const std::string& translated,
                                         bool to_machine_code = true);

  // Calls `piece` for every stretch of well-formed `text` between and of its matches, in order;
  // none is empty.
  void Split(absl::string_view text,
             absl::FunctionRef<void(absl::string_view piece, bool is_match)> piece) const;

 private:
  struct FreeCode {
    void operator()(pcre2_real_code_8* code) const;
  };
  std::unique_ptr<pcre2_real_code_8, FreeCode> code_;
  bool is_machine_code_ = false;
};

}  // namespace omni::dataloader
