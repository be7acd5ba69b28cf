#include "runtime/base/trace.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"

namespace omni {

int64_t TraceRecorder::NowUs() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void TraceRecorder::Add(absl::string_view name, absl::string_view category, int64_t begin_us,
                        int64_t end_us) {
  if (!enabled()) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  spans_.push_back(
      {std::string(name), std::string(category), begin_us, end_us, syscall(SYS_gettid)});
}

absl::Status TraceRecorder::WriteFile(const std::string& path) {
  std::vector<Span> spans;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    spans.swap(spans_);
  }
  nlohmann::json events = nlohmann::json::array();
  events.push_back({{"ph", "M"},
                    {"name", "process_name"},
                    {"pid", process_},
                    {"args", {{"name", process_name_}}}});
  for (const Span& span : spans) {
    events.push_back({{"ph", "X"},
                      {"name", span.name},
                      {"cat", span.category},
                      {"pid", process_},
                      {"tid", span.thread},
                      {"ts", span.begin_us},
                      {"dur", span.end_us - span.begin_us}});
  }
  std::ofstream file(path);
  file << nlohmann::json{{"traceEvents", events}, {"displayTimeUnit", "ms"}}.dump() << "\n";
  file.flush();
  if (!file) return absl::UnavailableError(absl::StrCat("trace ", path, ": can't be written"));
  return absl::OkStatus();
}

}  // namespace omni
