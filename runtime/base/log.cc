#include "runtime/base/log.h"

#include <spdlog/logger.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>

#include "runtime/base/process.h"
#include "runtime/base/status.h"
#include "runtime/base/text.h"
#include "runtime/base/writer_thread.h"

namespace omni {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(1);

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
    case LogLevel::kOff:
      return spdlog::level::off;
  }
  return spdlog::level::info;
}

}  // namespace

// A thread writes. Who logs waits for it, so that a crash loses no line, but never long: once a
// line has taken kPatience, lines only queue until all have been written. With 4 MiB waiting, lines
// are left out, and the next one that is taken says how many.
struct Logger::Impl {
  std::shared_ptr<spdlog::logger> logger;  // the writer's as well
  LogLevel lowest = LogLevel::kDebug;      // that any of its sinks takes
  std::atomic<bool> is_stalled{false};
  std::atomic<int64_t> left_out{0};
  WriterThread writer{"the log"};
};

Logger::Logger(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Logger::~Logger() { impl_->writer.Finish({.limit = absl::Seconds(2)}); }

absl::StatusOr<std::unique_ptr<Logger>> Logger::Create(const LogOptions& options) {
  std::vector<spdlog::sink_ptr> sinks;
  // spdlog asks the terminal, but knows no NO_COLOR.
  auto terminal = std::make_shared<spdlog::sinks::stderr_color_sink_mt>(
      WantsColor(STDERR_FILENO) ? spdlog::color_mode::automatic : spdlog::color_mode::never);
  terminal->set_level(ToSpdlog(options.stderr_level));
  sinks.push_back(std::move(terminal));
  if (!options.file.empty()) {
    try {
      auto file = std::make_shared<spdlog::sinks::basic_file_sink_mt>(options.file);
      file->set_level(ToSpdlog(options.file_level));
      sinks.push_back(std::move(file));
    } catch (const spdlog::spdlog_ex& e) {
      return absl::UnavailableError(absl::StrCat("log file ", options.file, ": ", e.what()));
    }
  }
  auto impl = std::make_unique<Impl>();
  impl->logger = std::make_shared<spdlog::logger>(options.who, sinks.begin(), sinks.end());
  impl->logger->set_level(spdlog::level::debug);
  impl->lowest = options.file.empty() ? options.stderr_level
                                      : std::min(options.stderr_level, options.file_level);
  impl->logger->set_pattern("%Y-%m-%d %H:%M:%S.%e %^%L%$ %n: %v");
  impl->logger->flush_on(spdlog::level::info);
  return std::unique_ptr<Logger>(new Logger(std::move(impl)));
}

void Logger::Write(LogLevel level, absl::string_view text) {
  if (level < impl_->lowest) return;
  const auto now = spdlog::log_clock::now();
  const int64_t left_out = impl_->left_out.exchange(0);
  const bool is_taken = impl_->writer.Post(
      {.bytes = static_cast<int64_t>(text.size()) + 64, .most_bytes = int64_t{4} << 20},
      [logger = impl_->logger, now, level, left_out, text = Printable(text)] {
        if (left_out > 0) {
          logger->log(now, spdlog::source_loc{}, spdlog::level::warn,
                      absl::StrCat(left_out, " lines were left out: the log took nothing"));
        }
        logger->log(now, spdlog::source_loc{}, ToSpdlog(level), text);
      });
  if (!is_taken) impl_->left_out += left_out + 1;
  if (impl_->is_stalled && impl_->writer.num_waiting() > 0) return;
  impl_->is_stalled = impl_->writer.Flush({.limit = kPatience}) != WaitEnd::kReady;
}

}  // namespace omni
