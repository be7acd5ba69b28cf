// Tables of times: what a file says, what a recorded run says, and what is asked of them.
#include "parallel/schedule/action_times.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/trace.h"

namespace omni::parallel {
namespace {

using ::testing::HasSubstr;

Action Forward(int16_t chunk, int32_t microbatch) {
  return {.kind = ActionKind::kForward, .chunk = chunk, .microbatch = microbatch};
}
Action Encode(int16_t encoder, int32_t group) {
  return {.kind = ActionKind::kEncodeForward, .microbatch = group, .encoder = encoder};
}
Action SendHidden(int16_t chunk) {
  return {.kind = ActionKind::kSend,
          .payload = Payload::kHidden,
          .chunk = chunk,
          .microbatch = 0,
          .peer = 1};
}

absl::StatusOr<ActionTimes> Load(const std::string& text) {
  const std::string path = ::testing::TempDir() + "/times.yaml";
  std::ofstream(path) << text;
  return ActionTimes::LoadFile(path);
}

TEST(ParseActionTest, EveryNameIsReadBack) {
  size_t num_names = 0;
  for (int kind = 0; kind <= static_cast<int>(ActionKind::kGatherParameters); ++kind) {
    for (int payload = 0; payload <= 4; ++payload) {
      Action action{.kind = static_cast<ActionKind>(kind),
                    .payload = static_cast<Payload>(payload)};
      const bool transfer = action.kind == ActionKind::kSend || action.kind == ActionKind::kRecv;
      if (transfer != (payload != 0)) continue;
      const std::string bare = ToString(action);
      const auto Has = [&](const char* word) { return absl::StrContains(bare, word); };
      if (Has(" chunk ")) action.chunk = 12;
      if (Has(" encoder ")) action.encoder = 3;
      if (Has(" microbatch ") || Has(" group ")) action.microbatch = 1023;
      if (transfer) action.peer = 7;
      const std::optional<Action> parsed = ParseAction(ToString(action));
      ASSERT_TRUE(parsed.has_value()) << ToString(action);
      EXPECT_EQ(*parsed, action) << ToString(action);
      ++num_names;
    }
  }
  EXPECT_EQ(num_names, 12u + 2 * 4);
  for (const Action& action : {Action{.kind = ActionKind::kReduceGradients, .chunk = 2},
                               Action{.kind = ActionKind::kReduceGradients, .encoder = 1}}) {
    EXPECT_EQ(ParseAction(ToString(action)), action);
  }
  for (const char* name :
       {"", "forward", "forward chunk 1", "forward chunk 1 microbatch",
        "forward chunk x microbatch 1", "forward chunk 1 microbatch 2 ",
        "forward  chunk 1 microbatch 2", "data", "forward chunk 99999999999 microbatch 1",
        "send rows encoder 0 group 2 from 0"}) {
    EXPECT_FALSE(ParseAction(name).has_value()) << name;
  }
}

TEST(ActionTimesTest, TheEntryThatNamesMostIsTaken) {
  const auto times = Load(R"(times:
- {kind: forward, seconds: 1}
- {kind: forward, rank: 1, seconds: 2}
- {kind: forward, chunk: 3, seconds: 3}
- {kind: forward, microbatch: 5, seconds: 4}
- {kind: forward, chunk: 3, rank: 1, seconds: 5}
- {kind: forward, chunk: 3, rank: 1, microbatch: 5, seconds: 6}
- {kind: encode, encoder: 1, group: 2, seconds: 0.5}
- {kind: hidden, chunk: 1, seconds: 0.25}
- {kind: agree, seconds: 7}
)");
  ASSERT_TRUE(times.ok()) << times.status();
  EXPECT_EQ((*times)(0, Forward(0, 0)), 1);
  EXPECT_EQ((*times)(1, Forward(0, 0)), 2);
  EXPECT_EQ((*times)(0, Forward(3, 0)), 3);
  EXPECT_EQ((*times)(0, Forward(0, 5)), 4);
  EXPECT_EQ((*times)(1, Forward(0, 5)), 4);  // a microbatch before a rank
  EXPECT_EQ((*times)(0, Forward(3, 5)), 4);  // and before a chunk
  EXPECT_EQ((*times)(1, Forward(3, 0)), 5);
  EXPECT_EQ((*times)(1, Forward(3, 5)), 6);
  EXPECT_EQ((*times)(0, Encode(1, 2)), 0.5);
  EXPECT_EQ((*times)(0, Encode(1, 1)), 0);
  Action encode_only = Encode(1, 2);
  encode_only.kind = ActionKind::kEncodeOnly;
  EXPECT_EQ((*times)(0, encode_only), 0.5);
  EXPECT_EQ((*times)(0, SendHidden(1)), 0.25);
  EXPECT_EQ((*times)(0, SendHidden(2)), 0);
  EXPECT_EQ((*times)(3, {.kind = ActionKind::kAgree}), 7);
  EXPECT_TRUE(times->Covers({{Forward(0, 0), SendHidden(1), Encode(1, 2)}}).ok());
  const absl::Status uncovered = times->Covers({{}, {Forward(0, 0), Encode(0, 2)}});
  EXPECT_EQ(uncovered.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(uncovered.message()),
              HasSubstr("no time for rank 1 encode encoder 0 group 2; there are times for forward, "
                        "encode, agree, hidden"));
}

TEST(ActionTimesTest, AFaultyFileIsNamedByLine) {
  EXPECT_EQ(ActionTimes::LoadFile("/no/such.yaml").status().code(), absl::StatusCode::kNotFound);
  for (const auto& [text, message] : std::vector<std::pair<std::string, std::string>>{
           {"{}", "key \"times\" is missing"},
           {"times: 3", "times.yaml:1: times: found \"3\", expected a list"},
           {"times:\n- {kind: foward, seconds: 1}", "did you mean \"forward\"?"},
           {"times:\n- {seconds: 1}", "times.yaml:2: times.0: key \"kind\" is missing"},
           {"times:\n- {kind: forward}", "key \"seconds\" is missing"},
           {"times:\n- {kind: forward, seconds: -1}", "times.0.seconds: found"},
           {"times:\n- {kind: forward, seconds: x}", "expected a number"},
           {"times:\n- {kind: forward, seconds: 1, group: 2}", "unknown key \"group\""},
           {"times:\n- {kind: rows, seconds: 1, chunk: 2}", "unknown key \"chunk\""},
           {"times:\n- {kind: rows, seconds: 1, groop: 2}", "did you mean \"group\"?"},
           {"times:\n- {kind: rows, seconds: 1}\n- {kind: rows, seconds: 2}",
            "times.yaml:3: times.1: a second time for the same rows actions"}}) {
    const auto times = Load(text);
    EXPECT_EQ(times.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(times.status().message()), HasSubstr(message)) << text;
  }
}

TEST(ActionTimesTest, OfARunMediansOfTheStepsAreTaken) {
  std::vector<TraceEvent> events;
  const auto Add = [&](int32_t rank, const Action& action, std::vector<double> seconds,
                       const char* category = "action") {
    double at = 1e6;
    for (const double s : seconds) {
      events.push_back({ToString(action), category, at, at + s * 1e6, rank, 5});
      at += 1e7;
    }
  };
  // Two pipeline ranks of two ranks each: 0 and 1, 2 and 3.
  Add(0, Forward(0, 0), {1, 9, 3});
  Add(1, Forward(0, 0), {2, 1, 1});  // the longer of both: 2, 9, 3
  Add(0, Forward(0, 1), {5, 5, 5});
  Add(2, Forward(1, 0), {4, 8});
  Add(0, Forward(0, 2), {100}, "compute");  // not an action
  Add(3, Encode(0, 1), {0.5});
  const Action agree{.kind = ActionKind::kAgree};
  Add(0, agree, {1, 1, 0.25});
  Add(3, agree, {0.5, 7, 8});  // the shorter of both: 0.5, 1, 0.25
  Add(0, SendHidden(1), {0.125});
  events.push_back({"compress", "action", 0, 1, 0, 0});  // no name of an action
  const std::string dir = ::testing::TempDir();
  // One file a rank, and steps of a rank may lie in several.
  std::vector<std::string> paths;
  for (int part = 0; part < 2; ++part) {
    std::vector<TraceEvent> half;
    for (const TraceEvent& event : events) {
      if ((event.begin_us > 1.5e7) == (part == 1)) half.push_back(event);
    }
    paths.push_back(absl::StrCat(dir, "/part", part, ".json"));
    std::ofstream(paths.back()) << ToChromeTrace(half, {});
  }
  const auto times = ActionTimes::FromTraces(paths, 2);
  ASSERT_TRUE(times.ok()) << times.status();
  EXPECT_DOUBLE_EQ((*times)(0, Forward(0, 0)), 3);
  EXPECT_DOUBLE_EQ((*times)(0, Forward(0, 1)), 5);
  EXPECT_DOUBLE_EQ((*times)(1, Forward(1, 0)), 6);  // of two: the mean
  EXPECT_DOUBLE_EQ((*times)(1, Encode(0, 1)), 0.5);
  EXPECT_DOUBLE_EQ((*times)(0, SendHidden(1)), 0.125);
  EXPECT_DOUBLE_EQ((*times)(0, agree), 0.5);
  EXPECT_DOUBLE_EQ((*times)(1, agree), 0.5);
  // Not recorded: the chunk's other microbatches, on whatever rank.
  EXPECT_DOUBLE_EQ((*times)(0, Forward(0, 7)), 4);
  EXPECT_DOUBLE_EQ((*times)(1, Forward(0, 7)), 4);
  EXPECT_TRUE(times->Covers({{Forward(0, 7)}}).ok());
  EXPECT_FALSE(times->Covers({{Forward(2, 0)}}).ok());

  // By single ranks they differ.
  EXPECT_DOUBLE_EQ(ActionTimes::FromTraces(paths)->operator()(1, Forward(0, 0)), 1);

  const std::string other = dir + "/other.json";
  std::ofstream(other) << ToChromeTrace({{"load", "data", 0, 1, 0, 0}}, {});
  const auto none = ActionTimes::FromTraces({paths[0], other});
  EXPECT_EQ(none.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(none.status().message()),
              HasSubstr("other.json: found no span of category \"action\" among 1 spans"));
  EXPECT_FALSE(ActionTimes::FromTraces({"/no/such.json"}).ok());
}

TEST(ActionTimesTest, WaitingIsTakenOffAnAction) {
  const std::string path = ::testing::TempDir() + "/waits.json";
  const std::string forward = ToString(Forward(1, 0)), other = ToString(Forward(1, 1));
  std::ofstream(path) << ToChromeTrace({{"wait", "wait", 0, 9e6, 0, 1},  // another track
                                        {"wait", "wait", 0, 9e6, 1, 0},  // another process
                                        {"wait", "wait", 0.25e6, 0.5e6, 0, 0},
                                        {forward, "action", 1e6, 5e6, 0, 0},
                                        {"wait", "wait", 1e6, 2.5e6, 0, 0},
                                        {"wait", "wait", 3e6, 3.5e6, 0, 0},
                                        {"load", "loader", 3e6, 5e6, 0, 0},
                                        {"wait", "wait", 5e6, 5.5e6, 0, 0},
                                        {other, "action", 6e6, 7e6, 0, 0}},
                                       {});
  const auto times = ActionTimes::FromTraces({path});
  ASSERT_TRUE(times.ok()) << times.status();
  EXPECT_DOUBLE_EQ((*times)(0, Forward(1, 0)), 4 - 1.5 - 0.5);
  EXPECT_DOUBLE_EQ((*times)(0, Forward(1, 1)), 1);
}

}  // namespace
}  // namespace omni::parallel
