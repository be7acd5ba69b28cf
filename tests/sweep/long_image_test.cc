// An image too long for the memory of any one rank is encoded by the ranks of a sequence group
// together.
#include <gtest/gtest.h>

#include <atomic>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "runtime/base/status.h"
#include "tests/support/run_ranks.h"
#include "tests/support/tiny_job.h"
#include "trainer/trainer.h"

namespace omni::trainer {
namespace {

struct Outcome {
  double loss = 0, memory_bytes = 0;  // the most of any rank
};

// One step of one lane whose pictures have some 5,000 patches each.
Outcome RunStep(const std::string& vision, double reserve_gib) {
  test::TinyRecipe tiny{.steps = 1, .lanes = 1, .dtype = "fp64", .sources = "[image]"};
  const std::string yaml = absl::StrReplaceAll(
      test::TinyRecipeYaml(tiny),
      {{"image: {min_pixels: 784, max_pixels: 100352}",
        "image: {min_pixels: 1000000, max_pixels: 1100000}"},
       {"sequence_length: 160", "sequence_length: 1600"},
       {"heads: 2, ffn: 48, patch", "heads: 4, ffn: 48, patch"},
       {"parallel: {workers: 1}",
        absl::StrCat("parallel: {workers: 4, context: {degree: 4, kind: ring}, encoders: {vision: ",
                     vision, "}}")},
       {"deadline_s: 60", "deadline_s: 600"},  // a whole picture takes one rank long under TSan
       {"reserve_gib: 2", absl::StrCat("reserve_gib: ", reserve_gib)}});
  const auto recipe = ParseRecipe(yaml, "long.yaml");
  EXPECT_TRUE(recipe.ok()) << recipe.status();
  KernelRegistry kernels;
  RegisterCpuKernels(kernels);
  Outcome outcome;
  const absl::Status status =
      test::RunRanks(4, "shm", [&](Communicator& comm, int32_t rank) -> absl::Status {
        OMNI_ASSIGN_OR_RETURN(
            const auto trainer,
            Trainer::Create({.recipe = *recipe, .comm = &comm, .kernels = &kernels}));
        OMNI_ASSIGN_OR_RETURN(const auto values, trainer->RunStep());
        if (rank == 0) outcome = {values.at("loss"), values.at("memory_high_water_bytes")};
        return absl::OkStatus();
      });
  EXPECT_TRUE(status.ok()) << status;
  return outcome;
}

TEST(LongImageTest, NeedsAPartOfTheMemoryOnEachRank) {
  const Outcome whole = RunStep("{sequence: 4, threshold: none}", 2);
  // Less memory than the rank with a whole picture needed, for every rank.
  const double half_gib = whole.memory_bytes / 2 / (1 << 30);
  const Outcome split = RunStep("{sequence: 4, threshold: 0}", half_gib);
  EXPECT_LT(split.memory_bytes, whole.memory_bytes / 2);
  EXPECT_NEAR(split.loss, whole.loss, 1e-9);
  std::printf("whole %.1f MiB, split over four %.1f MiB\n", whole.memory_bytes / (1 << 20),
              split.memory_bytes / (1 << 20));
}

}  // namespace
}  // namespace omni::trainer
