// "After the first step training asks the system for no tensor memory" (ARCHITECTURE.md, "Memory"):
// counted, on several ranks that share out the decoder's weights, with pictures, clips and sounds.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "runtime/base/status.h"
#include "tests/memory/system_memory.h"
#include "tests/support/run_ranks.h"
#include "tests/support/tiny_job.h"
#include "trainer/trainer.h"

namespace omni::trainer {
namespace {

using test::SystemUse;
using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int32_t kRanks = 2;
constexpr int kWarmSteps = 24, kSteps = 24;
// Shapes of steps differ: now and then one has more pictures than any before it, and the buffers of
// packs (PayloadBuffers), which hold a largest step in flight, grow to that.
constexpr int64_t kLargerSteps = 2;
constexpr int64_t kSlackBytes = int64_t{12} << 20;

// Weights of a chunk are 1.5 MiB, pictures of a step a megabyte and more.
std::string Yaml(const std::string& weights, const std::string& schedule) {
  test::TinyRecipe tiny{.steps = kWarmSteps + kSteps,
                        .lanes = kRanks,
                        .dtype = "fp32",
                        .sources = "[image, mixed, video, audio]"};
  return absl::StrReplaceAll(
      test::TinyRecipeYaml(tiny),
      {{"{hidden: 32, layers: 2, heads: 2, kv_heads: 1, head_dim: 16, ffn: 48, vocab: 512",
        "{hidden: 128, layers: 4, heads: 4, kv_heads: 2, head_dim: 32, ffn: 512, vocab: 512"},
       {"sections: [2, 3, 3]", "sections: [8, 4, 4]"},
       {"min_pixels: 784, max_pixels: 100352", "min_pixels: 200704, max_pixels: 401408"},
       {"sequence_length: 160", "sequence_length: 1200"},
       {"parallel: {workers: 1}", absl::StrCat("parallel: {workers: ", kRanks, ", ", schedule,
                                               ", weights: ", weights, "}")}});
}

using Mutation = std::function<void(const parallel::Action&)>;

// What steps of warm ranks asked for.
std::vector<std::string> Train(const std::string& weights, const std::string& schedule,
                               const Mutation& mutation = nullptr) {
  const auto recipe = ParseRecipe(Yaml(weights, schedule), "memory.yaml");
  EXPECT_TRUE(recipe.ok()) << recipe.status();
  if (!recipe.ok()) return {"no recipe"};
  KernelRegistry kernels;
  RegisterCpuKernels(kernels);
  SystemUse before, after;
  const auto look = [](Communicator& comm, int32_t rank, SystemUse* use) -> absl::Status {
    // Nobody is in a step while rank 0 looks.
    OMNI_RETURN_IF_ERROR(comm.Barrier()->WaitHost(absl::Seconds(60)));
    if (rank == 0) *use = test::ReadSystemUse();
    return comm.Barrier()->WaitHost(absl::Seconds(60));
  };
  const absl::Status status =
      test::RunRanks(kRanks, "shm", [&](Communicator& comm, int32_t rank) -> absl::Status {
        bool is_warm = false;
        OMNI_ASSIGN_OR_RETURN(const auto trainer,
                              Trainer::Create({.recipe = *recipe,
                                               .comm = &comm,
                                               .kernels = &kernels,
                                               .on_action = [&](const parallel::Action& action) {
                                                 if (is_warm && rank == 0 && mutation)
                                                   mutation(action);
                                               }}));
        for (int step = 0; step < kWarmSteps; ++step) {
          OMNI_RETURN_IF_ERROR(trainer->RunStep().status());
        }
        OMNI_RETURN_IF_ERROR(look(comm, rank, &before));
        is_warm = true;
        test::ShowLargeCalls(std::getenv("OMNI_SHOW_CALLS") != nullptr);
        for (int step = 0; step < kSteps; ++step) {
          OMNI_RETURN_IF_ERROR(trainer->RunStep().status());
        }
        test::ShowLargeCalls(false);
        return look(comm, rank, &after);
      });
  EXPECT_TRUE(status.ok()) << status;
  std::printf("heap %+.1f KiB, live %+.1f KiB\n",
              static_cast<double>(after.heap_bytes - before.heap_bytes) / 1024,
              static_cast<double>(after.live_bytes - before.live_bytes) / 1024);
  return test::WhatWasAsked(before, after, kSlackBytes, kLargerSteps);
}

TEST(TrainingMemoryTest, WarmRanksAskForNothing) {
  EXPECT_THAT(Train("replicated", "schedule: 1f1b"), IsEmpty());
}

TEST(TrainingMemoryTest, NorDoRanksThatShareWeightsOut) {
  EXPECT_THAT(Train("zero3", "schedule: interleaved, chunks_per_rank: 2"), IsEmpty());
}

// The same look finds what should not be.
class MutationTest : public ::testing::Test {
 protected:
  static std::vector<std::string> TrainWith(const std::function<void()>& at_each_step) {
    return Train("zero3", "schedule: 1f1b", [&](const parallel::Action& action) {
      if (action.kind == parallel::ActionKind::kUpdate) at_each_step();
    });
  }
};

TEST_F(MutationTest, ABufferThatGrowsIsFound) {
  std::vector<std::unique_ptr<std::vector<char>>> kept;
  EXPECT_THAT(TrainWith([&] { kept.push_back(std::make_unique<std::vector<char>>(1 << 20, 'x')); }),
              Contains(HasSubstr("bytes not freed")));
}

TEST_F(MutationTest, ATensorThatComesAndGoesIsFound) {
  char last = 0;
  EXPECT_THAT(TrainWith([&] { last = std::vector<char>(300 << 10, 'x').back(); }),
              Contains(HasSubstr("allocations of 256 KiB")));
  EXPECT_EQ(last, 'x');
}

TEST_F(MutationTest, PagesThatComeAndGoAreFound) {
  EXPECT_THAT(TrainWith([] {
                void* pages = mmap(nullptr, 1 << 20, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
                ASSERT_NE(pages, MAP_FAILED);
                munmap(pages, 1 << 20);
              }),
              AllOf(Contains(HasSubstr("mappings")), Contains(HasSubstr("given back"))));
}

}  // namespace
}  // namespace omni::trainer
