// The clockwork of the replay, against programs and times worked out by hand.
#include "parallel/schedule/replay.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/base/trace.h"

namespace omni::parallel {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Action Compute(ActionKind kind, int16_t chunk, int32_t microbatch) {
  return {.kind = kind, .chunk = chunk, .microbatch = microbatch};
}
Action Encode(ActionKind kind, int16_t encoder, int32_t group) {
  return {.kind = kind, .microbatch = group, .encoder = encoder};
}
Action Hidden(ActionKind kind, Payload payload, int16_t chunk, int32_t microbatch, int16_t peer) {
  return {.kind = kind, .payload = payload, .chunk = chunk, .microbatch = microbatch, .peer = peer};
}
Action Rows(ActionKind kind, Payload payload, int16_t encoder, int32_t group, int16_t peer) {
  return {.kind = kind, .payload = payload, .microbatch = group, .encoder = encoder, .peer = peer};
}

constexpr ActionKind kF = ActionKind::kForward, kB = ActionKind::kBackward;
constexpr ActionKind kS = ActionKind::kSend, kR = ActionKind::kRecv;

// Two ranks, two microbatches of one group, one encoder; one forward, one backward.
std::vector<Program> TinyPrograms() {
  return {{Encode(ActionKind::kEncodeForward, 0, 0),
           Rows(kR, Payload::kRows, 0, 0, 1),
           Compute(kF, 0, 0),
           Hidden(kS, Payload::kHidden, 1, 0, 1),
           Compute(kF, 0, 1),
           Hidden(kS, Payload::kHidden, 1, 1, 1),
           Hidden(kR, Payload::kHiddenGrad, 0, 0, 1),
           Compute(kB, 0, 0),
           Hidden(kR, Payload::kHiddenGrad, 0, 1, 1),
           Compute(kB, 0, 1),
           Rows(kS, Payload::kRowGrads, 0, 0, 1),
           Encode(ActionKind::kEncodeBackward, 0, 0),
           {.kind = ActionKind::kAgree},
           {.kind = ActionKind::kUpdate}},
          {Encode(ActionKind::kEncodeForward, 0, 0),
           Rows(kS, Payload::kRows, 0, 0, 0),
           Hidden(kR, Payload::kHidden, 1, 0, 0),
           Compute(kF, 1, 0),
           Compute(kB, 1, 0),
           Hidden(kS, Payload::kHiddenGrad, 0, 0, 0),
           Hidden(kR, Payload::kHidden, 1, 1, 0),
           Compute(kF, 1, 1),
           Compute(kB, 1, 1),
           Hidden(kS, Payload::kHiddenGrad, 0, 1, 0),
           Rows(kR, Payload::kRowGrads, 0, 0, 0),
           Encode(ActionKind::kEncodeBackward, 0, 0),
           {.kind = ActionKind::kAgree},
           {.kind = ActionKind::kUpdate}}};
}
ScheduleOptions TinyOptions() {
  return {.schedule = ScheduleKind::k1F1B, .ranks = 2, .microbatches = 2, .encoders = {{}}};
}
double TinyTime(int32_t rank, const Action& action) {
  switch (action.kind) {
    case ActionKind::kEncodeForward:
      return 0.5;
    case ActionKind::kForward:
    case ActionKind::kEncodeBackward:
      return 1;
    case ActionKind::kBackward:
      return 2;
    case ActionKind::kSend:
      return 0.25;
    case ActionKind::kUpdate:
      return rank == 0 ? 0.5 : 0.75;
    default:
      return 0;
  }
}

TEST(ReplayTest, EveryTimeOfATinyPipelineIsAsByHand) {
  const auto result = Replay(TinyOptions(), TinyPrograms(), TinyTime);
  ASSERT_TRUE(result.ok()) << result.status();
  const auto Times = [&](int rank) {
    std::vector<std::pair<double, double>> times;
    for (const TimedAction& timed : result->timeline[rank]) {
      times.emplace_back(timed.begin, timed.end);
    }
    return times;
  };
  using P = std::pair<double, double>;
  EXPECT_THAT(Times(0),
              ElementsAre(P{0, 0.5}, P{0.5, 0.75}, P{0.75, 1.75}, P{1.75, 2}, P{1.75, 2.75},
                          // Rank 1 posts its second receive only at 5.
                          P{2.75, 5.25}, P{2.75, 5.25}, P{5.25, 7.25}, P{7.25, 8.5}, P{8.5, 10.5},
                          P{10.5, 10.75}, P{10.5, 11.5}, P{11.75, 11.75}, P{11.75, 12.25}));
  EXPECT_THAT(Times(1),
              ElementsAre(P{0, 0.5}, P{0.5, 0.75}, P{0.5, 2}, P{2, 3}, P{3, 5}, P{5, 5.25},
                          P{5, 5.25}, P{5.25, 6.25}, P{6.25, 8.25}, P{8.25, 8.5}, P{8.25, 10.75},
                          P{10.75, 11.75}, P{11.75, 11.75}, P{11.75, 12.5}));
  EXPECT_EQ(result->step_time, 12.5);
  EXPECT_THAT(result->busy, ElementsAre(8, 8.25));
  EXPECT_DOUBLE_EQ(result->bubble_fraction(), 1 - 16.25 / 25);
  EXPECT_THAT(result->live_activations_max, ElementsAre(2, 1));
  EXPECT_THAT(result->live_groups_max, ElementsAre(1, 1));
  for (size_t rank = 0; rank < 2; ++rank) {
    for (size_t i = 0; i < TinyPrograms()[rank].size(); ++i) {
      EXPECT_EQ(result->timeline[rank][i].action, TinyPrograms()[rank][i]);
    }
  }
}

TEST(ReplayTest, AChannelKeepsItsOrderAndLeavesOthersAlone) {
  // A slow first message holds up the fast second one of its channel, not the rows.
  const std::vector<Program> programs = {
      {Compute(kF, 0, 0), Hidden(kS, Payload::kHidden, 1, 0, 1), Compute(kF, 0, 1),
       Hidden(kS, Payload::kHidden, 1, 1, 1), Rows(kS, Payload::kRowGrads, 0, 0, 1)},
      {Hidden(kR, Payload::kHidden, 1, 0, 0), Hidden(kR, Payload::kHidden, 1, 1, 0),
       Rows(kR, Payload::kRowGrads, 0, 0, 0), Encode(ActionKind::kEncodeBackward, 0, 0),
       Compute(kF, 1, 0), Compute(kF, 1, 1)}};
  const auto result = Replay(TinyOptions(), programs, [](int32_t, const Action& action) {
    if (action.kind == kS) return action.microbatch == 0 && action.chunk == 1 ? 10.0 : 0.5;
    return 1.0;
  });
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->timeline[1][0].end, 11);
  EXPECT_EQ(result->timeline[1][1].end, 11);
  EXPECT_EQ(result->timeline[1][2].end, 2.5);
  EXPECT_EQ(result->timeline[1][3].begin, 2.5);
  EXPECT_EQ(result->timeline[1][4].begin, 11);
  EXPECT_EQ(result->step_time, 13);
}

