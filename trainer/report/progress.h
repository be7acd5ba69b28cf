// The line a person watches: rewritten in place on a terminal, one plain line now and then
// elsewhere.
//
//   step  120/750  loss 1.832  5.1k tok/s  38 img/s 16 aud/s 26 vid/s  61.2 GFLOP/s  |g| 0.93
//   lr 2.5e-03  4:12 left
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "absl/time/time.h"

namespace omni::trainer {

class ProgressLine {
 public:
  // `terminal`: is stdout one?
  ProgressLine(int64_t num_steps, bool terminal) : num_steps_(num_steps), terminal_(terminal) {}

  // After each step, with rank 0's values.
  void Step(int64_t step, const std::map<std::string, double>& values);
  // Prints `text` on lines of its own, above the progress line.
  void Print(const std::string& text);
  // Ends the line.
  void Finish();

  static std::string Format(int64_t step, int64_t num_steps,
                            const std::map<std::string, double>& values, absl::Duration left);

 private:
  const int64_t num_steps_;
  const bool terminal_;
  bool line_open_ = false;
  double seconds_per_step_ = 0;  // smoothed
  absl::Time last_plain_ = absl::InfinitePast();
};

}  // namespace omni::trainer
