#include "parallel/schedule/build.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace omni::parallel {
namespace {

// "F0.1 B0.1 E1.0": the works of a program, chunk or encoder before the dot.
std::string Works(const Program& program) {
  std::string text;
  for (const Action& action : program) {
    const char* name = nullptr;
    switch (action.kind) {
      case ActionKind::kForward:
        name = "F";
        break;
      case ActionKind::kBackward:
        name = "B";
        break;
      case ActionKind::kBackwardInput:
        name = "I";
        break;
      case ActionKind::kWeightGrad:
        name = "W";
        break;
      case ActionKind::kEncodeForward:
        name = "E";
        break;
      case ActionKind::kEncodeOnly:
        name = "O";
        break;
      case ActionKind::kEncodeBackward:
        name = "D";
        break;
      default:
        continue;
    }
    absl::StrAppend(&text, text.empty() ? "" : " ", name,
                    action.chunk >= 0 ? action.chunk : action.encoder, ".", action.microbatch);
  }
  return text;
}

TEST(BuildTest, PlacesChunks) {
  ScheduleOptions options{.ranks = 3};
  EXPECT_EQ(options.ChunksOf(2), std::vector<int32_t>{2});
  options.schedule = ScheduleKind::kInterleaved;
  options.chunks_per_rank = 2;
  EXPECT_EQ(options.ChunksOf(1), (std::vector<int32_t>{1, 4}));
  options.schedule = ScheduleKind::kZbV;
  EXPECT_EQ(options.ChunksOf(0), (std::vector<int32_t>{0, 5}));
  EXPECT_EQ(options.ChunksOf(2), (std::vector<int32_t>{2, 3}));
  options.joint = JointKind::kDisaggregated;
  options.encoder_ranks = 1;
  EXPECT_EQ(options.ChunksOf(0), (std::vector<int32_t>{0, 3}));
  EXPECT_EQ(options.ChunksOf(2), std::vector<int32_t>{});
}

TEST(BuildTest, GroupsHaveAShareForEveryRankThatEncodes) {
  ScheduleOptions options{.ranks = 4, .microbatches = 9, .q = 2};
  EXPECT_EQ(options.group_size(), 8);
  EXPECT_EQ(options.num_groups(), 2);
  options.joint = JointKind::kFirstStage;
  EXPECT_EQ(options.group_size(), 2);
  EXPECT_EQ(options.num_groups(), 5);
  options.joint = JointKind::kDisaggregated;
  options.encoder_ranks = 3;
  EXPECT_EQ(options.group_size(), 6);
}

// Written down from the papers' figures.
TEST(BuildTest, OrdersOfThreeRanks) {
  ScheduleOptions options{.ranks = 3, .microbatches = 4};
  const auto works = [&](int32_t rank) { return Works(BuildProgram(options, rank)); };
  EXPECT_EQ(works(0), "F0.0 F0.1 F0.2 B0.0 F0.3 B0.1 B0.2 B0.3");
  EXPECT_EQ(works(2), "F2.0 B2.0 F2.1 B2.1 F2.2 B2.2 F2.3 B2.3");
  options.schedule = ScheduleKind::kGPipe;
  EXPECT_EQ(works(1), "F1.0 F1.1 F1.2 F1.3 B1.0 B1.1 B1.2 B1.3");
  options.schedule = ScheduleKind::kZbH1;
  EXPECT_EQ(works(0), "F0.0 F0.1 F0.2 I0.0 W0.0 F0.3 I0.1 W0.1 I0.2 W0.2 I0.3 W0.3");
  EXPECT_EQ(works(2), "F2.0 I2.0 F2.1 I2.1 F2.2 I2.2 W2.0 F2.3 I2.3 W2.1 W2.2 W2.3");
}

TEST(BuildTest, OrdersOfTwoRanksWithTwoChunks) {
  ScheduleOptions options{
      .schedule = ScheduleKind::kInterleaved, .ranks = 2, .chunks_per_rank = 2, .microbatches = 4};
  const auto works = [&](int32_t rank) { return Works(BuildProgram(options, rank)); };
  EXPECT_EQ(works(0),
            "F0.0 F0.1 F2.0 F2.1 F0.2 B2.0 F0.3 B2.1 F2.2 B0.0 F2.3 B0.1 B2.2 B2.3 B0.2 B0.3");
  EXPECT_EQ(works(1),
            "F1.0 F1.1 F3.0 B3.0 F3.1 B3.1 F1.2 B1.0 F1.3 B1.1 F3.2 B3.2 F3.3 B3.3 B1.2 B1.3");
  // Microbatches that aren't there are left out.
  options.microbatches = 3;
  EXPECT_EQ(works(0), "F0.0 F0.1 F2.0 F2.1 F0.2 B2.0 B2.1 F2.2 B0.0 B0.1 B2.2 B0.2");
  options.schedule = ScheduleKind::kZbV;
  EXPECT_EQ(works(0),
            "F0.0 F0.1 F0.2 F3.0 I3.0 W3.0 F3.1 I3.1 W3.1 I0.0 W0.0 F3.2 I3.2 W3.2 I0.1 W0.1 "
            "I0.2 W0.2");
}

TEST(BuildTest, UniformEncodesBeforeGroupsStart) {
  ScheduleOptions options{.ranks = 2, .microbatches = 6, .encoders = {{true}, {false}}};
  const auto works = [&](int32_t rank) { return Works(BuildProgram(options, rank)); };
  EXPECT_EQ(works(0),
            "E0.0 O1.0 E0.1 O1.1 F0.0 F0.1 B0.0 E0.2 O1.2 F0.2 B0.1 D0.0 F0.3 B0.2 F0.4 B0.3 D0.1 "
            "F0.5 B0.4 B0.5 D0.2");
  EXPECT_EQ(works(1),
            "E0.0 O1.0 E0.1 O1.1 F1.0 B1.0 F1.1 B1.1 E0.2 O1.2 F1.2 B1.2 D0.0 F1.3 B1.3 F1.4 B1.4 "
            "D0.1 F1.5 B1.5 D0.2");
}

TEST(BuildTest, OtherWaysToEncode) {
  ScheduleOptions options{.ranks = 2, .microbatches = 3, .encoders = {{true}}};
  const auto works = [&](int32_t rank) { return Works(BuildProgram(options, rank)); };
  options.joint = JointKind::kUpfront;
  EXPECT_EQ(works(1), "E0.0 E0.1 F1.0 B1.0 F1.1 B1.1 F1.2 B1.2 D0.0 D0.1");
  options.joint = JointKind::kRecompute;
  EXPECT_EQ(works(1), "O0.0 O0.1 F1.0 B1.0 F1.1 B1.1 F1.2 B1.2 D0.0 D0.1");
  options.joint = JointKind::kFirstStage;
  EXPECT_EQ(works(0), "E0.0 F0.0 E0.1 F0.1 B0.0 D0.0 E0.2 F0.2 B0.1 D0.1 B0.2 D0.2");
  EXPECT_EQ(works(1), "F1.0 B1.0 F1.1 B1.1 F1.2 B1.2");
}

// Encoders on two ranks of their own go along with chunk 0, a group ahead.
TEST(BuildTest, DisaggregatedEncodersAreAStageAbove) {
  const ScheduleOptions options{.ranks = 4,
                                .microbatches = 7,
                                .joint = JointKind::kDisaggregated,
                                .encoders = {{true}},
                                .encoder_ranks = 2};
  const std::vector<Program> programs = BuildPrograms(options);
  EXPECT_EQ(Works(programs[0]),
            "F0.0 F0.1 B0.0 F0.2 B0.1 F0.3 B0.2 F0.4 B0.3 F0.5 B0.4 F0.6 B0.5 B0.6");
  EXPECT_EQ(Works(programs[2]), "E0.0 E0.1 E0.2 D0.0 E0.3 D0.1 D0.2 D0.3");
  EXPECT_EQ(Works(programs[3]), Works(programs[2]));
  for (const Action& action : programs[2]) EXPECT_LT(action.chunk, 0);
}

// Late ranks have more time before their first forward, so they get more groups; each is on one.
TEST(BuildTest, AggressiveFillsBubbles) {
  const ScheduleOptions options{
      .ranks = 8, .microbatches = 32, .joint = JointKind::kAggressive, .encoders = {{true}}};
  std::vector<int32_t> encoded, groups(32, 0);
  for (const Program& program : BuildPrograms(options)) {
    encoded.push_back(0);
    for (const Action& action : program) {
      if (action.kind != ActionKind::kEncodeForward) continue;
      ++encoded.back();
      ++groups[action.microbatch];
    }
  }
  EXPECT_EQ(groups, std::vector<int32_t>(32, 1));
  EXPECT_TRUE(std::is_sorted(encoded.begin(), encoded.end()));
  EXPECT_GT(encoded.back(), 32 / 8);
  EXPECT_EQ(encoded.front(), 0);
  // The first group is waited for wherever it is; the second has room after it on the last rank.
  const ScheduleOptions two{
      .ranks = 2, .microbatches = 2, .joint = JointKind::kAggressive, .encoders = {{true}}};
  EXPECT_EQ(Works(BuildProgram(two, 0)), "F0.0 F0.1 B0.0 B0.1");
  EXPECT_EQ(Works(BuildProgram(two, 1)), "E0.0 E0.1 F1.0 B1.0 F1.1 B1.1 D0.0 D0.1");
}

TEST(BuildTest, ReductionsOverlapButComeInOneOrder) {
  const ScheduleOptions options{.schedule = ScheduleKind::kInterleaved,
                                .ranks = 2,
                                .chunks_per_rank = 2,
                                .microbatches = 2,
                                .encoders = {{true}, {false}, {true}}};
  for (int32_t rank = 0; rank < 2; ++rank) {
    const Program program = BuildProgram(options, rank);
    std::string reductions;
    for (const Action& action : program) {
      if (action.kind == ActionKind::kReduceGradients || action.kind == ActionKind::kAgree ||
          (action.kind == ActionKind::kRecv && action.payload == Payload::kRowGrads)) {
        absl::StrAppend(&reductions, ToString(action), "; ");
      }
    }
    EXPECT_EQ(reductions, rank == 0 ? "reduce gradients chunk 2; reduce gradients chunk 0; agree; "
                                      "reduce gradients encoder 0; reduce gradients encoder 2; "
                                    : "receive row gradients encoder 0 group 0 from 0; "
                                      "receive row gradients encoder 2 group 0 from 0; "
                                      "reduce gradients chunk 1; reduce gradients chunk 3; agree; "
                                      "reduce gradients encoder 0; reduce gradients encoder 2; ");
    EXPECT_EQ(program.back().kind, ActionKind::kGatherParameters);
  }
}

TEST(BuildTest, OneRankNeedsNoTransfers) {
  const ScheduleOptions options{.microbatches = 2, .encoders = {{true}}};
  EXPECT_EQ(Works(BuildProgram(options, 0)), "E0.0 E0.1 F0.0 B0.0 D0.0 F0.1 B0.1 D0.1");
  for (const Action& action : BuildProgram(options, 0)) EXPECT_EQ(action.peer, -1);
}

TEST(BuildTest, RefusesWhatDoesNotFit) {
  const auto message = [](const ScheduleOptions& options) {
    return std::string(Check(options).message());
  };
  EXPECT_EQ(message({}), "");
  EXPECT_EQ(message({.ranks = 0}), "schedule: ranks is 0, expected at least 1");
  EXPECT_EQ(message({.microbatches = 0}), "schedule: microbatches is 0, expected at least 1");
  EXPECT_EQ(message({.q = 0}), "schedule: q is 0, expected at least 1");
  EXPECT_EQ(message({.groups_ahead = 0}), "schedule: groups_ahead is 0, expected at least 1");
  EXPECT_EQ(message({.chunks_per_rank = 2}),
            "schedule 1f1b: chunks_per_rank is 2, expected 1; interleaved takes more");
  EXPECT_EQ(message({.schedule = ScheduleKind::kInterleaved}),
            "schedule interleaved: chunks_per_rank is 1, expected at least 2");
  EXPECT_EQ(message({.schedule = ScheduleKind::kZbV, .chunks_per_rank = 3}),
            "schedule zb_v: chunks_per_rank is 3, expected 2");
  EXPECT_EQ(message({.ranks = 2, .joint = JointKind::kDisaggregated, .encoder_ranks = 2}),
            "schedule: encoder_ranks is 2 of 2 ranks, expected at least 1 and fewer than all");
  EXPECT_EQ(message({.ranks = 40000}), "schedule: 40000 ranks, expected at most 32767");
}

}  // namespace
}  // namespace omni::parallel
