#include "dataloader/step_planner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "dataloader/batch.h"
#include "tests/dataloader/formats/store_fixture.h"
#include "tests/dataloader/support.h"

namespace omni::dataloader {
namespace {

using ::testing::HasSubstr;

std::shared_ptr<FakeStore> TextStore(int64_t n, const std::string& name, int32_t words = 1) {
  std::vector<FakeSample> samples;
  for (int64_t i = 0; i < n; ++i) {
    std::string question = "fox";
    for (int32_t w = 0; w < words * (1 + i % 3); ++w) question += " dog";
    samples.push_back(Question(question, absl::StrCat(i)));
  }
  return std::make_shared<FakeStore>(std::move(samples), name);
}

std::unique_ptr<StepPlanner> Start(const std::shared_ptr<const SamplePlanner>& samples,
                                   LoaderState state = {}) {
  auto planner = StepPlanner::Create(samples, std::move(state));
  OMNI_CHECK_OK(planner.status());
  return *std::move(planner);
}

// The samples of each lane's sequence.
std::vector<std::vector<std::string>> Ids(const StepPlan& plan) {
  std::vector<std::vector<std::string>> ids;
  for (const auto& lane : plan.lanes) {
    ids.emplace_back();
    for (const auto& sample : lane) {
      ids.back().push_back(absl::StrCat(sample->sample_id, "@", sample->key.draw));
    }
  }
  return ids;
}

StepPlan NextPlan(StepPlanner& planner) {
  auto plan = planner.Next();
  OMNI_CHECK_OK(plan.status());
  return *std::move(plan);
}

TEST(StepPlannerTest, SequencesFitAndEverySampleComesOnceAnEpoch) {
  const DataConfig config = TestConfig({{"a", 1}});
  const auto planner = Start(MakePlanner(config, {{"a", TextStore(64, "a.tar", 3)}}));
  std::map<std::string, int> times;
  // A lane's share is 16 samples, its window too: whole windows are whole epochs.
  while (planner->state().lanes[0].window < 3) {
    const StepPlan plan = NextPlan(*planner);
    for (const auto& lane : plan.lanes) {
      int64_t tokens = 0;
      EXPECT_FALSE(lane.empty());
      for (const auto& sample : lane) {
        tokens += sample->num_tokens();
        if (sample->key.draw < 16) ++times[sample->sample_id];
      }
      EXPECT_LE(tokens, config.sequence_length);
    }
  }
  EXPECT_EQ(times.size(), 64u);
  for (const auto& [id, count] : times) EXPECT_EQ(count, 1) << id;
}

// A job of many lanes, of which this rank reads a few, on texts of some length.
TEST(StepPlannerTest, TextIsHeldOfTheLanesThatAreRead) {
  DataConfig config = TestConfig({{"text", 1}, {"image", 1}});
  config.lanes = 64;
  config.sequence_length = 4096;
  std::vector<FakeSample> pictures;
  for (int i = 0; i < 64; ++i) pictures.push_back(Picture(28, 28 * (1 + i % 7), i));
  const auto samples =
      MakePlanner(config, {{"text", TextStore(640, "a.tar", 400)},
                           {"image", std::make_shared<FakeStore>(pictures, "b.tar")}});
  const auto planner_of = [&](std::function<bool(int32_t)> reads) {
    auto planner = StepPlanner::Create(samples, {}, std::move(reads));
    OMNI_CHECK_OK(planner.status());
    return *std::move(planner);
  };
  const auto all = planner_of(nullptr), none = planner_of([](int32_t) { return false; }),
             two = planner_of([](int32_t lane) { return lane % 32 == 3; });
  for (int step = 0; step < 5; ++step) {
    const StepPlan whole = NextPlan(*all), part = NextPlan(*two);
    NextPlan(*none);
    ASSERT_EQ(part.state_after, whole.state_after);
    EXPECT_EQ(part.num_tokens(), whole.num_tokens());
    EXPECT_EQ(part.loss_tokens(), whole.loss_tokens());
    const parallel::DataLayout data = NameEncoders(parallel::DataLayout::DataParallel(32), config);
    EXPECT_EQ(LayoutOf(part, config, data).Digest(), LayoutOf(whole, config, data).Digest());
    for (int32_t lane = 0; lane < config.lanes; ++lane) {
      ASSERT_EQ(part.lanes[lane].size(), whole.lanes[lane].size());
      for (size_t s = 0; s < part.lanes[lane].size(); ++s) {
        const SamplePlan& sample = *part.lanes[lane][s];
        const SamplePlan& full = *whole.lanes[lane][s];
        EXPECT_EQ(sample.key, full.key);
        EXPECT_EQ(CountsOf(sample, config), CountsOf(full, config));
        EXPECT_EQ(sample.media_info, full.media_info);
        const bool is_read = lane % 32 == 3;
        EXPECT_EQ(sample.tokenized.tokens.empty(), !is_read);
        if (is_read) {
          EXPECT_EQ(sample.tokenized.tokens, full.tokenized.tokens);
        }
      }
    }
  }
  // What all lanes cost is a few hundred bytes a sample; text, that of the lanes that are read.
  EXPECT_LT(none->held_bytes(), int64_t{config.lanes} * config.window * 600);
  const int64_t text = all->held_bytes() - none->held_bytes();
  EXPECT_GT(text, 10 * none->held_bytes() / 8);
  EXPECT_LT(two->held_bytes(), none->held_bytes() + text / 16);
}

TEST(StepPlannerTest, ResumesAtAnyStepThroughJson) {
  const DataConfig config = TestConfig({{"a", 2}, {"b", 1}});
  const auto samples =
      MakePlanner(config, {{"a", TextStore(23, "a.tar", 2)}, {"b", TextStore(3, "b.tar", 5)}});
  const auto unbroken = Start(samples);
  std::vector<std::vector<std::vector<std::string>>> steps;
  std::vector<LoaderState> states = {unbroken->state()};
  for (int i = 0; i < 25; ++i) {
    const StepPlan plan = NextPlan(*unbroken);
    EXPECT_EQ(plan.step, i);
    steps.push_back(Ids(plan));
    states.push_back(plan.state_after);
  }
  for (size_t stop = 0; stop < states.size(); ++stop) {
    const auto restored = LoaderState::FromJson(states[stop].ToJson());
    ASSERT_TRUE(restored.ok()) << restored.status();
    EXPECT_EQ(*restored, states[stop]);
    const auto resumed = Start(samples, *restored);
    for (size_t step = stop; step < steps.size(); ++step) {
      const StepPlan plan = NextPlan(*resumed);
      ASSERT_EQ(Ids(plan), steps[step]) << "stopped at " << stop << ", step " << step;
      ASSERT_EQ(plan.state_after, states[step + 1]);
    }
  }
}

TEST(StepPlannerTest, FaultsAreReportedOnceEvenAcrossAResume) {
  DataConfig config = TestConfig({{"a", 1}});
  config.lanes = 1;
  config.window = 30;
  std::vector<FakeSample> fakes;
  for (int i = 0; i < 30; ++i) fakes.push_back(Question("fox", absl::StrCat(i)));
  fakes[7].conversation_error = absl::DataLossError("a.tar:7: not JSON");
  fakes[9] = Question(std::string(500, 'z'), "too long");
  fakes[11].conversation.messages.pop_back();
  const auto samples =
      MakePlanner(config, {{"a", std::make_shared<FakeStore>(std::move(fakes), "a.tar")}});
  const auto planner = Start(samples);
  std::map<std::string, SampleFault> faults;
  LoaderState state;
  while (planner->state().lanes[0].window == 0) {
    const StepPlan plan = NextPlan(*planner);
    if (plan.state_after.lanes[0].window > 0) break;
    for (const FaultEvent& fault : plan.faults[0]) {
      EXPECT_TRUE(faults.emplace(fault.sample_id, fault.fault).second);
      EXPECT_EQ(fault.source, "a");
    }
    state = plan.state_after;
  }
  EXPECT_EQ(faults, (std::map<std::string, SampleFault>{{"a.tar:7", SampleFault::kBroken},
                                                        {"a.tar:9", SampleFault::kOverlong},
                                                        {"a.tar:11", SampleFault::kNoLoss}}));
  // The rest of the same window again, taken up in its middle: no fault a second time. What the
  // next window has is its own.
  state.lanes[0].position -= 1;
  state.step -= 1;
  EXPECT_TRUE(NextPlan(*Start(samples, state)).faults[0].empty());
}

TEST(StepPlannerTest, PhasesSwitchTheMixtureWithTheNextWindow) {
  DataConfig config = TestConfig({{"a", 1}, {"b", 1}});
  config.window = 8;
  config.phases = {{.until_step = 10, .weights = {{"b", 1.0}}}};
  const auto planner =
      Start(MakePlanner(config, {{"a", TextStore(40, "a.tar")}, {"b", TextStore(40, "b.tar")}}));
  int64_t late_a = 0, late = 0;
  for (int step = 0; step < 60; ++step) {
    const StepPlan plan = NextPlan(*planner);
    for (const auto& lane : plan.lanes) {
      for (const auto& sample : lane) {
        if (step < 10) {
          EXPECT_EQ(sample->key.source, 1);
        }
        if (step >= 20) {
          ++late;
          late_a += sample->key.source == 0;
        }
      }
    }
  }
  EXPECT_NEAR(static_cast<double>(late_a) / late, 0.5, 0.05);
}

TEST(StepPlannerTest, PhasesChooseLanesAndTheLengthOfNewWindows) {
  DataConfig config = TestConfig({{"a", 1}});
  const int32_t num_lanes = config.lanes;
  ASSERT_GE(num_lanes, 3);
  config.window = 8;
  config.phases = {{.until_step = 4, .lanes = 2},
                   {.until_step = 40, .lanes = num_lanes, .sequence_length = 48}};
  const auto samples = MakePlanner(config, {{"a", TextStore(64, "a.tar", 3)}});
  const auto planner = Start(samples);
  std::vector<std::vector<std::vector<std::string>>> steps;
  std::vector<LoaderState> states = {planner->state()};
  int64_t longest_early = 0;
  for (int step = 0; step < 48; ++step) {
    const StepPlan plan = NextPlan(*planner);
    ASSERT_EQ(static_cast<int32_t>(plan.lanes.size()), num_lanes);
    for (int32_t lane = 0; lane < num_lanes; ++lane) {
      EXPECT_EQ(plan.lanes[lane].empty(), step < 4 && lane >= 2) << step << " " << lane;
      int64_t tokens = 0;
      for (const auto& sample : plan.lanes[lane]) tokens += sample->num_tokens();
      if (step < 4) longest_early = std::max(longest_early, tokens);
      // By then every lane has used up the windows of before.
      if (step >= 30 && step < 40) {
        EXPECT_LE(tokens, 48) << step << " " << lane;
      }
      EXPECT_LE(tokens, config.sequence_length);
    }
    steps.push_back(Ids(plan));
    states.push_back(plan.state_after);
  }
  EXPECT_GT(longest_early, 48);
  // A lane that waited starts where it would have, at its first window.
  EXPECT_EQ(states[4].lanes[2].window, 0);
  EXPECT_EQ(states[4].lanes[2].position, 0);
  for (const size_t stop : {2u, 4u, 5u, 39u}) {
    const auto resumed = Start(samples, states[stop]);
    for (size_t step = stop; step < steps.size(); ++step) {
      ASSERT_EQ(Ids(NextPlan(*resumed)), steps[step]) << "stopped at " << stop;
    }
  }
}

TEST(StepPlannerTest, CutSamplesAreTrainedOnAndNamed) {
  DataConfig config = TestConfig({{"a", 1}});
  config.overlong = Overlong::kCut;
  config.lanes = 1;
  config.window = 2;
  FakeSample fake = Question("fox", "dog");
  fake.conversation.messages.push_back({Role::kUser, {Text(std::string(300, 'z'))}});
  fake.conversation.messages.push_back({Role::kAssistant, {Text("end")}});
  const auto planner = Start(
      MakePlanner(config, {{"a", std::make_shared<FakeStore>(std::vector<FakeSample>{fake})}}));
  const StepPlan plan = NextPlan(*planner);
  ASSERT_FALSE(plan.lanes[0].empty());
  EXPECT_TRUE(plan.lanes[0][0]->was_cut);
  ASSERT_FALSE(plan.faults[0].empty());
  EXPECT_EQ(plan.faults[0][0].fault, SampleFault::kCut);
  EXPECT_THAT(plan.faults[0][0].message, HasSubstr("data.sequence_length is 96"));
}

TEST(StepPlannerTest, NoUsableSampleIsAnErrorNotAHang) {
  const DataConfig config = TestConfig({{"a", 1}});
  FakeSample broken = Question("a", "b");
  broken.conversation_error = absl::DataLossError("fake.tar:0: not JSON");
  const auto planner = Start(
      MakePlanner(config, {{"a", std::make_shared<FakeStore>(std::vector<FakeSample>{broken})}}));
  const auto plan = planner->Next();
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(plan.status().message()), HasSubstr("fake.tar:0: not JSON"));
}

TEST(StepPlannerTest, APadThatATextSpellsStandsForNothing) {
  DataConfig config = TestConfig({{"a", 1}});
  const FakeSample sample = Question("a <|image_pad|>", "b");
  const auto store = std::make_shared<FakeStore>(std::vector<FakeSample>{sample});
  EXPECT_FALSE(NextPlan(*Start(MakePlanner(config, {{"a", store}}))).lanes[0].empty());
  config.text_has_specials = true;
  const auto plan = Start(MakePlanner(config, {{"a", store}}))->Next();
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(plan.status().message()),
              HasSubstr("its text spells 1 of the pads that stand for rows of media"));
}

