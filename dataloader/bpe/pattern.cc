#define PCRE2_CODE_UNIT_WIDTH 8
#include "dataloader/bpe/pattern.h"

#include <pcre2.h>

#include <limits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"

namespace omni::dataloader {
namespace {

struct FreeMatchData {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
struct FreeMatchContext {
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};

// Without limits: also for a match that needs more than the 32 KiB of stack machine code has.
int Interpret(const pcre2_code* code, PCRE2_SPTR text, size_t size, size_t at,
              pcre2_match_data* data) {
  const std::unique_ptr<pcre2_match_context, FreeMatchContext> context(
      pcre2_match_context_create(nullptr));
  pcre2_set_match_limit(context.get(), std::numeric_limits<uint32_t>::max());
  pcre2_set_depth_limit(context.get(), std::numeric_limits<uint32_t>::max());
  pcre2_set_heap_limit(context.get(), std::numeric_limits<uint32_t>::max());
  return pcre2_match(code, text, size, at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data, context.get());
}

}  // namespace

void Pattern::FreeCode::operator()(pcre2_real_code_8* code) const { pcre2_code_free(code); }

absl::StatusOr<Pattern> Pattern::Compile(const std::string& translated, bool to_machine_code) {
  int error = 0;
  size_t error_offset = 0;
  Pattern pattern;
  pattern.code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()),
                                    translated.size(), PCRE2_UTF | PCRE2_UCP, &error, &error_offset,
                                    nullptr));
  if (pattern.code_ == nullptr) {
    PCRE2_UCHAR message[256] = "";
    pcre2_get_error_message(error, message, sizeof(message));
    return absl::InvalidArgumentError(
        absl::StrCat("PCRE2 does not take the pattern: ", reinterpret_cast<const char*>(message)));
  }
  uint32_t may_match_empty = 0;
  pcre2_pattern_info(pattern.code_.get(), PCRE2_INFO_MATCHEMPTY, &may_match_empty);
  if (may_match_empty != 0) {
    return absl::InvalidArgumentError("the pattern matches the empty string");
  }
  pattern.is_machine_code_ =
      to_machine_code && pcre2_jit_compile(pattern.code_.get(), PCRE2_JIT_COMPLETE) == 0;
  return pattern;
}

void Pattern::Split(absl::string_view text,
                    absl::FunctionRef<void(absl::string_view, bool)> piece) const {
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  const std::unique_ptr<pcre2_match_data, FreeMatchData> data(pcre2_match_data_create(1, nullptr));
  const size_t* const bounds = pcre2_get_ovector_pointer(data.get());
  size_t at = 0;
  while (at < text.size()) {
    int found = PCRE2_ERROR_JIT_STACKLIMIT;
    if (is_machine_code_) {
      found = pcre2_jit_match(code_.get(), subject, text.size(), at, 0, data.get(), nullptr);
    }
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) {
      found = Interpret(code_.get(), subject, text.size(), at, data.get());
    }
    if (found == PCRE2_ERROR_NOMATCH) break;
    OMNI_CHECK_GE(found, 0);
    if (bounds[0] > at) piece(text.substr(at, bounds[0] - at), false);
    piece(text.substr(bounds[0], bounds[1] - bounds[0]), true);
    at = bounds[1];
  }
  if (at < text.size()) piece(text.substr(at), false);
}

}  // namespace omni::dataloader
