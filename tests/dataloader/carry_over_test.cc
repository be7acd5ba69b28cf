// A data state goes on with other data: what is known again stays where it was, what is not begins
// its next epoch, and each of it is said.
#include "dataloader/carry_over.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "tests/dataloader/support.h"

namespace omni::dataloader {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::shared_ptr<FakeStore> TextStore(int64_t n, const std::string& name) {
  std::vector<FakeSample> samples;
  for (int64_t i = 0; i < n; ++i) {
    std::string question = "fox";
    for (int64_t w = 0; w < 1 + i % 3; ++w) question += " dog";
    samples.push_back(Question(question, absl::StrCat(i)));
  }
  return std::make_shared<FakeStore>(std::move(samples), name);
}

struct Source {
  std::string name;
  int64_t samples;
  std::string path = "";
  int64_t bytes = 0;
};

std::shared_ptr<const SamplePlanner> Planner(DataConfig config,
                                             const std::vector<Source>& sources) {
  std::vector<OpenedSource> opened;
  for (const Source& source : sources) {
    opened.push_back(
        {source.name, TextStore(source.samples, source.name), 0, source.path, source.bytes});
  }
  return std::make_shared<const SamplePlanner>(std::move(config), std::move(opened),
                                               TestTokenizer());
}

std::vector<std::string> Step(StepPlanner& planner) {
  auto plan = planner.Next();
  OMNI_CHECK_OK(plan.status());
  std::vector<std::string> ids;
  for (const auto& lane : plan->lanes) {
    for (const auto& sample : lane) {
      ids.push_back(absl::StrCat(sample->sample_id, "@", sample->key.draw));
    }
    ids.push_back("|");
  }
  return ids;
}

std::vector<std::vector<std::string>> Steps(StepPlanner& planner, int count) {
  std::vector<std::vector<std::string>> steps;
  for (int i = 0; i < count; ++i) steps.push_back(Step(planner));
  return steps;
}

std::unique_ptr<StepPlanner> Start(const std::shared_ptr<const SamplePlanner>& samples,
                                   LoaderState state = {}) {
  auto planner = StepPlanner::Create(samples, std::move(state));
  OMNI_CHECK_OK(planner.status());
  return *std::move(planner);
}

// The state after `steps` steps, as a checkpoint has it.
LoaderState After(const std::shared_ptr<const SamplePlanner>& samples, int steps) {
  const auto planner = Start(samples);
  Steps(*planner, steps);
  auto state = LoaderState::FromJson(planner->state().ToJson());
  OMNI_CHECK_OK(state.status());
  EXPECT_EQ(*state, planner->state());
  return *std::move(state);
}

const Source kA = {"a", 40, "/a", 400}, kB = {"b", 30, "/b", 300};

TEST(CarryOverTest, TheSameDataGoOnAndNothingIsSaid) {
  const auto samples = Planner(TestConfig({{"a", 2}, {"b", 1}}), {kA, kB});
  for (const int steps : {0, 1, 3, 7}) {
    const LoaderState state = After(samples, steps);
    const CarriedOver carried = CarryOver(state, *samples);
    EXPECT_EQ(carried.state, state);
    EXPECT_THAT(carried.notes, IsEmpty());
  }
}

TEST(CarryOverTest, AnotherOrderOfTheListChangesNoSample) {
  const auto samples = Planner(TestConfig({{"a", 2}, {"b", 1}}), {kA, kB});
  const auto turned = Planner(TestConfig({{"b", 1}, {"a", 2}}), {kB, kA});
  for (const int steps : {1, 2, 5}) {
    const CarriedOver carried = CarryOver(After(samples, steps), *turned);
    EXPECT_THAT(carried.notes, IsEmpty());
    const auto unbroken = Start(samples, After(samples, steps));
    const auto resumed = Start(turned, carried.state);
    EXPECT_EQ(Steps(*resumed, 12), Steps(*unbroken, 12)) << "after " << steps << " steps";
  }
}

// Wherever in its windows a checkpoint lies: they are used up as they are, the next ones have the
// new weights.
TEST(CarryOverTest, OtherWeightsHoldFromTheNextWindow) {
  const auto samples = Planner(TestConfig({{"a", 1}, {"b", 0.0}}), {kA, kB});
  const auto turned = Planner(TestConfig({{"a", 0.0}, {"b", 1}}), {kA, kB});
  for (const int steps : {1, 2, 3, 4, 5}) {
    const LoaderState state = After(samples, steps);
    const auto unbroken = Start(samples, state);
    const auto resumed = Start(turned, CarryOver(state, *turned).state);
    std::vector<bool> begun(state.lanes.size(), false);
    for (int i = 0; i < 10; ++i) {
      const auto expected = unbroken->Next(), found = resumed->Next();
      ASSERT_TRUE(expected.ok() && found.ok());
      for (size_t lane = 0; lane < found->lanes.size(); ++lane) {
        begun[lane] = begun[lane] || resumed->state().lanes[lane].window > state.lanes[lane].window;
        for (size_t s = 0; s < found->lanes[lane].size(); ++s) {
          EXPECT_EQ(found->lanes[lane][s]->key.source, begun[lane] ? 1 : 0);
          if (!begun[lane]) {
            EXPECT_EQ(found->lanes[lane][s]->sample_id, expected->lanes[lane][s]->sample_id);
          }
        }
      }
    }
    EXPECT_EQ(std::count(begun.begin(), begun.end(), true), std::ssize(begun));
  }
}

TEST(CarryOverTest, AnotherLengthOrWindowHoldsFromTheNextWindow) {
  DataConfig config = TestConfig({{"a", 1}});
  const auto samples = Planner(config, {kA});
  const LoaderState state = After(samples, 1);
  config.sequence_length *= 2;
  config.window *= 2;
  const auto longer = Planner(config, {kA});
  const CarriedOver carried = CarryOver(state, *longer);
  EXPECT_THAT(carried.notes, IsEmpty());
  EXPECT_EQ(carried.state, state);
  const auto unbroken = Start(samples, state), resumed = Start(longer, state);
  EXPECT_EQ(Step(*resumed), Step(*unbroken));
}

TEST(CarryOverTest, ANewSourceLeavesTheOthersWhereTheyAre) {
  const auto samples = Planner(TestConfig({{"a", 1}}), {kA});
  const auto more = Planner(TestConfig({{"new", 1}, {"a", 1}}), {{"new", 10, "/new", 9}, kA});
  const LoaderState state = After(samples, 2);
  const CarriedOver carried = CarryOver(state, *more);
  EXPECT_THAT(carried.notes, ElementsAre("source \"new\" is new: it begins with its first epoch"));
  ASSERT_EQ(carried.state.sources.size(), 2u);
  EXPECT_EQ(carried.state.sources[0].name, "a");
  for (size_t i = 0; i < state.lanes.size(); ++i) {
    EXPECT_EQ(carried.state.lanes[i].cursors, (std::vector<int64_t>{state.lanes[i].cursors[0], 0}));
    EXPECT_EQ(carried.state.lanes[i].position, state.lanes[i].position);
  }
  Steps(*Start(more, carried.state), 10);
}

TEST(CarryOverTest, ASourceThatIsGoneTakesItsWindowsWithIt) {
  const auto samples = Planner(TestConfig({{"a", 1}, {"b", 1}}), {kA, kB});
  const auto fewer = Planner(TestConfig({{"a", 1}}), {kA});
  const LoaderState state = After(samples, 1);
  const CarriedOver carried = CarryOver(state, *fewer);
  ASSERT_EQ(carried.notes.size(), 2u);
  EXPECT_THAT(carried.notes[0], HasSubstr("source \"b\" is gone"));
  EXPECT_THAT(carried.notes[1], HasSubstr("windows under way of 4 lanes are left out"));
  for (size_t i = 0; i < state.lanes.size(); ++i) {
    const LaneState& lane = carried.state.lanes[i];
    EXPECT_EQ(lane.position, 0);
    EXPECT_EQ(lane.window, state.lanes[i].window + 1);
    EXPECT_EQ(lane.window_step, state.step);
    EXPECT_GT(lane.cursors[0], state.lanes[i].cursors[0]);  // behind the draws of the window
  }
  Steps(*Start(fewer, carried.state), 10);
}

TEST(CarryOverTest, AMovedSourceGoesOnAndAGrownOneBeginsItsNextEpoch) {
  const auto samples = Planner(TestConfig({{"a", 1}}), {kA});
  const LoaderState state = After(samples, 9);  // beyond an epoch, with 10 samples a lane
  ASSERT_GT(state.lanes[0].cursors[0], 10);
  const CarriedOver moved =
      CarryOver(state, *Planner(TestConfig({{"a", 1}}), {{"a", 40, "/n", 400}}));
  ASSERT_EQ(moved.notes.size(), 1u);
  EXPECT_THAT(moved.notes[0], HasSubstr("is at /n now"));
  EXPECT_EQ(moved.state.lanes, state.lanes);

  const auto grown_samples = Planner(TestConfig({{"a", 1}}), {{"a", 41, "/a", 410}});
  const CarriedOver grown = CarryOver(state, *grown_samples);
  ASSERT_EQ(grown.notes.size(), 2u);
  EXPECT_THAT(grown.notes[0], HasSubstr("begins epoch "));
  EXPECT_THAT(grown.notes[0], HasSubstr("it has 41 samples, it had 40"));
  EXPECT_THAT(grown.notes[0], ::testing::Not(HasSubstr("begins epoch 1,")));
  // Lanes 0 has 11 of the samples now, the others 10.
  const int64_t epochs = grown.state.lanes[1].cursors[0] / 10;
  EXPECT_GE(epochs, 2);
  EXPECT_EQ(grown.state.lanes[0].cursors[0], 11 * epochs);
  // A whole epoch from there has every sample once.
  const auto planner = Start(grown_samples, grown.state);
  std::map<std::string, int> times;
  for (int i = 0; i < 60; ++i) {
    const auto plan = planner->Next();
    ASSERT_TRUE(plan.ok());
    for (size_t lane = 0; lane < plan->lanes.size(); ++lane) {
      for (const auto& sample : plan->lanes[lane]) {
        const int64_t share = lane == 0 ? 11 : 10;
        if (sample->key.draw < share * (epochs + 1)) ++times[sample->sample_id];
      }
    }
  }
  EXPECT_EQ(times.size(), 41u);
  for (const auto& [id, count] : times) EXPECT_EQ(count, 1) << id;
}

TEST(CarryOverTest, OtherContentOfAsManySamplesElsewhereIsAnotherSource) {
  const auto samples = Planner(TestConfig({{"a", 1}}), {kA});
  const LoaderState state = After(samples, 3);
  const CarriedOver carried =
      CarryOver(state, *Planner(TestConfig({{"a", 1}}), {{"a", 40, "/n", 401}}));
  EXPECT_THAT(carried.notes[0], HasSubstr("its content is another"));
  // Edited where it is: the samples are those it had.
  const CarriedOver edited =
      CarryOver(state, *Planner(TestConfig({{"a", 1}}), {{"a", 40, "/a", 401}}));
  EXPECT_THAT(edited.notes[0], HasSubstr("have 401 bytes, they had 400"));
  EXPECT_EQ(edited.state.lanes[0].position, 0);
}

TEST(CarryOverTest, OtherLanesOrAnotherSeedBeginTheNextEpochOfAll) {
  DataConfig config = TestConfig({{"a", 2}, {"b", 1}});
  const auto samples = Planner(config, {kA, kB});
  const LoaderState state = After(samples, 9);
  for (const bool is_seed : {false, true}) {
    DataConfig other = config;
    if (is_seed) ++other.seed;
    if (!is_seed) other.lanes = 7;
    const auto dealt = Planner(other, {kA, kB});
    const CarriedOver carried = CarryOver(state, *dealt);
    EXPECT_THAT(carried.notes[0], HasSubstr(is_seed ? "data.seed is" : "there are 7 lanes"));
    EXPECT_THAT(carried.notes[1], HasSubstr("source \"a\" begins epoch"));
    EXPECT_THAT(carried.notes[2], HasSubstr("source \"b\" begins epoch"));
    EXPECT_EQ(carried.state.step, state.step);
    ASSERT_EQ(carried.state.lanes.size(), is_seed ? 4u : 7u);
    for (const LaneState& lane : carried.state.lanes) {
      EXPECT_GT(lane.cursors[0], 0);
      EXPECT_EQ(lane.position, 0);
    }
    Steps(*Start(dealt, carried.state), 10);
  }
}

TEST(CarryOverTest, AWindowThatWouldPackOtherwiseIsLeftOut) {
  DataConfig config = TestConfig({{"a", 1}});
  const LoaderState state = After(Planner(config, {kA}), 1);
  config.overlong = Overlong::kCut;
  const CarriedOver carried = CarryOver(state, *Planner(config, {kA}));
  ASSERT_EQ(carried.notes.size(), 1u);
  EXPECT_THAT(carried.notes[0], HasSubstr("windows under way of 4 lanes are left out"));
  EXPECT_EQ(carried.state.lanes[0].window, state.lanes[0].window + 1);
}

// What checkpoints had before windows kept their weights.
TEST(CarryOverTest, AStateOfVersion1GoesOn) {
  const auto samples = Planner(TestConfig({{"a", 2}, {"b", 1}}), {kA, kB});
  LoaderState state = After(samples, 3);
  std::string lanes;
  for (const LaneState& lane : state.lanes) {
    absl::StrAppend(&lanes, lanes.empty() ? "" : ",", "{\"cursors\":[", lane.cursors[0], ",",
                    lane.cursors[1], "],\"window\":", lane.window, ",\"position\":", lane.position,
                    ",\"window_step\":", lane.window_step, "}");
  }
  const DataConfig& config = samples->config();
  const auto old = LoaderState::FromJson(absl::StrCat(
      "{\"version\":1,\"step\":3,\"fingerprint\":\"seed ", config.seed, ", ", config.lanes,
      " lanes, window ", config.window, ", sequence_length ", config.sequence_length,
      ", overlong drop, source a of 40 samples, source b of 30 samples\",\"lanes\":[", lanes,
      "]}"));
  ASSERT_TRUE(old.ok()) << old.status();
  const CarriedOver carried = CarryOver(*old, *samples);
  EXPECT_THAT(carried.notes, IsEmpty());
  EXPECT_EQ(carried.state, state);
}

}  // namespace
}  // namespace omni::dataloader