class StoredStepPlannerTest : public StoreFixture {};

TEST_F(StoredStepPlannerTest, AShardThatGoesAwayStopsTheJobNamingTheSample) {
  const std::string shard = WriteTar("a.tar", {{"0.json", R"({"text":"x y z"})"}});
  std::shared_ptr<const SampleStore> store = OpenSource(shard).value();
  const auto planner = Start(MakePlanner(TestConfig({{"a", 1}}), {{"a", store}}));
  std::filesystem::remove(shard);
  const auto plan = planner->Next();
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(plan.status().message()), HasSubstr("a.tar:0: "));
}

TEST(StepPlannerTest, AStateOfOtherDataIsRefused) {
  DataConfig config = TestConfig({{"a", 1}});
  const auto planner = Start(MakePlanner(config, {{"a", TextStore(20, "a.tar")}}));
  const LoaderState state = NextPlan(*planner).state_after;
  const auto longer =
      StepPlanner::Create(MakePlanner(config, {{"a", TextStore(21, "a.tar")}}), state);
  EXPECT_EQ(longer.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(longer.status().message()), HasSubstr("source a of 20 samples"));
  EXPECT_THAT(std::string(longer.status().message()), HasSubstr("source a of 21 samples"));
  config.seed = 77;
  const auto other =
      StepPlanner::Create(MakePlanner(config, {{"a", TextStore(20, "a.tar")}}), state);
  EXPECT_EQ(other.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(other.status().message()), HasSubstr("seed 77"));
}

