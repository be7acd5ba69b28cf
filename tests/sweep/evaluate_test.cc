// Evaluation scores the same whatever the model lies over.
#include <gtest/gtest.h>

#include <mutex>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "tests/support/run_ranks.h"
#include "tests/support/tiny_job.h"
#include "trainer/trainer.h"

namespace omni::trainer {
namespace {

const KernelRegistry& Kernels() {
  static const KernelRegistry registry = [] {
    KernelRegistry r;
    RegisterCpuKernels(r);
    return r;
  }();
  return registry;
}

std::map<std::string, double> Scores(const std::string& parallel, int32_t workers) {
  test::TinyRecipe tiny{.steps = 4, .lanes = 4};
  tiny.moe = "{experts: 4, top_k: 2, ffn: 24}";
  std::string yaml = test::TinyRecipeYaml(tiny);
  const std::string eval = absl::StrCat(
      "data:\n  eval:\n    - {name: image, path: ", test::TinyData(),
      "/heldout/image}\n    - {name: mixed, path: ", test::TinyData(), "/heldout/mixed}\n");
  yaml.replace(yaml.find("data:\n"), 6, eval);
  yaml.replace(yaml.find("parallel: {workers: 1}"), 22, absl::StrCat("parallel: {", parallel, "}"));
  const auto recipe = ParseRecipe(yaml, "tiny.yaml");
  EXPECT_TRUE(recipe.ok()) << recipe.status();
  std::map<std::string, double> scores;
  std::mutex mutex;
  const auto run = [&](Communicator* comm) -> absl::Status {
    OMNI_ASSIGN_OR_RETURN(
        const auto trainer,
        Trainer::Create({.recipe = *recipe, .comm = comm, .kernels = &Kernels()}));
    OMNI_RETURN_IF_ERROR(trainer->RunStep().status());
    OMNI_ASSIGN_OR_RETURN(const auto found, trainer->RunEvaluation(dataloader::Blind::kNone));
    const std::map<std::string, double> values = ScoreValues(found);
    const std::lock_guard<std::mutex> lock(mutex);
    if (scores.empty()) scores = values;
    EXPECT_EQ(scores, values);  // on all ranks
    return absl::OkStatus();
  };
  const absl::Status status =
      workers == 1
          ? run(nullptr)
          : test::RunRanks(workers, "shm", [&](Communicator& comm, int32_t) { return run(&comm); });
  EXPECT_TRUE(status.ok()) << status;
  return scores;
}

TEST(EvaluateTest, AnyLayoutScoresAsOneRank) {
  const std::map<std::string, double> one = Scores("workers: 1", 1);
  ASSERT_GE(one.size(), 4u);
  const std::pair<const char*, int32_t> layouts[] = {
      {"workers: 3", 3},
      {"workers: 2, tensor: 2", 2},
      {"workers: 2, pipeline: 2", 2},
      {"workers: 4, pipeline: 2, context: {degree: 2, kind: ring}", 4},
      {"workers: 3, expert: 1, context: {degree: 3, kind: ulysses}", 3},
      {"workers: 4, expert: 4", 4},
      {"workers: 3, weights: zero3", 3}};
  for (const auto& [parallel, workers] : layouts) {
    const std::map<std::string, double> scores = Scores(parallel, workers);
    ASSERT_EQ(scores.size(), one.size()) << parallel;
    for (const auto& [name, value] : one) EXPECT_NEAR(scores.at(name), value, 1e-9) << parallel;
  }
}

}  // namespace
}  // namespace omni::trainer
