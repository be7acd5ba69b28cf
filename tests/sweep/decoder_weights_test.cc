// What ranks keep of the decoder's weights and gradients between uses, and how much they ever need,
// when the ranks of a stage share them out (ZeRO-2, ZeRO-3). That the numbers stay those of one
// rank is the sweep's to show.
#include <gtest/gtest.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "runtime/base/status.h"
#include "tests/support/run_ranks.h"
#include "tests/support/tiny_job.h"
#include "trainer/trainer.h"

namespace omni::trainer {
namespace {

constexpr int32_t kRanks = 4;

struct Outcome {
  double loss = 0;
  int64_t kept_bytes = 0;   // between steps
  int64_t most_bytes = 0;   // at any time
  int64_t whole_bytes = 0;  // the decoder's values, which are as large as its gradients
};

// Two steps on text; of rank 0.
Outcome Train(const std::string& weights) {
  test::TinyRecipe tiny{.steps = 2, .lanes = kRanks, .dtype = "fp64", .sources = "[text]"};
  const std::string yaml = absl::StrReplaceAll(
      test::TinyRecipeYaml(tiny),
      {{"{hidden: 32, layers: 2, heads: 2, kv_heads: 1, head_dim: 16, ffn: 48, vocab: 512",
        "{hidden: 128, layers: 8, heads: 4, kv_heads: 2, head_dim: 32, ffn: 512, vocab: 512"},
       {"sections: [2, 3, 3]", "sections: [8, 4, 4]"},
       {"sequence_length: 160", "sequence_length: 16"},
       {"parallel: {workers: 1}",
        absl::StrCat("parallel: {workers: ", kRanks, ", schedule: interleaved, chunks_per_rank: 8,",
                     " weights: ", weights, "}")}});
  const auto recipe = ParseRecipe(yaml, "weights.yaml");
  EXPECT_TRUE(recipe.ok()) << recipe.status();
  KernelRegistry kernels;
  RegisterCpuKernels(kernels);
  Outcome outcome;
  const absl::Status status =
      test::RunRanks(kRanks, "shm", [&](Communicator& comm, int32_t rank) -> absl::Status {
        OMNI_ASSIGN_OR_RETURN(
            const auto trainer,
            Trainer::Create({.recipe = *recipe, .comm = &comm, .kernels = &kernels}));
        OMNI_RETURN_IF_ERROR(trainer->RunStep().status());
        OMNI_ASSIGN_OR_RETURN(const auto values, trainer->RunStep());
        if (rank != 0) return absl::OkStatus();
        const PagePool::Stats stats = trainer->device().pool().stats();
        outcome = {.loss = values.at("loss"),
                   .kept_bytes = stats.used_bytes,
                   .most_bytes = static_cast<int64_t>(values.at("memory_high_water_bytes"))};
        for (const parallel::Bucket& bucket : trainer->storage().buckets()) {
          if (bucket.module.rfind("decoder", 0) == 0)
            outcome.whole_bytes += 8 * bucket.num_elements;
        }
        return absl::OkStatus();
      });
  EXPECT_TRUE(status.ok()) << status;
  return outcome;
}

TEST(DecoderWeightsTest, RanksKeepAPartAndHaveTheWholeOfAChunkAtATime) {
  const Outcome replicated = Train("replicated"), zero2 = Train("zero2"), zero3 = Train("zero3");
  EXPECT_NEAR(zero2.loss, replicated.loss, 1e-12);
  EXPECT_NEAR(zero3.loss, replicated.loss, 1e-12);
  const int64_t whole = replicated.whole_bytes;
  ASSERT_GT(whole, 15 << 20);
  // Three quarters less of gradients, then of values as well. Replicated gradients are reduced to
  // a quarter beside them, which goes too; pages and small buckets cost a little.
  const double slack = 0.1 * static_cast<double>(whole);
  EXPECT_NEAR(static_cast<double>(replicated.kept_bytes - zero2.kept_bytes), whole, slack);
  EXPECT_NEAR(static_cast<double>(zero2.kept_bytes - zero3.kept_bytes), 0.75 * whole, slack);
  // Never more than one of the eight chunks is whole.
  EXPECT_LT(zero2.most_bytes, replicated.most_bytes - whole / 2);
  EXPECT_LT(zero3.most_bytes, zero2.most_bytes - whole / 3);
  for (const Outcome* outcome : {&replicated, &zero2, &zero3}) {
    std::printf("kept %.1f MiB, at most %.1f MiB\n",
                static_cast<double>(outcome->kept_bytes) / (1 << 20),
                static_cast<double>(outcome->most_bytes) / (1 << 20));
  }
}

}  // namespace
}  // namespace omni::trainer