TEST(ReplayTest, AnAgreementWaitsForTheLastRankEachTime) {
  // Rank 0 is woken by a message while it waits to agree, and must go on waiting.
  const Action agree{.kind = ActionKind::kAgree}, update{.kind = ActionKind::kUpdate};
  const std::vector<Program> programs = {
      {Hidden(kR, Payload::kHiddenGrad, 0, 0, 1), agree, update, agree},
      {update, Hidden(kS, Payload::kHiddenGrad, 0, 0, 0), update, agree, agree, update}};
  const auto result = Replay(TinyOptions(), programs, [](int32_t rank, const Action& action) {
    return action.kind == ActionKind::kUpdate ? (rank == 0 ? 3.0 : 1.0) : 0.125;
  });
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->timeline[0][1].begin, 2.125 - 0.125);
  EXPECT_EQ(result->timeline[0][1].end, 2.125);
  EXPECT_EQ(result->timeline[1][3].end, 2.125);
  EXPECT_EQ(result->timeline[1][4].begin, 5.125);  // after rank 0's update
  EXPECT_EQ(result->step_time, 6.25);
  EXPECT_THAT(result->busy, ElementsAre(3, 3));  // agreeing is no compute
}

TEST(ReplayTest, WhatLivesIsCountedToTheEndOfItsBackward) {
  ScheduleOptions options{.ranks = 1, .microbatches = 4, .encoders = {{}, {.trains = false}, {}}};
  const auto kE = ActionKind::kEncodeForward, kEo = ActionKind::kEncodeOnly;
  const auto kEb = ActionKind::kEncodeBackward, kBi = ActionKind::kBackwardInput;
  const auto kW = ActionKind::kWeightGrad;
  const auto Live = [&](const Program& program) {
    const auto result = Replay(options, {program}, [](int32_t, const Action&) { return 1.0; });
    EXPECT_TRUE(result.ok()) << result.status();
    return std::pair(result->live_activations_max[0], result->live_groups_max[0]);
  };
  EXPECT_EQ(Live({}), std::pair(0, 0));
  EXPECT_EQ(Live(PlainProgram(4)), std::pair(1, 0));
  // An input's backward does not end it, the weights' does.
  EXPECT_EQ(Live({Compute(kF, 0, 0), Compute(kBi, 0, 0), Compute(kF, 0, 1), Compute(kW, 0, 0),
                  Compute(kBi, 0, 1), Compute(kW, 0, 1)}),
            std::pair(2, 0));
  EXPECT_EQ(Live({Compute(kF, 0, 0), Compute(kBi, 0, 0), Compute(kW, 0, 0), Compute(kF, 0, 1)}),
            std::pair(1, 0));
  // Two encoders of a group are one group, the frozen one keeps nothing.
  EXPECT_EQ(Live({Encode(kE, 0, 0), Encode(kE, 2, 0), Encode(kE, 1, 1), Encode(kEb, 0, 0),
                  Encode(kEb, 2, 0)}),
            std::pair(0, 1));
  // It lives until the last of its encoders went back.
  EXPECT_EQ(Live({Encode(kE, 0, 0), Encode(kE, 2, 0), Encode(kEb, 0, 0), Encode(kE, 0, 1)}),
            std::pair(0, 2));
  EXPECT_EQ(Live({Encode(kE, 0, 0), Encode(kE, 2, 0), Encode(kEb, 0, 0), Encode(kEb, 2, 0),
                  Encode(kE, 0, 1)}),
            std::pair(0, 1));
  // Encoded without keeping: only while it goes back.
  EXPECT_EQ(Live({Encode(kEo, 0, 0), Encode(kEo, 0, 1)}), std::pair(0, 0));
  EXPECT_EQ(Live({Encode(kEo, 0, 0), Encode(kEo, 0, 1), Encode(kEb, 0, 0), Encode(kEb, 0, 1)}),
            std::pair(0, 1));
}

