#include "dataloader/sample_tally.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"

namespace omni::dataloader {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

FaultEvent Broken(const std::string& source, int64_t i, SampleFault fault = SampleFault::kBroken) {
  return {.fault = fault,
          .source = source,
          .sample_id = absl::StrCat(source, ".jsonl:", i),
          .message = "0.jpg: corrupt JPEG"};
}

void Add(SampleTally* tally, const std::string& source, int64_t drawn, int64_t broken) {
  tally->AddDrawn(source, drawn);
  for (int64_t i = 0; i < broken; ++i) tally->Add(Broken(source, i));
}

TEST(SampleTallyTest, AShareAboveTheLimitStopsNamingSourceShareAndSample) {
  SampleTally tally({"a", "b"});
  Add(&tally, "a", 1000, 10);
  Add(&tally, "b", 60, 40);
  const absl::Status status = tally.Check(0.05);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("\"b\": 40 of the 60 samples drawn are broken (67%)"),
                    HasSubstr("data.max_broken is 0.05"), HasSubstr("b.jsonl:0: 0.jpg: corrupt")));
  EXPECT_TRUE(tally.Check(0.7).ok());
  EXPECT_TRUE(tally.Check(1).ok());
}

TEST(SampleTallyTest, AFewSayNothingOfASource) {
  SampleTally tally({"a"});
  Add(&tally, "a", 3, 1);
  EXPECT_TRUE(tally.Check(0.05).ok());
  EXPECT_FALSE(tally.Check(0).ok());
  Add(&tally, "a", 28, 30);
  EXPECT_TRUE(tally.Check(0.05).ok());  // 31 of 31
  Add(&tally, "a", 1, 1);
  EXPECT_FALSE(tally.Check(0.05).ok());
}

TEST(SampleTallyTest, AShareAtTheLimitIsNotStoppedByChance) {
  SampleTally tally({"a"});
  Add(&tally, "a", 1000, 55);
  EXPECT_TRUE(tally.Check(0.05).ok());
  SampleTally many({"a"});
  Add(&many, "a", 100000, 5500);
  EXPECT_FALSE(many.Check(0.05).ok());
}

TEST(SampleTallyTest, WhatIsOverlongOrCutIsNotBroken) {
  SampleTally tally({"a"});
  tally.AddDrawn("a", 100);
  for (int i = 0; i < 90; ++i) {
    tally.Add(Broken("a", i, i % 2 == 0 ? SampleFault::kOverlong : SampleFault::kCut));
  }
  EXPECT_TRUE(tally.Check(0.05).ok());
  EXPECT_EQ(tally.sources()[0].Summary(), "45 of 100 samples left out (overlong 45, cut 45)");
}

TEST(SampleTallyTest, NewsComeWhenTheNumberHasDoubled) {
  SampleTally tally({"a"});
  EXPECT_THAT(tally.News(), IsEmpty());
  std::vector<int64_t> told;
  for (int64_t i = 1; i <= 20; ++i) {
    Add(&tally, "a", 10, 1);
    if (!tally.News().empty()) told.push_back(i);
    EXPECT_THAT(tally.News(), IsEmpty());
  }
  EXPECT_EQ(told, (std::vector<int64_t>{1, 2, 4, 8, 16}));
}

TEST(SampleTallyTest, TheFirstOfEachReasonAreNamed) {
  SampleTally tally({"a"});
  Add(&tally, "a", 50, 5);
  tally.Add(Broken("a", 77, SampleFault::kBlanked));
  EXPECT_EQ(tally.Table(),
            "a: 6 of 50 samples left out (broken 5, blanked 1)\n"
            "  broken: a.jsonl:0: 0.jpg: corrupt JPEG\n"
            "  broken: a.jsonl:1: 0.jpg: corrupt JPEG\n"
            "  broken: a.jsonl:2: 0.jpg: corrupt JPEG\n"
            "  broken: 2 more\n"
            "  blanked: a.jsonl:77: 0.jpg: corrupt JPEG");
}

TEST(SampleTallyTest, GoesOnFromACheckpointAndJudgesAnew) {
  SampleTally tally({"a/\n\"", "b"});
  Add(&tally, "a/\n\"", 60, 40);
  tally.Add(Broken("b", 1, SampleFault::kUnpaired));
  SampleTally resumed({"b", "c"});
  ASSERT_TRUE(resumed.Restore(tally.ToJson()).ok());
  EXPECT_EQ(resumed.sources().size(), 3u);
  EXPECT_THAT(resumed.Table(), HasSubstr("40 of 60"));
  EXPECT_THAT(resumed.News(), IsEmpty());
  EXPECT_TRUE(resumed.Check(0.05).ok());  // the data may have been mended
  Add(&resumed, "a/\n\"", 40, 33);
  EXPECT_FALSE(resumed.Check(0.05).ok());
  EXPECT_FALSE(SampleTally().Restore("[]").ok());
  EXPECT_FALSE(SampleTally().Restore("{").ok());
  EXPECT_FALSE(SampleTally().Restore(R"({"a": {"drawn": -1}})").ok());
  EXPECT_FALSE(SampleTally().Restore(R"({"a": {"drawn": 1, "broken": {"first": []}}})").ok());
}

}  // namespace
}  // namespace omni::dataloader
