// Spans of time, written as a Chrome trace that Perfetto (ui.perfetto.dev) opens.
//
//   TraceRecorder trace(/*process=*/rank, "rank 3");
//   trace.Enable(true);                           // for the steps chosen in the recipe
//   { TraceSpan span(&trace, "forward", "compute"); ... }
//   trace.WriteFile("runs/a/traces/step-100-rank-3.json");
//
// Spans may be recorded from several threads; each thread is a track.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace omni {

// One span of a trace.
struct TraceEvent {
  std::string name, category;
  double begin_us = 0, end_us = 0;
  int32_t process = 0;
  int64_t track = 0;
};

// The text of a Chrome trace. Names of processes, and of (process, track), where there are any.
std::string ToChromeTrace(const std::vector<TraceEvent>& events,
                          const std::map<int32_t, std::string>& process_names,
                          const std::map<std::pair<int32_t, int64_t>, std::string>& tracks = {});
// The spans of a trace, in the order of the file. InvalidArgument naming the file and the event,
// or the position of what is no JSON; errors of ReadFile.
absl::StatusOr<std::vector<TraceEvent>> ReadChromeTrace(const std::string& path);

class TraceRecorder {
 public:
  TraceRecorder(int32_t process, std::string process_name)
      : process_(process), process_name_(std::move(process_name)) {}

  void Enable(bool enabled) { enabled_.store(enabled, std::memory_order_relaxed); }
  bool enabled() const { return enabled_.load(std::memory_order_relaxed); }

  // Microseconds on the machine's monotonic clock, so that traces of ranks of one host line up.
  static int64_t NowUs();
  void Add(absl::string_view name, absl::string_view category, int64_t begin_us, int64_t end_us);

  // Writes what was recorded and forgets it.
  absl::Status WriteFile(const std::string& path);

 private:
  const int32_t process_;
  const std::string process_name_;
  std::atomic<bool> enabled_{false};
  std::mutex mutex_;
  std::vector<TraceEvent> events_;
};

// Records its own lifetime. `recorder` may be null.
class TraceSpan {
 public:
  TraceSpan(TraceRecorder* recorder, absl::string_view name, absl::string_view category)
      : recorder_(recorder != nullptr && recorder->enabled() ? recorder : nullptr) {
    if (recorder_ == nullptr) return;
    name_ = std::string(name);
    category_ = std::string(category);
    begin_us_ = TraceRecorder::NowUs();
  }
  ~TraceSpan() {
    if (recorder_ != nullptr) recorder_->Add(name_, category_, begin_us_, TraceRecorder::NowUs());
  }
  TraceSpan(const TraceSpan&) = delete;
  TraceSpan& operator=(const TraceSpan&) = delete;

 private:
  TraceRecorder* recorder_;
  std::string name_, category_;
  int64_t begin_us_ = 0;
};

}  // namespace omni