TEST(ReplayTest, ProgramsThatStopAreNamed) {
  const ScheduleOptions options = TinyOptions();
  const auto Unit = [](int32_t, const Action&) { return 1.0; };
  EXPECT_EQ(Replay(options, {{}}, Unit).status().code(), absl::StatusCode::kInvalidArgument);
  const auto Error = [&](std::vector<Program> programs) {
    const auto result = Replay(options, programs, Unit);
    EXPECT_EQ(result.status().code(), absl::StatusCode::kFailedPrecondition);
    return std::string(result.status().message());
  };
  const auto Changed = [](int rank, size_t index, auto change) {
    std::vector<Program> programs = TinyPrograms();
    change(programs[rank], programs[rank].begin() + static_cast<int64_t>(index));
    return programs;
  };
  const auto Erase = [](Program& program, auto at) { program.erase(at); };
  // A receive is missing: what needs it waits. A send is missing: likewise, on the other side.
  EXPECT_THAT(Error(Changed(1, 2, Erase)),
              HasSubstr("the next is rank 1 action 2 (forward chunk 1 microbatch 0)"));
  EXPECT_THAT(Error(Changed(1, 6, Erase)),
              HasSubstr("the programs stop: rank 0 action 9 (backward chunk 0 microbatch 1) waits "
                        "for what never arrives; 1 more ranks wait, the next is rank 1 action 6 "
                        "(forward chunk 1 microbatch 1)"));
  EXPECT_THAT(Error(Changed(0, 10, Erase)), HasSubstr("rank 1 action 11 (encoder backward"));
  EXPECT_THAT(Error(Changed(1, 1, Erase)), HasSubstr("rank 0 action 2 (forward chunk 0"));
  // An agreement is missing.
  EXPECT_THAT(Error(Changed(1, 12, Erase)), HasSubstr("rank 0 action 12 (agree)"));
  // Crossed.
  EXPECT_THAT(
      Error(Changed(0, 3, [](Program&, auto at) { std::swap(*at, *(at + 2)); })),
      HasSubstr("rank 1 action 2 (receive hidden chunk 1 microbatch 0 from 0): meets rank 0 "
                "action 3 (send hidden chunk 1 microbatch 1 to 1)"));
  // One too many.
  EXPECT_THAT(
      Error(Changed(0, 13,
                    [](Program& program, auto at) {
                      program.insert(at, Hidden(kS, Payload::kHidden, 1, 1, 1));
                    })),
      HasSubstr("rank 0 action 13 (send hidden chunk 1 microbatch 1 to 1): nobody receives"));
  EXPECT_THAT(Error(Changed(0, 13,
                            [](Program& program, auto at) {
                              program.insert(at, Rows(kR, Payload::kRows, 0, 0, 1));
                            })),
              HasSubstr("nobody sends"));
  // Fields out of range.
  for (const auto& [index, field, message] : std::vector<std::tuple<size_t, int, std::string>>{
           {2, 0, "found chunk 7, expected 0 to 1"},
           {2, 1, "found microbatch 7, expected 0 to 1"},
           {0, 1, "found group 7, expected 0 to 0"},
           {0, 2, "found encoder 7, expected 0 to 0"},
           {3, 3, "found peer 7, expected 0 to 1"}}) {
    for (const int16_t value : {7, -1}) {
      const std::string error = Error(Changed(0, index, [&](Program&, auto at) {
        if (field == 0) at->chunk = value;
        if (field == 1) at->microbatch = value;
        if (field == 2) at->encoder = value;
        if (field == 3) at->peer = value;
      }));
      if (value == 7) {
        EXPECT_THAT(error, HasSubstr(message));
      }
      EXPECT_THAT(error, HasSubstr(absl::StrCat("rank 0 action ", index)));
    }
  }
  EXPECT_THAT(Error(Changed(0, 2, [](Program&, auto at) { at->chunk = 1; })),
              HasSubstr("rank 0 action 2 (forward chunk 1 microbatch 0): chunk 1 is on rank 1"));
  EXPECT_THAT(Error(Changed(1, 1, [](Program&, auto at) { at->kind = kR; })),
              HasSubstr("chunk 0 is on rank 0"));
  EXPECT_THAT(Error(Changed(0, 3, [](Program&, auto at) { at->payload = Payload::kNone; })),
              HasSubstr("has no payload"));
}

