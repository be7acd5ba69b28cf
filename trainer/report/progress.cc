#include "trainer/report/progress.h"

#include <cmath>
#include <cstdio>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"

namespace omni::trainer {
namespace {

constexpr absl::Duration kPlainPeriod = absl::Seconds(10);

double ValueOr(const std::map<std::string, double>& values, const std::string& name,
               double otherwise) {
  const auto it = values.find(name);
  return it == values.end() ? otherwise : it->second;
}

std::string Short(double value) {
  if (value >= 1e6) return absl::StrFormat("%.1fM", value / 1e6);
  if (value >= 1e4) return absl::StrFormat("%.0fk", value / 1e3);
  if (value >= 1e3) return absl::StrFormat("%.1fk", value / 1e3);
  return absl::StrFormat("%.0f", value);
}

std::string Clock(absl::Duration duration) {
  const int64_t seconds = absl::ToInt64Seconds(duration);
  if (seconds >= 3600) {
    return absl::StrFormat("%d:%02d:%02d", seconds / 3600, seconds / 60 % 60, seconds % 60);
  }
  return absl::StrFormat("%d:%02d", seconds / 60, seconds % 60);
}

}  // namespace

std::string ProgressLine::Format(int64_t step, int64_t num_steps,
                                 const std::map<std::string, double>& values, absl::Duration left) {
  std::string line =
      absl::StrFormat("step %4d/%d  loss %.4f  %s tok/s ", step, num_steps,
                      ValueOr(values, "loss", NAN), Short(ValueOr(values, "tokens_per_s", 0)));
  const double seconds = ValueOr(values, "step_ms", 0) / 1e3;
  for (const auto& [name, value] : values) {
    absl::string_view modality = name;
    if (!absl::ConsumePrefix(&modality, "samples/") || value == 0 || seconds == 0) continue;
    absl::StrAppend(&line, " ", Short(value / seconds), " ", modality, "/s");
  }
  absl::StrAppendFormat(&line, "  %.1f GFLOP/s  |g| %.3f  lr %.1e  %s left",
                        ValueOr(values, "gflops", 0), ValueOr(values, "grad_norm", 0),
                        ValueOr(values, "lr", 0), Clock(left));
  return line;
}

void ProgressLine::Step(int64_t step, const std::map<std::string, double>& values) {
  const double seconds = ValueOr(values, "step_ms", 0) / 1e3;
  seconds_per_step_ = seconds_per_step_ == 0 ? seconds : 0.95 * seconds_per_step_ + 0.05 * seconds;
  const absl::Time now = absl::Now();
  const bool last = step >= num_steps_;
  if (!terminal_ && !last && step > 1 && now - last_plain_ < kPlainPeriod) return;
  const std::string line =
      Format(step, num_steps_, values,
             absl::Seconds(seconds_per_step_ * static_cast<double>(num_steps_ - step)));
  if (terminal_) {
    std::printf("\r\033[K%s", line.c_str());
    line_open_ = true;
  } else {
    std::printf("%s\n", line.c_str());
    last_plain_ = now;
  }
  std::fflush(stdout);
}

void ProgressLine::Print(const std::string& text) {
  if (line_open_) std::printf("\r\033[K");
  std::printf("%s\n", text.c_str());
  std::fflush(stdout);
  line_open_ = false;
}

void ProgressLine::Finish() {
  if (line_open_) std::printf("\n");
  std::fflush(stdout);
  line_open_ = false;
}

}  // namespace omni::trainer
