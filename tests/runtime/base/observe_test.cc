// Logs, metrics and traces: what they write is what their readers expect.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "absl/time/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/metrics.h"
#include "runtime/base/trace.h"
#include "tests/support/http.h"

namespace omni {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string Slurp(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

TEST(LoggerTest, LinesCarryLevelAndWho) {
  const std::string path = ::testing::TempDir() + "/log.txt";
  std::filesystem::remove(path);
  auto log = Logger::Create({.file = path, .who = "rank 3", .stderr_level = LogLevel::kError});
  ASSERT_TRUE(log.ok());
  (*log)->Info("step ", 7);
  (*log)->Write(LogLevel::kDebug, "too fine");
  EXPECT_THAT(Slurp(path), HasSubstr("I rank 3: step 7\n"));
  EXPECT_THAT(Slurp(path), Not(HasSubstr("too fine")));
}

// A pipe that nobody reads stands for storage that stalls.
TEST(LoggerTest, WhoLogsDoesNotWaitForStorageAndHearsWhatWasLeftOut) {
  const std::string path = ::testing::TempDir() + "/log.pipe";
  unlink(path.c_str());
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  const int reader = open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  auto log = Logger::Create({.file = path, .who = "rank 3", .stderr_level = LogLevel::kOff});
  ASSERT_TRUE(log.ok()) << log.status();
  const std::string text(1000, 'x');
  int64_t logged = 8000;
  for (int i = 0; i < logged; ++i) (*log)->Info(i, " ", text);
  // Storage answers again.
  std::string all;
  std::atomic<bool> seen{false};
  std::thread reading([&] {
    std::vector<char> buffer(1 << 16);
    while (!seen) {
      const ssize_t count = read(reader, buffer.data(), buffer.size());
      if (count > 0) all.append(buffer.data(), static_cast<size_t>(count));
      seen = all.find("the last\n") != std::string::npos;
    }
  });
  for (; !seen; ++logged) {
    (*log)->Info("the last");
    absl::SleepFor(absl::Milliseconds(20));
  }
  reading.join();
  close(reader);
  // Up to "the last", every line is there or counted.
  int64_t there = 0, left_out = 0;
  std::istringstream lines(all.substr(0, all.find("the last\n") + 9));
  for (std::string line; std::getline(lines, line);) {
    const size_t end = line.find(" lines were left out");
    if (end == std::string::npos) {
      ++there;
    } else {
      left_out += std::stoll(line.substr(line.rfind(' ', end - 1)));
    }
  }
  EXPECT_GT(there, 3000);
  EXPECT_GT(left_out, 3000);
  EXPECT_GE(there + left_out, 8001);
  EXPECT_LE(there + left_out, logged);
}

TEST(MetricsTest, TextHoldsValuesAndLabels) {
  auto metrics = MetricsServer::Create({.address = "", .labels = {{"rank", "3"}}});
  ASSERT_TRUE(metrics.ok());
  (*metrics)->Set("omnitrain_loss", "Loss", {}, 2.5);
  (*metrics)->Set("omnitrain_loss", "Loss", {}, 1.5);
  (*metrics)->Add("omnitrain_tokens_total", "Tokens", {{"source", "a"}}, 3);
  (*metrics)->Add("omnitrain_tokens_total", "Tokens", {{"source", "a"}}, 4);
  (*metrics)->Observe("omnitrain_step_seconds", "Step", {}, 0.2);
  const std::string text = (*metrics)->Text();
  EXPECT_THAT(text, HasSubstr("omnitrain_loss{rank=\"3\"} 1.5"));
  EXPECT_THAT(text, HasSubstr("omnitrain_tokens_total{rank=\"3\",source=\"a\"} 7"));
  EXPECT_THAT(text, HasSubstr("omnitrain_step_seconds_count{rank=\"3\"} 1"));
  EXPECT_EQ((*metrics)->port(), 0);
}

TEST(MetricsTest, ServesOnAFreePortAndNamesATakenOne) {
  auto first = MetricsServer::Create({.address = "127.0.0.1:0", .labels = {}});
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_GT((*first)->port(), 0);
  const std::string taken = "127.0.0.1:" + std::to_string((*first)->port());
  auto second = MetricsServer::Create({.address = taken, .labels = {}});
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(taken));
}

TEST(MetricsTest, ServesItsTextAndLeavesThePortWhenItStops) {
  std::string address = "127.0.0.1:0";
  for (int round = 0; round < 3; ++round) {  // each on the port that the one before has left
    auto metrics = MetricsServer::Create({.address = address, .labels = {{"rank", "3"}}});
    ASSERT_TRUE(metrics.ok()) << metrics.status();
    (*metrics)->Set("omnitrain_loss", "Loss", {}, 2.5);
    const int port = (*metrics)->port();
    const auto reply = test::HttpGet(port, "/metrics");
    ASSERT_TRUE(reply.ok()) << reply.status();
    EXPECT_EQ(reply->status, 200);
    EXPECT_THAT(reply->body, HasSubstr((*metrics)->Text()));
    metrics->reset();
    EXPECT_EQ(test::HttpGet(port, "/metrics").status().code(), absl::StatusCode::kUnavailable);
    address = "127.0.0.1:" + std::to_string(port);
  }
}

TEST(TraceTest, WritesOneEventASpan) {
  TraceRecorder trace(3, "rank 3");
  { TraceSpan ignored(&trace, "before", "x"); }
  trace.Enable(true);
  { TraceSpan span(&trace, "forward", "compute"); }
  std::thread([&] { TraceSpan span(&trace, "load", "data"); }).join();
  const std::string path = ::testing::TempDir() + "/trace.json";
  ASSERT_TRUE(trace.WriteFile(path).ok());
  const auto json = nlohmann::json::parse(Slurp(path));
  ASSERT_EQ(json["traceEvents"].size(), 3u);
  EXPECT_EQ(json["traceEvents"][1]["name"], "forward");
  EXPECT_NE(json["traceEvents"][1]["tid"], json["traceEvents"][2]["tid"]);
  EXPECT_FALSE(trace.WriteFile("/no/such/folder/trace.json").ok());
}

TEST(TraceTest, StorageThatTakesNothingIsLeftToItself) {
  TraceRecorder trace(3, "rank 3");
  const std::string path = ::testing::TempDir() + "/nobody_reads";
  std::remove(path.c_str());
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  EXPECT_EQ(trace.WriteFile(path).code(), absl::StatusCode::kDeadlineExceeded);
}

TEST(TraceTest, IsReadAsItWasWritten) {
  const std::string path = ::testing::TempDir() + "/made.json";
  std::ofstream(path) << ToChromeTrace(
      {{"a \"b\"\n", "x", 0.125, 3e9 + 0.5, 7, 12345678901}, {"", "", -2, -2, 0, 0}},
      {{7, "rank 7"}}, {{{7, 12345678901}, "compute"}});
  const auto json = nlohmann::json::parse(Slurp(path));
  EXPECT_EQ(json["traceEvents"].size(), 4u);
  EXPECT_EQ(json["traceEvents"][1]["args"]["name"], "compute");
  const auto events = ReadChromeTrace(path);
  ASSERT_TRUE(events.ok()) << events.status();
  ASSERT_EQ(events->size(), 2u);
  const TraceEvent& event = events->front();
  EXPECT_EQ(event.name, "a \"b\"\n");
  EXPECT_EQ(event.category, "x");
  EXPECT_EQ(event.begin_us, 0.125);
  EXPECT_EQ(event.end_us, 3e9 + 0.5);
  EXPECT_EQ(event.process, 7);
  EXPECT_EQ(event.track, 12345678901);
  EXPECT_EQ(events->back().begin_us, -2);

  std::ofstream(path) << "[]";
  EXPECT_TRUE(ReadChromeTrace(path).value().empty());
}

TEST(TraceTest, WhatIsNoTraceIsNamed) {
  const std::string path = ::testing::TempDir() + "/bad.json";
  EXPECT_EQ(ReadChromeTrace("/no/such.json").status().code(), absl::StatusCode::kNotFound);
  const std::string span = R"({"ph":"X","name":"a","cat":"b","pid":0,"tid":0,"ts":1,"dur":1})";
  const auto With = [&](const char* from, const char* to) {
    std::string text = span;
    text.replace(text.find(from), std::string(from).size(), to);
    return "[" + span + "," + text + "]";
  };
  for (const auto& [text, message] : std::vector<std::pair<std::string, std::string>>{
           {"", "no JSON at byte"},
           {"[", "no JSON at byte 2"},
           {"3", "no \"traceEvents\""},
           {R"({"traceEvents":{}})", "no \"traceEvents\""},
           {"[3]", "event 0: expected an object"},
           {With(R"("a")", "1"), "event 1: \"name\": expected a string"},
           {With(R"("cat":"b",)", ""), "event 1: \"cat\": expected a string"},
           {With(R"("pid":0)", R"("pid":"x")"), "event 1: \"pid\": expected an integer"},
           {With(R"("dur":1)", R"("dur":-1)"),
            "event 1: \"dur\": expected a number of at least"}}) {
    std::ofstream(path) << text;
    const auto events = ReadChromeTrace(path);
    EXPECT_EQ(events.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(events.status().message()), HasSubstr(message));
    EXPECT_THAT(std::string(events.status().message()), HasSubstr(path));
  }
}

}  // namespace
}  // namespace omni
