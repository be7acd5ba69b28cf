#include "runtime/base/log.h"

#include <spdlog/logger.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <unistd.h>

#include "runtime/base/process.h"
#include "runtime/base/status.h"

namespace omni {
namespace {

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

struct Logger::Impl {
  std::unique_ptr<spdlog::logger> logger;
};

Logger::Logger(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Logger::~Logger() = default;

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
  impl->logger = std::make_unique<spdlog::logger>(options.who, sinks.begin(), sinks.end());
  impl->logger->set_level(spdlog::level::debug);
  impl->logger->set_pattern("%Y-%m-%d %H:%M:%S.%e %^%L%$ %n: %v");
  impl->logger->flush_on(spdlog::level::info);
  return std::unique_ptr<Logger>(new Logger(std::move(impl)));
}

void Logger::Write(LogLevel level, absl::string_view text) {
  impl_->logger->log(ToSpdlog(level), spdlog::string_view_t(text.data(), text.size()));
}

}  // namespace omni