TEST(ReplayTest, TheTraceHasEveryActionOnItsRank) {
  const auto result = Replay(TinyOptions(), TinyPrograms(), TinyTime);
  ASSERT_TRUE(result.ok()) << result.status();
  const std::string path = ::testing::TempDir() + "/replay.json";
  std::ofstream(path) << ToTrace(*result);
  const auto events = ReadChromeTrace(path);
  ASSERT_TRUE(events.ok()) << events.status();
  size_t num_actions = 0, num_transfers = 0;
  for (const TraceEvent& event : *events) {
    num_actions += event.category == "action" ? 1 : 0;
    num_transfers += event.category == "transfer" ? 1 : 0;
    EXPECT_EQ(event.track == 0, event.category == "action");
  }
  EXPECT_EQ(num_actions, 8u + 8);
  EXPECT_EQ(num_transfers, 6u);
  const auto found = std::find_if(events->begin(), events->end(), [](const TraceEvent& event) {
    return event.process == 1 && event.name == "backward chunk 1 microbatch 1";
  });
  ASSERT_NE(found, events->end());
  EXPECT_EQ(found->begin_us, 6.25e6);
  EXPECT_EQ(found->end_us, 8.25e6);
}

TEST(ReplayTest, TheDrawingHasEveryActionInItsPlace) {
  const auto result = Replay(TinyOptions(), TinyPrograms(), TinyTime);
  ASSERT_TRUE(result.ok()) << result.status();
  const std::string svg = ToSvg(*result);
  EXPECT_EQ(svg, ToSvg(*result));
  const auto Count = [&](const std::string& part) {
    size_t count = 0;
    for (size_t at = svg.find(part); at != std::string::npos; at = svg.find(part, at + 1)) ++count;
    return count;
  };
  EXPECT_EQ(Count("<rect"), 1 + 2 * 7 + 5u);  // background, actions that take time, legend
  EXPECT_EQ(Count("<title>"), 2 * 7 + 2u);    // and rows, forth and back
  EXPECT_EQ(Count("<svg"), Count("</svg>"));
  EXPECT_EQ(Count("<text"), Count("</text>"));
  for (const char* name : {"forward", "backward", "encode", "encoder backward", "update"}) {
    EXPECT_EQ(Count(absl::StrCat(">", name, "</text>")), 1u) << name;
  }
  EXPECT_EQ(Count(">-1<"), 0u);
  EXPECT_EQ(Count(">weight gradients<"), 0u);  // only what occurs
  EXPECT_THAT(svg, HasSubstr("step 12.5, 35.0 % bubbles"));
  // 1120 / 12.5 = 89.6 a unit, from 58.
  EXPECT_THAT(
      svg,
      HasSubstr(
          "<rect x=\"618.00\" y=\"78.00\" width=\"179.20\" height=\"30.00\" "
          "fill=\"#66bb88\" fill-opacity=\"1.00\"><title>backward chunk 1 microbatch 1</title>"));

  const auto empty = Replay(TinyOptions(), {{}, {}}, TinyTime);
  EXPECT_THAT(ToSvg(*empty), HasSubstr("</svg>"));
}

}  // namespace
}  // namespace omni::parallel
