// Logs: lines to a file of the run directory and, from a level up, to stderr.
//
// A Logger is made by whoever owns the process (worker, coordinator, tool) and passed down; there
// is no global one. Lines read "2026-01-31 12:00:00.123 W rank 3: text".
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace omni {

enum class LogLevel : uint8_t { kDebug, kInfo, kWarning, kError, kOff };

struct LogOptions {
  std::string file;  // appended to; "" for none
  std::string who;   // "rank 3", "coordinator"
  LogLevel file_level = LogLevel::kInfo;
  LogLevel stderr_level = LogLevel::kWarning;
};

class Logger {
 public:
  // Unavailable if the file can't be opened.
  static absl::StatusOr<std::unique_ptr<Logger>> Create(const LogOptions& options);
  ~Logger();

  template <typename... Parts>
  void Info(const Parts&... parts) {
    Write(LogLevel::kInfo, absl::StrCat(parts...));
  }
  template <typename... Parts>
  void Warning(const Parts&... parts) {
    Write(LogLevel::kWarning, absl::StrCat(parts...));
  }
  template <typename... Parts>
  void Error(const Parts&... parts) {
    Write(LogLevel::kError, absl::StrCat(parts...));
  }

  void Write(LogLevel level, absl::string_view text);

 private:
  struct Impl;
  explicit Logger(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace omni
