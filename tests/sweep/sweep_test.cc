// What the equivalence sweep itself must be: its cover, its repeatability, that it sees what goes
// wrong; and plans that once failed.
#include "tests/sweep/sweep.h"

#include <gtest/gtest.h>

#include <set>

#include "tests/support/tiny_job.h"
#include "tests/sweep/mutations.h"
#include "tests/sweep/sweep_plans.h"
#include "trainer/recipe.h"

namespace omni::test {
namespace {

Sweep& TinySweep() {
  static Sweep sweep(TinyData(), TinyData() + "-runs");
  return sweep;
}

std::string RecipeOf(const SweepCase& one) {
  return SweepRecipe(one.job, {.data_dir = "data",
                               .parallel = one.plan.ToYaml(),
                               .micro_batch_sequences = one.plan.micro_batch_sequences});
}

TEST(SweepCasesTest, FollowFromTheSeed) {
  const SweepCases cases(3), again(3), others(4);
  int64_t differ = 0;
  for (const int64_t i : {0, 1, 59, 300, 1001}) {
    EXPECT_EQ(RecipeOf(cases.At(i)), RecipeOf(again.At(i)));
    differ += RecipeOf(cases.At(i)) != RecipeOf(others.At(i));
  }
  EXPECT_GE(differ, 4);
}

TEST(SweepCasesTest, EveryLevelOccursAndEveryPairIsCovered) {
  const SweepCases cases(1);
  EXPECT_EQ(cases.CountPairs(cases.num_cover()), cases.num_pairs());
  EXPECT_GT(cases.num_pairs(), 9000);
  EXPECT_LE(cases.num_cover(), 300);  // so that an acceptance of 300 plans has them all
  std::set<std::string> levels;
  for (int64_t i = 0; i < 60; ++i) {
    for (const std::string& level : LevelsOf(cases.At(i))) levels.insert(level);
  }
  for (const Feature& feature : JobFeatures()) {
    for (const char* level : feature.levels) {
      EXPECT_TRUE(levels.count(absl::StrCat("job.", feature.name, "=", level)) > 0)
          << feature.name << " " << level;
    }
  }
  for (const char* level : {"workers=1",
                            "workers=3",
                            "workers=5",
                            "workers=6",
                            "workers=7",
                            "workers=8",
                            "pipeline=3",
                            "pipeline=4",
                            "schedule=gpipe1",
                            "schedule=1f1b1",
                            "schedule=zb_h11",
                            "schedule=zb_v2",
                            "schedule=interleaved2",
                            "schedule=interleaved3",
                            "layers=uneven",
                            "tensor=3",
                            "tensor=4",
                            "context_kind=ring",
                            "context_kind=ulysses",
                            "ring_threshold=0",
                            "ring_threshold=100000",
                            "expert=2",
                            "expert=3",
                            "recompute=full",
                            "recompute=selective",
                            "weights=zero2",
                            "weights=zero3",
                            "joint=upfront",
                            "joint=recompute",
                            "joint=first_stage",
                            "groups_ahead=3",
                            "q=2",
                            "rounds=whole",
                            "rounds=half",
                            "rounds=tenth",
                            "vision.threshold none",
                            "vision.threshold 0",
                            "vision.weights zero2",
                            "vision.weights zero3",
                            "microbatches=remain",
                            "microbatches=few",
                            "replicas=without",
                            "comm=tcp"}) {
    const std::string wanted = absl::StrCat("plan.", level);
    EXPECT_TRUE(levels.count(wanted) > 0) << wanted;
  }
}

TEST(SweepCasesTest, NoRecipeIsRefused) {
  const SweepCases cases(11);
  for (int64_t i = 0; i < 600; ++i) {
    const std::string recipe = RecipeOf(cases.At(i));
    const auto read = trainer::ParseRecipe(recipe, "recipe.yaml");
    ASSERT_TRUE(read.ok()) << read.status() << "\n" << recipe;
  }
}

TEST(SweepCasesTest, JobsByHandAreChecked) {
  EXPECT_TRUE(ParseJob("moe=shared vision=qwen3").ok());
  EXPECT_FALSE(ParseJob("moe=shred").ok());
  EXPECT_FALSE(ParseJob("experts=2").ok());
  EXPECT_FALSE(ParseJob("frozen=vision vision=none").ok());
}

class MutationTest : public ::testing::TestWithParam<const char*> {};

TEST_P(MutationTest, IsSeen) {
  const Mutation& mutation = *FindMutation(GetParam());
  const auto job = ParseJob(mutation.job);
  ASSERT_TRUE(job.ok()) << job.status();
  const auto sound = TinySweep().Run(*job, mutation.parallel, 1, {});
  ASSERT_TRUE(sound.ok()) << sound.status();
  EXPECT_LE(sound->value, ToleranceOf("fp64").error) << sound->where;
  std::atomic<int64_t> hits{0};
  const auto mutated = TinySweep().Run(*job, mutation.parallel, 1, {}, Mutate(mutation, &hits));
  EXPECT_GT(hits, 0);
  if (!mutated.ok()) return;  // as good
  EXPECT_GT(mutated->value, 1e3 * ToleranceOf("fp64").error) << mutated->where;
}

std::vector<const char*> MutationNames() {
  std::vector<const char*> names;
  for (const Mutation& mutation : Mutations()) names.push_back(mutation.name);
  return names;
}
INSTANTIATE_TEST_SUITE_P(All, MutationTest, ::testing::ValuesIn(MutationNames()),
                         [](const auto& info) { return std::string(info.param); });

// Plans that the sweep once caught.
struct Caught {
  const char* name;
  const char* job;
  const char* parallel;
};
class CaughtTest : public ::testing::TestWithParam<Caught> {};

TEST_P(CaughtTest, GivesTheSingleRanksResult) {
  const auto job = ParseJob(GetParam().job);
  ASSERT_TRUE(job.ok()) << job.status();
  const auto worst = TinySweep().Run(*job, GetParam().parallel, 1, {});
  ASSERT_TRUE(worst.ok()) << worst.status();
  EXPECT_LE(worst->value, ToleranceOf("fp64").error) << worst->where;
}

INSTANTIATE_TEST_SUITE_P(
    Plans, CaughtTest,
    ::testing::Values(
        // The loader names encoders for media that the model has none for.
        Caught{"NoAudio", "audio=none", "workers: 2"},
        Caught{"TextAlone", "vision=none audio=none", "workers: 2, pipeline: 2"},
        // A rank without tokens had no gradient from the next stage, and did not take part in the
        // backward of the experts it shares.
        Caught{"ExpertsOfAnEmptyReplica", "moe=top3 lora=decoder vision=none data=text lanes=3",
               "workers: 8, pipeline: 4, expert: 2"},
        Caught{"ExpertsOfReplicasThatAreAlwaysEmpty", "heads=6/2 moe=top1 lora=decoder lanes=1",
               "workers: 8, pipeline: 2, chunks_per_rank: 2, schedule: interleaved, tensor: 2, "
               "expert: 4, recompute: full"}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace omni::test
