// A checkpoint saved under one plan is the same state under any other: weights and optimizer state,
// bit for bit.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "runtime/base/status.h"
#include "tests/support/run_ranks.h"
#include "tests/support/tiny_job.h"
#include "tests/sweep/assembly.h"
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

struct Case {
  const char* name;
  const char* decoder;   // further keys of the decoder
  const char* model;     // further keys of the model
  const char* training;  // further keys of training
};

std::string Yaml(const Case& one, const std::string& parallel) {
  test::TinyRecipe tiny{.steps = 2, .lanes = 4, .dtype = "fp32"};
  tiny.extra_training = one.training;
  return absl::StrReplaceAll(
      test::TinyRecipeYaml(tiny),
      {{"{hidden: 32, layers: 2, heads: 2, kv_heads: 1, head_dim: 16,",
        absl::StrCat("{hidden: 32, layers: 4, heads: 4, kv_heads: 2, head_dim: 8, ", one.decoder)},
       {"sections: [2, 3, 3]", "sections: [1, 1, 2]"},
       {"data:\n", absl::StrCat(one.model, "data:\n")},
       {"parallel: {workers: 1}", absl::StrCat("parallel: {", parallel, "}")}});
}

// Trains and saves (or finds what was saved) under a plan; all state, put together.
absl::StatusOr<test::Tensors> StateOf(const std::string& yaml, const std::string& run_dir,
                                      bool trains) {
  OMNI_ASSIGN_OR_RETURN(const Recipe recipe, ParseRecipe(yaml, "plan.yaml"));
  test::Assembly state;
  const auto rank = [&](Communicator* comm) -> absl::Status {
    OMNI_ASSIGN_OR_RETURN(
        const auto trainer,
        Trainer::Create(
            {.recipe = recipe, .run_dir = run_dir, .comm = comm, .kernels = &Kernels()}));
    if (trains) {
      while (!trainer->finished()) OMNI_RETURN_IF_ERROR(trainer->RunStep().status());
      OMNI_RETURN_IF_ERROR(trainer->BeginSave());
      OMNI_RETURN_IF_ERROR(trainer->FinishSave());
    } else {
      EXPECT_EQ(trainer->step(), 2);
    }
    return state.Add(trainer->StateRanges());
  };
  if (recipe.parallel.workers == 1) {
    OMNI_RETURN_IF_ERROR(rank(nullptr));
  } else {
    OMNI_RETURN_IF_ERROR(test::RunRanks(recipe.parallel.workers, "shm",
                                        [&](Communicator& comm, int32_t) { return rank(&comm); }));
  }
  return state.Take();
}

class CheckpointPlansTest : public ::testing::TestWithParam<Case> {};

TEST_P(CheckpointPlansTest, StateIsTheSameUnderAnyPlan) {
  const Case& one = GetParam();
  const std::string run_dir =
      absl::StrCat(::testing::TempDir(), "checkpoint-plans-", getpid(), "-", one.name);
  const auto saved = StateOf(
      Yaml(one, "workers: 4, pipeline: 2, tensor: 2, encoders: {vision: {sequence: 2}}"), run_dir,
      /*trains=*/true);
  ASSERT_TRUE(saved.ok()) << saved.status();
  ASSERT_GT(saved->size(), 40u);
  std::vector<std::string> plans = {
      "workers: 1",
      "workers: 3",
      "workers: 4, tensor: 4",
      "workers: 4, pipeline: 4",
      "workers: 2, pipeline: 2, chunks_per_rank: 2, schedule: zb_v",
      "workers: 2, pipeline: 2, layers: [1, 3], schedule: zb_h1",
      "workers: 4, context: {degree: 4, kind: ring}",
      "workers: 4, context: {degree: 2, kind: ulysses}, tensor: 2",
      "workers: 2, pipeline: 2, joint: {kind: first_stage}",
      "workers: 4, tensor: 2, weights: zero2",
      "workers: 3, weights: zero3",
      "workers: 6, pipeline: 3, tensor: 2, encoders: {vision: {sequence: 2}}"};
  if (absl::StartsWith(one.name, "Moe")) {
    plans.push_back("workers: 4, expert: 4");
    plans.push_back("workers: 4, pipeline: 2, tensor: 2, expert: 2");
  }
  for (const std::string& plan : plans) {
    const auto loaded = StateOf(Yaml(one, plan), run_dir, /*trains=*/false);
    ASSERT_TRUE(loaded.ok()) << plan << ": " << loaded.status();
    EXPECT_EQ(*loaded, *saved) << plan;
  }
  std::filesystem::remove_all(run_dir);
}

INSTANTIATE_TEST_SUITE_P(
    Models, CheckpointPlansTest,
    ::testing::Values(
        Case{"Dense", "qk_norm: true, ", "", ""}, Case{"Tied", "tied_embeddings: true, ", "", ""},
        Case{"Moe",
             "moe: {experts: 4, top_k: 2, ffn: 24, shared_ffn: 16, bias_update_rate: 1e-3}, ", "",
             ""},
        Case{"Lora", "", "  lora: {rank: 2, alpha: 4, targets: [attention.q, attention.v, mlp]}\n",
             ""},
        Case{"MoeLora", "moe: {experts: 4, top_k: 2, ffn: 24}, ",
             "  lora: {rank: 2, alpha: 4, targets: [attention.q, moe]}\n", ""},
        Case{"Frozen", "", "",
             "  modules: {vision: {frozen: true}, decoder.embedding: {frozen: true}}\n"}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace omni::trainer