TEST(StepPlannerTest, ContentThatChangedUnderAStateIsAnErrorNotACrash) {
  const DataConfig config = TestConfig({{"a", 1}});
  // As many samples before, but longer ones: a window packed into more sequences.
  const auto samples = MakePlanner(config, {{"a", TextStore(20, "a.tar")}});
  LoaderState state = Start(samples)->state();
  state.lanes[0].position = config.window + 1;
  const auto resumed = Start(samples, state);
  const auto plan = resumed->Next();
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(plan.status().message()), HasSubstr("changed since the checkpoint"));
}

TEST(StepPlannerTest, AStateThatContradictsItselfIsDataLoss) {
  const DataConfig config = TestConfig({{"a", 1}});
  const auto samples = MakePlanner(config, {{"a", TextStore(20, "a.tar")}});
  LoaderState state = NextPlan(*Start(samples)).state_after;
  state.lanes.pop_back();
  EXPECT_EQ(StepPlanner::Create(samples, state).status().code(),
            absl::StatusCode::kFailedPrecondition);
  state.lanes.push_back({});
  EXPECT_EQ(StepPlanner::Create(samples, state).status().code(), absl::StatusCode::kDataLoss);
}

TEST(StepPlannerTest, AnEmptySourceWithWeightIsAnError) {
  const DataConfig config = TestConfig({{"a", 1}});
  const auto planner = StepPlanner::Create(MakePlanner(config, {{"a", TextStore(0, "a.tar")}}), {});
  EXPECT_EQ(planner.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(planner.status().message()), HasSubstr("\"a\""));
}

TEST(LoaderStateTest, BrokenJsonIsDataLoss) {
  for (const std::string text :
       {"", "{", "[]", "{\"version\":2}", "{\"version\":1,\"step\":0,\"fingerprint\":\"\"}",
        "{\"version\":1,\"step\":0,\"fingerprint\":\"\",\"lanes\":[{\"cursors\":[-1],\"window\":0,"
        "\"position\":0,\"window_step\":0}]}"}) {
    EXPECT_EQ(LoaderState::FromJson(text).status().code(), absl::StatusCode::kDataLoss) << text;
  }
}

}  // namespace
}  // namespace omni::dataloader
