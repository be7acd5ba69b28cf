#include "dataloader/formats/json_split.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"

namespace omni::dataloader {
namespace {

bool IsSpace(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

}  // namespace

void JsonSplitter::EndElement() {
  if (start_ >= 0) ranges_.Append({start_, last_ + 1 - start_, start_line_});
  start_ = -1;
}

absl::Status JsonSplitter::FeedLines(char c) {
  if (c == '\n') {
    if (ranges_.empty() && start_ >= 0 && last_ == start_) {
      state_ = State::kObject;
    } else {
      EndElement();
    }
  } else if (!IsSpace(c)) {
    if (start_ < 0) {
      start_ = offset_;
      start_line_ = line_;
    }
    last_ = offset_;
  }
  return absl::OkStatus();
}

absl::Status JsonSplitter::FeedArray(char c) {
  if (in_string_) {
    if (escaped_) {
      escaped_ = false;
    } else if (c == '\\') {
      escaped_ = true;
    } else if (c == '"') {
      in_string_ = false;
    }
    last_ = offset_;
    return absl::OkStatus();
  }
  if (IsSpace(c)) return absl::OkStatus();
  if (depth_ == 0 && (c == ',' || c == ']')) {
    if (start_ < 0 && (c == ',' || !ranges_.empty())) {
      return absl::DataLossError(absl::StrCat("line ", line_, ": found ", std::string(1, c),
                                              " where a sample was expected"));
    }
    EndElement();
    if (c == ']') state_ = State::kArrayDone;
    return absl::OkStatus();
  }
  if (start_ < 0) {
    start_ = offset_;
    start_line_ = line_;
  }
  if (c == '"') in_string_ = true;
  if (c == '{' || c == '[') ++depth_;
  if (c == '}' || c == ']') --depth_;
  if (depth_ < 0) {
    return absl::DataLossError(absl::StrCat("line ", line_, ": unexpected ", std::string(1, c)));
  }
  last_ = offset_;
  return absl::OkStatus();
}

absl::Status JsonSplitter::Feed(absl::string_view piece) {
  for (const char c : piece) {
    switch (state_) {
      case State::kStart:
        // A byte order mark is three bytes above 0x7f.
        if (IsSpace(c) || (offset_ < 3 && static_cast<uint8_t>(c) >= 0x80)) break;
        if (c != '[' && c != '{') {
          return absl::DataLossError(
              absl::StrCat("line ", line_,
                           ": expected an array of samples ([...]) or a sample a "
                           "line ({...})"));
        }
        state_ = c == '[' ? State::kArray : State::kLines;
        if (c == '{') OMNI_RETURN_IF_ERROR(FeedLines(c));
        break;
      case State::kLines:
        OMNI_RETURN_IF_ERROR(FeedLines(c));
        break;
      case State::kObject:
        if (!IsSpace(c)) last_ = offset_;
        break;
      case State::kArray:
        OMNI_RETURN_IF_ERROR(FeedArray(c));
        break;
      case State::kArrayDone:
        if (!IsSpace(c)) {
          return absl::DataLossError(
              absl::StrCat("line ", line_, ": something follows the array of samples"));
        }
        break;
    }
    if (c == '\n') ++line_;
    ++offset_;
  }
  return absl::OkStatus();
}

absl::StatusOr<RangeTable> JsonSplitter::Finish() {
  if (state_ == State::kArray) {
    return absl::DataLossError(absl::StrCat("line ", line_,
                                            ": the array of samples is not closed; "
                                            "the file looks cut off"));
  }
  if (state_ == State::kLines || state_ == State::kObject) EndElement();
  if (ranges_.empty()) return absl::DataLossError("no samples in it");
  return std::move(ranges_);
}

}  // namespace omni::dataloader
