#include "runtime/base/trace.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/base/file.h"
#include "runtime/base/status.h"
#include "runtime/base/writer_thread.h"

namespace omni {
namespace {

using Json = nlohmann::json;

std::string Quoted(const std::string& text) {
  return Json(text).dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

// "" if `event` is a span as we read them, else what is wrong.
std::string WhatIsWrong(const Json& event) {
  for (const char* key : {"name", "cat"}) {
    const auto found = event.find(key);
    if (found == event.end() || !found->is_string()) {
      return absl::StrCat("\"", key, "\": expected a string");
    }
  }
  for (const char* key : {"ts", "dur"}) {
    const auto found = event.find(key);
    if (found == event.end() || !found->is_number()) {
      return absl::StrCat("\"", key, "\": expected a number");
    }
  }
  for (const char* key : {"pid", "tid"}) {
    const auto found = event.find(key);
    if (found == event.end() || !found->is_number_integer()) {
      return absl::StrCat("\"", key, "\": expected an integer");
    }
  }
  if (!(event["dur"].get<double>() >= 0)) return "\"dur\": expected a number of at least 0";
  return "";
}

// How long the training thread waits for a trace: one that storage does not take is left out.
constexpr absl::Duration kStorageLimit = absl::Seconds(2);

absl::Status WriteText(const std::string& text, const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "we");
  if (file == nullptr) return FileError(errno, path, "trace");
  const bool written = std::fwrite(text.data(), 1, text.size(), file) == text.size();
  int error = errno;
  if (std::fclose(file) != 0) {
    if (written) error = errno;
  } else if (written) {
    return absl::OkStatus();
  }
  std::remove(path.c_str());  // half a trace is none
  return FileError(error, path, "trace");
}

}  // namespace

std::string ToChromeTrace(const std::vector<TraceEvent>& events,
                          const std::map<int32_t, std::string>& process_names,
                          const std::map<std::pair<int32_t, int64_t>, std::string>& tracks) {
  // Written as text: a long run has millions of events, and a tree of them takes gigabytes.
  std::string text = R"({"displayTimeUnit":"ms","traceEvents":[)";
  const char* separator = "\n";
  const auto Append = [&](const std::string& event) {
    absl::StrAppend(&text, separator, event);
    separator = ",\n";
  };
  for (const auto& [process, name] : process_names) {
    Append(absl::StrCat(R"({"ph":"M","name":"process_name","pid":)", process, R"(,"args":{"name":)",
                        Quoted(name), "}}"));
  }
  for (const auto& [track, name] : tracks) {
    Append(absl::StrCat(R"({"ph":"M","name":"thread_name","pid":)", track.first, R"(,"tid":)",
                        track.second, R"(,"args":{"name":)", Quoted(name), "}}"));
  }
  for (const TraceEvent& event : events) {
    // Thousandths of a microsecond are the finest that viewers know.
    Append(absl::StrCat(R"({"ph":"X","name":)", Quoted(event.name), R"(,"cat":)",
                        Quoted(event.category), R"(,"pid":)", event.process, R"(,"tid":)",
                        event.track,
                        absl::StrFormat(R"(,"ts":%.3f,"dur":%.3f})", event.begin_us,
                                        event.end_us - event.begin_us)));
  }
  text += "\n]}\n";
  return text;
}

absl::StatusOr<std::vector<TraceEvent>> ReadChromeTrace(const std::string& path) {
  OMNI_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  Json json;
  try {
    json = Json::parse(text);
  } catch (const Json::parse_error& e) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": found no JSON at byte ", e.byte, ", expected a Chrome trace"));
  }
  // Both forms of the format: an object, or the list alone.
  const Json* events = json.is_array() ? &json : nullptr;
  if (json.is_object() && json.contains("traceEvents")) events = &json["traceEvents"];
  if (events == nullptr || !events->is_array()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": found no \"traceEvents\", expected a Chrome trace"));
  }
  std::vector<TraceEvent> spans;
  for (size_t i = 0; i < events->size(); ++i) {
    const Json& event = (*events)[i];
    const std::string wrong = !event.is_object()                 ? "expected an object"
                              : event.value("ph", Json()) != "X" ? ""
                                                                 : WhatIsWrong(event);
    if (!wrong.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": event ", i, ": ", wrong));
    }
    if (event.value("ph", Json()) != "X") continue;
    const double begin_us = event["ts"].get<double>();
    spans.push_back({event["name"].get<std::string>(), event["cat"].get<std::string>(), begin_us,
                     begin_us + event["dur"].get<double>(), event["pid"].get<int32_t>(),
                     event["tid"].get<int64_t>()});
  }
  return spans;
}

int64_t TraceRecorder::NowUs() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void TraceRecorder::Add(absl::string_view name, absl::string_view category, int64_t begin_us,
                        int64_t end_us) {
  if (!enabled()) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  events_.push_back({std::string(name), std::string(category), static_cast<double>(begin_us),
                     static_cast<double>(end_us), process_, syscall(SYS_gettid)});
}

absl::Status TraceRecorder::WriteFile(const std::string& path) {
  std::vector<TraceEvent> events;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    events.swap(events_);
  }
  const auto status = std::make_shared<absl::Status>();
  WriterThread writer("a trace");
  writer.Post({}, [text = ToChromeTrace(events, {{process_, process_name_}}), path, status] {
    *status = WriteText(text, path);
  });
  if (writer.Finish({.limit = kStorageLimit}) == WaitEnd::kReady) return *status;
  return absl::DeadlineExceededError(absl::StrCat(path, ": the trace was not written within ",
                                                  absl::FormatDuration(kStorageLimit)));
}

}  // namespace omni
