// Logs, metrics and traces: what they write is what their readers expect.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

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

}  // namespace
}  // namespace omni
