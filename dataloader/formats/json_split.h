// Where the samples of a JSON or JSONL file lie, found in one pass over its bytes.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "dataloader/formats/range_table.h"

namespace omni::dataloader {

// Fed the file piece by piece. A file that starts with [ is an array of samples, one that starts
// with { has a sample a line, unless its first line is that { alone: then it is one sample, as
// printed for people. Only the outline is looked at; samples are parsed when used.
class JsonSplitter {
 public:
  // DataLoss with the line for what is neither.
  absl::Status Feed(absl::string_view piece);
  // DataLoss if the array is not closed.
  absl::StatusOr<RangeTable> Finish();

 private:
  enum class State { kStart, kLines, kObject, kArray, kArrayDone };
  absl::Status FeedLines(char c);
  absl::Status FeedArray(char c);
  void EndElement();

  State state_ = State::kStart;
  int64_t offset_ = 0, line_ = 1;
  int64_t depth_ = 0;  // inside an element of an array
  bool in_string_ = false, escaped_ = false;
  int64_t start_ = -1, start_line_ = 1, last_ = 0;  // the element being read; -1: none
  RangeTable ranges_;
};

}  // namespace omni::dataloader
