// The line a person watches: rewritten in place on a terminal, one plain line now and then
// elsewhere.
//
//   step  120/750  loss 1.8320  5.1k tok/s  38 image/s 16 audio/s  61.2 GFLOP/s  |g| 0.930
//   lr 2.5e-03  4:12 left
//
// On a terminal it is one line: what does not fit is left out, the step, the loss and the time left
// last.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "absl/time/time.h"

namespace omni::trainer {

class ProgressLine {
 public:
  // `terminal`: is stdout one on which lines can be rewritten?
  ProgressLine(int64_t num_steps, bool terminal) : num_steps_(num_steps), terminal_(terminal) {}

  // After each step, with rank 0's values.
  void Step(int64_t step, const std::map<std::string, double>& values);
  // Prints `text` on lines of its own, above the progress line.
  void Print(const std::string& text);
  // Ends the line.
  void Finish();

  // At most `columns` wide; 0: as wide as it is.
  static std::string Format(int64_t step, int64_t num_steps,
                            const std::map<std::string, double>& values, absl::Duration left,
                            int32_t columns = 0);

 private:
  const int64_t num_steps_;
  const bool terminal_;
  bool line_open_ = false;
  double seconds_per_step_ = 0;  // smoothed
  absl::Time last_plain_ = absl::InfinitePast();
};

}  // namespace omni::trainer
