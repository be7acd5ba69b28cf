// Who is to blame, decided from what ranks say of themselves.
#include "runtime/comm/standing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"

namespace omni::comm {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr absl::Duration kDeadline = absl::Seconds(2);

Standing At(const std::string& activity, absl::Duration unchanged, int64_t sequence = 5) {
  return {
      .activity = activity, .unchanged = unchanged, .call = "", .lacks = {}, .sequence = sequence};
}

Standing WaitsFor(std::vector<int32_t> lacks, const std::string& call = "#9 barrier") {
  return {.activity = "waiting", .unchanged = kDeadline, .call = call, .lacks = std::move(lacks)};
}

Survey SurveyOf(std::vector<std::optional<Standing>> standings) {
  const size_t size = standings.size();
  return {.standings = std::move(standings),
          .last_heard = std::vector<std::string>(size),
          .left = std::vector<bool>(size)};
}

Verdict Find(const Survey& survey, std::vector<int32_t> lacks) {
  return FindCulprit(survey, 0, lacks, 7, "world", kDeadline);
}

TEST(StandingTest, GoesOverTheWire) {
  const Standing standing = {.activity = "encode encoder 0 group 1",
                             .unchanged = absl::Milliseconds(1500),
                             .call = "#7 group=world/tensor{2,3} barrier",
                             .lacks = {3, 17},
                             .sequence = 41};
  const auto there = Decode(Encode(standing));
  ASSERT_TRUE(there.has_value());
  EXPECT_EQ(there->activity, standing.activity);
  EXPECT_EQ(there->unchanged, standing.unchanged);
  EXPECT_EQ(there->call, standing.call);
  EXPECT_EQ(there->lacks, standing.lacks);
  EXPECT_EQ(there->sequence, 41);
  EXPECT_TRUE(Decode(Encode(Standing{})).has_value());
}

TEST(StandingTest, LongOnesAreCutAndBrokenOnesRefused) {
  Standing standing = {.activity = std::string(5000, 'a'), .call = std::string(5000, 'c')};
  standing.lacks.resize(5000);
  const std::string bytes = Encode(standing);
  EXPECT_LT(bytes.size(), 1000u);  // fits a message
  const auto there = Decode(bytes);
  ASSERT_TRUE(there.has_value());
  EXPECT_EQ(there->activity, std::string(200, 'a'));
  EXPECT_EQ(there->lacks.size(), 64u);
  for (size_t cut = 0; cut < bytes.size(); cut += 7) {
    EXPECT_FALSE(Decode(absl::string_view(bytes).substr(0, cut)).has_value()) << cut;
  }
  EXPECT_FALSE(Decode(bytes + "x").has_value());
}

TEST(CulpritTest, IsTheOneAtTheEndOfTheChain) {
  const Survey survey = SurveyOf({WaitsFor({1}), WaitsFor({3}, "#2 group=world/col{1,3} barrier"),
                                  WaitsFor({0}), At("forward chunk 1", absl::Seconds(2), 6)});
  const Verdict verdict = Find(survey, {1});
  EXPECT_EQ(verdict.rank, 3);
  EXPECT_EQ(verdict.chain,
            " for rank 1, which waits for rank 3 in #2 group=world/col{1,3} barrier");
  EXPECT_EQ(verdict.why,
            "is at \"forward chunk 1\", unchanged for 2s, 1 collective behind in group=world");
}

TEST(CulpritTest, WhoIsStuckGoesBeforeWhoIsBusy) {
  const Survey survey = SurveyOf({WaitsFor({1, 2}), At("forward", absl::Milliseconds(3)),
                                  At("encode", absl::Seconds(2)),
                                  At("elsewhere", absl::Seconds(50))});  // nobody waits for it
  EXPECT_EQ(Find(survey, {1, 2}).rank, 2);
  EXPECT_EQ(Find(survey, {1}).rank, 1);
  EXPECT_THAT(Find(survey, {1, 2}).why, HasSubstr("2 collectives behind"));
}

TEST(CulpritTest, WhoDoesNotAnswerGoesFirstAndWhatItDidIsRemembered) {
  Survey survey =
      SurveyOf({WaitsFor({1}), WaitsFor({2, 3}), std::nullopt, At("x", absl::Seconds(9))});
  EXPECT_EQ(Find(survey, {1}).why, "has not answered: stopped or cut off");
  survey.last_heard[2] = "reduce gradients";
  const Verdict verdict = Find(survey, {1});
  EXPECT_EQ(verdict.rank, 2);
  EXPECT_EQ(verdict.why,
            "has not answered: stopped or cut off; when last heard of, it was at \"reduce "
            "gradients\"");
}

TEST(CulpritTest, ASilentRankNobodyWaitsForGoesBeforeABusyOneButNotBeforeAStuckOne) {
  Survey survey = SurveyOf({WaitsFor({1}), At("x", absl::Milliseconds(1)), std::nullopt});
  EXPECT_EQ(Find(survey, {1}).rank, 2);
  EXPECT_EQ(Find(survey, {1}).chain, "");
  survey.standings[1]->unchanged = kDeadline;
  EXPECT_EQ(Find(survey, {1}).rank, 1);
  survey.standings[1]->unchanged = absl::Milliseconds(1);
  survey.left[2] = true;  // gone, and properly
  EXPECT_EQ(Find(survey, {1}).rank, 1);
}

TEST(CulpritTest, ARingOfWaitersIsCalledOne) {
  const Survey survey = SurveyOf({WaitsFor({1}), WaitsFor({2}), WaitsFor({0, 1})});
  const Verdict verdict = Find(survey, {1});
  EXPECT_THAT(verdict.rank, testing::AnyOf(1, 2));
  EXPECT_THAT(verdict.why, HasSubstr("ranks wait for each other"));
}

TEST(CulpritTest, WhoGetsOnIsSlowAndNotDead) {
  const absl::Duration half = kDeadline / 2;
  const Verdict slow = Find(SurveyOf({WaitsFor({1}), At("forward", half)}), {1});
  EXPECT_EQ(slow.rank, 1);
  EXPECT_FALSE(slow.is_dead);
  EXPECT_EQ(slow.respite, half);
  EXPECT_TRUE(Find(SurveyOf({WaitsFor({1}), At("forward", kDeadline)}), {1}).is_dead);
}

TEST(CulpritTest, TheDeadGoesBeforeTheSilentOneThatWasHeardOfLately) {
  Survey survey = SurveyOf({WaitsFor({1, 2}), At("forward", kDeadline), std::nullopt});
  survey.silent = {absl::ZeroDuration(), absl::ZeroDuration(), kDeadline / 2};
  EXPECT_EQ(Find(survey, {1, 2}).rank, 1);
  survey.standings[1]->unchanged = absl::ZeroDuration();
  EXPECT_EQ(Find(survey, {1, 2}).rank, 2);
  EXPECT_FALSE(Find(survey, {1, 2}).is_dead);
  survey.silent[2] = kDeadline;
  EXPECT_TRUE(Find(survey, {1, 2}).is_dead);
}

// Rank 1 waits for the asker, which gets on by another thread.
TEST(CulpritTest, WhoWaitsForASlowOneIsNotDead) {
  const Survey survey =
      SurveyOf({WaitsFor({1}), WaitsFor({2}), At("forward", absl::Milliseconds(3))});
  EXPECT_EQ(Find(survey, {1}).rank, 2);
  EXPECT_FALSE(Find(survey, {1}).is_dead);
}

TEST(CulpritTest, InARingNobodyIsDeadWhileAnyGetsOn) {
  Survey survey = SurveyOf({WaitsFor({1}), WaitsFor({0})});
  EXPECT_TRUE(Find(survey, {1}).is_dead);
  survey.standings[0]->unchanged = absl::ZeroDuration();
  EXPECT_FALSE(Find(survey, {1}).is_dead);
}

TEST(CulpritTest, ThereMayBeNone) {
  const Survey survey = SurveyOf({WaitsFor({}), At("x", absl::Seconds(9))});
  EXPECT_EQ(Find(survey, {}).rank, -1);
  EXPECT_EQ(Find(SurveyOf({WaitsFor({})}), {}).rank, -1);
}

TEST(SurveyTest, IsDescribedRankByRank) {
  Survey survey =
      SurveyOf({At("", absl::Seconds(1)), WaitsFor({0, 2}), std::nullopt, std::nullopt});
  survey.last_heard[2] = "encode";
  survey.left[3] = true;
  EXPECT_THAT(
      Describe(survey),
      ElementsAre("rank 0: busy outside of calls, unchanged for 1s",
                  "rank 1: at \"waiting\", unchanged for 2s, waits for ranks 0, 2 in #9 barrier",
                  "rank 2: has not answered; when last heard of, it was at \"encode\"",
                  "rank 3: has left"));
}

}  // namespace
}  // namespace omni::comm
