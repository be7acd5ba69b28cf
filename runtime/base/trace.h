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
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace omni {

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
  struct Span {
    std::string name, category;
    int64_t begin_us, end_us;
    int64_t thread;
  };
  const int32_t process_;
  const std::string process_name_;
  std::atomic<bool> enabled_{false};
  std::mutex mutex_;
  std::vector<Span> spans_;
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
