#include "trainer/report/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "runtime/base/process.h"

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

std::string Number(double value, int digits) {
  return std::isnan(value) ? "nan" : absl::StrFormat("%.*f", digits, value);
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
                                 const std::map<std::string, double>& values, absl::Duration left,
                                 int32_t columns) {
  // A step without loss tokens has neither loss nor gradient, and changes nothing.
  const bool updates = values.count("no_loss_tokens") == 0;
  std::string samples;
  const double seconds = ValueOr(values, "step_ms", 0) / 1e3;
  for (const auto& [name, value] : values) {
    absl::string_view modality = name;
    if (!absl::ConsumePrefix(&modality, "samples/") || value == 0 || seconds == 0) continue;
    absl::StrAppend(&samples, samples.empty() ? "  " : " ", Short(value / seconds), " ", modality,
                    "/s");
  }
  struct Field {
    int32_t leaves;  // the larger, the sooner where there is no room
    std::string text;
  };
  std::vector<Field> fields = {
      {0, absl::StrFormat("step %4d/%d", step, num_steps)},
      {1, updates ? absl::StrCat("  loss ", Number(ValueOr(values, "loss", NAN), 4))
                  : "  no loss tokens, no update"},
      {3, absl::StrFormat("  %s tok/s", Short(ValueOr(values, "tokens_per_s", 0)))},
      {7, samples},
      {6, absl::StrFormat("  %.1f GFLOP/s", ValueOr(values, "gflops", 0))},
      {4, absl::StrCat("  |g| ", updates ? Number(ValueOr(values, "grad_norm", 0), 3) : "-")},
      {5, absl::StrFormat("  lr %.1e", ValueOr(values, "lr", 0))},
      {2, absl::StrFormat("  %s left", Clock(left))}};
  const auto line = [&](int32_t most) {
    std::string text;
    for (const Field& field : fields) {
      if (field.leaves <= most) absl::StrAppend(&text, field.text);
    }
    return text;
  };
  int32_t most = 7;
  if (columns <= 0) return line(most);
  while (most > 0 && line(most).size() > static_cast<size_t>(columns)) --most;
  return line(most).substr(0, columns);
}

void ProgressLine::Step(int64_t step, const std::map<std::string, double>& values) {
  const double seconds = ValueOr(values, "step_ms", 0) / 1e3;
  seconds_per_step_ = seconds_per_step_ == 0 ? seconds : 0.95 * seconds_per_step_ + 0.05 * seconds;
  const absl::Time now = absl::Now();
  const bool last = step >= num_steps_;
  if (!terminal_ && !last && step > 1 && now - last_plain_ < kPlainPeriod) return;
  const std::string line =
      Format(step, num_steps_, values,
             absl::Seconds(seconds_per_step_ * static_cast<double>(num_steps_ - step)),
             std::max(0, TerminalColumns(STDOUT_FILENO) - 1));  // the cursor has the last
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
