// `omnitrain replay`: what it reports, the files it writes, and its errors.
#include "tools/replay.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/match.h"
#include "runtime/base/file.h"

namespace omni::tools {
namespace {

using ::testing::HasSubstr;

std::string TempFile(const std::string& name, const std::string& text = "") {
  const std::string path = ::testing::TempDir() + "/replay-command-" + name;
  std::ofstream(path) << text;
  return path;
}

TEST(ReplayCommandTest, ReportsBesideTheClosedForms) {
  const auto report = ReplaySchedule({});
  ASSERT_TRUE(report.ok()) << report.status();
  // (8 + 3) 3 + 8 1.5 / 4 = 36, of which each rank works 8 3 + 3 = 27.
  EXPECT_EQ(*report,
            "1f1b, 4 ranks with 1 chunk, 8 microbatches; uniform, 1 encoder, 2 groups of 4\n"
            "step     36 (closed form 36)\n"
            "bubbles  25.00 %\n"
            "\n"
            "rank       busy  forwards kept  at most  groups kept  at most\n"
            "   0         27              4        4            2        2\n"
            "   1         27              3        3            2        2\n"
            "   2         27              2        2            2        2\n"
            "   3         27              1        1            2        2\n");
  const auto other = ReplaySchedule({.schedule = "interleaved",
                                     .ranks = 2,
                                     .microbatches = 3,
                                     .encoders = 2,
                                     .frozen = 1,
                                     .costs = {2, 1, 0.5, 1, 1}});
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_THAT(*other, HasSubstr("interleaved, 2 ranks with 2 chunks, 3 microbatches; uniform, 2 "
                                "encoders (1 frozen), 2 groups of 2\n"));
  EXPECT_THAT(*other, HasSubstr("(no closed form)"));
}

TEST(ReplayCommandTest, EveryScheduleAndPolicyRuns) {
  for (const char* schedule : {"gpipe", "1f1b", "interleaved", "zb_h1", "zb_v"}) {
    for (const char* joint :
         {"uniform", "upfront", "recompute", "first_stage", "aggressive", "disaggregated"}) {
      for (const int encoders : {0, 1}) {
        const auto report =
            ReplaySchedule({.schedule = schedule, .joint = joint, .encoders = encoders});
        EXPECT_TRUE(report.ok()) << schedule << " " << joint << ": " << report.status();
      }
    }
  }
}

TEST(ReplayCommandTest, TheDrawingInTheDocumentsIsTheOneItMakes) {
  const std::string svg = TempFile("joint_pipeline.svg");
  ASSERT_TRUE(ReplaySchedule({.microbatches = 12, .svg_out = svg}).ok());
  EXPECT_EQ(*ReadFile(svg), *ReadFile(OMNI_SOURCE_DIR "/docs/images/joint_pipeline.svg"))
      << "make it anew: omnitrain replay --microbatches 12 --svg docs/images/joint_pipeline.svg";
}

TEST(ReplayCommandTest, WhatItTracesItReplaysAlike) {
  const std::string table = TempFile("table.yaml", R"(times:
- {kind: forward, seconds: 0.001}
- {kind: forward, chunk: 3, seconds: 0.0025}
- {kind: backward, seconds: 0.002}
- {kind: encode, seconds: 0.0005}
- {kind: encode, group: 1, rank: 2, seconds: 0.004}
- {kind: encoder_backward, seconds: 0.001}
- {kind: update, seconds: 0.003}
)");
  const std::string trace = TempFile("trace.json"), svg = TempFile("drawing.svg");
  const auto first = ReplaySchedule({.times = table, .trace_out = trace, .svg_out = svg});
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_THAT(*first, HasSubstr(" s\nbubbles"));
  EXPECT_THAT(*first, testing::Not(HasSubstr("closed form")));
  const auto again = ReplaySchedule({.traces = {trace}});
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(*again, *first);
  EXPECT_THAT(*ReadFile(svg), HasSubstr("encode encoder 0 group 1"));
  // Another policy from the same record: it has times for all that it needs.
  EXPECT_TRUE(ReplaySchedule({.joint = "upfront", .traces = {trace}}).ok());
  const auto halves = ReplaySchedule({.schedule = "zb_h1", .traces = {trace}});
  EXPECT_EQ(halves.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(halves.status().message()),
              HasSubstr("trace.json: no time for rank 0 input backward chunk 0 microbatch 0; there "
                        "are times for forward, backward, encode"));
}

TEST(ReplayCommandTest, ErrorsNameTheFlag) {
  const auto Error = [](const ReplayCommand& command) {
    const auto report = ReplaySchedule(command);
    EXPECT_FALSE(report.ok());
    return std::string(report.status().message());
  };
  EXPECT_THAT(
      Error({.schedule = "1f1"}),
      HasSubstr("--schedule: found \"1f1\", expected gpipe, 1f1b, interleaved, zb_h1, zb_v; "
                "did you mean \"1f1b\"?"));
  EXPECT_THAT(Error({.joint = "unifrom"}), HasSubstr("--joint: found \"unifrom\""));
  EXPECT_THAT(Error({.ranks = 0}), HasSubstr("ranks is 0, expected at least 1"));
  EXPECT_THAT(Error({.chunks_per_rank = 2}), HasSubstr("chunks_per_rank is 2"));
  EXPECT_THAT(Error({.encoders = -1}), HasSubstr("--frozen: found 0 of -1 encoders"));
  EXPECT_THAT(Error({.frozen = 2}), HasSubstr("--frozen: found 2 of 1 encoders"));
  EXPECT_THAT(Error({.joint = "disaggregated", .encoder_ranks = 4}), HasSubstr("encoder_ranks"));
  EXPECT_THAT(Error({.costs = {1, 2}}), HasSubstr("--costs: found 2 numbers, expected 5"));
  EXPECT_THAT(Error({.costs = {1, 2, 3, -4, 5}}), HasSubstr("--costs: found -4"));
  EXPECT_THAT(Error({.times = "a", .traces = {"b"}}), HasSubstr("found several of --times"));
  EXPECT_THAT(Error({.times = "/no/such.yaml"}), HasSubstr("/no/such.yaml"));
  EXPECT_THAT(Error({.traces = {"/no/such.json"}}), HasSubstr("/no/such.json"));
  EXPECT_THAT(Error({.ranks_per_stage = 0}), HasSubstr("--ranks-per-stage: found 0"));
  EXPECT_THAT(Error({.svg_out = "/no/such/folder/a.svg"}), HasSubstr("/no/such/folder"));
  EXPECT_THAT(Error({.trace_out = "/no/such/folder/a.json"}), HasSubstr("/no/such/folder"));
}

}  // namespace
}  // namespace omni::tools
