#include "dataloader/eval_loader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "tests/dataloader/support.h"

namespace omni::dataloader {
namespace {

using ::testing::HasSubstr;

// 20 pictures: those asked "colour" have even shades, those asked "size" odd ones.
std::shared_ptr<FakeStore> Pictures() {
  std::vector<FakeSample> samples;
  for (int i = 0; i < 20; ++i) {
    samples.push_back(
        Picture(28, 28 * (1 + i % 2), 10 + i, i % 2 == 0 ? "colour" : "size", absl::StrCat(i)));
  }
  return std::make_shared<FakeStore>(std::move(samples), "eval.tar");
}

std::vector<Microbatch> All(EvalLoader& loader) {
  std::vector<Microbatch> packs;
  while (true) {
    auto pack = loader.Next();
    OMNI_CHECK_OK(pack.status());
    if (!pack->has_value()) return packs;
    packs.push_back(**std::move(pack));
  }
}

std::unique_ptr<EvalLoader> Start(const std::shared_ptr<const SampleStore>& store,
                                  EvalLoader::Options options, int64_t max_samples = 0,
                                  int64_t sequence_length = 96) {
  DataConfig config = TestConfig({{"x", 1}});
  config.sequence_length = sequence_length;
  options.tokenizer = TestTokenizer();
  auto loader = EvalLoader::Create(config, OpenedSource{"held", store}, max_samples, options);
  OMNI_CHECK_OK(loader.status());
  return *std::move(loader);
}

// Sample index -> the grey of its picture.
std::map<int64_t, int> Shades(const std::vector<Microbatch>& packs) {
  std::map<int64_t, int> shades;
  for (const Microbatch& microbatch : packs) {
    const parallel::MediaPack& pack = microbatch.media.at("vision");
    for (size_t i = 0; i < microbatch.samples.size(); ++i) {
      shades[microbatch.samples[i].index] =
          pack.payload[pack.items[i].input_row * pack.row_elements];
    }
  }
  return shades;
}

TEST(EvalLoaderTest, GoesOnceThroughInOrderOverAnyNumberOfRanks) {
  const auto store = Pictures();
  for (const int32_t world : {1, 2, 3, 25}) {
    std::set<int64_t> seen;
    for (int32_t rank = 0; rank < world; ++rank) {
      const auto loader = Start(store, {.rank = rank, .world = world});
      int64_t last = -1;
      for (const Microbatch& microbatch : All(*loader)) {
        EXPECT_LE(microbatch.tokens.num_tokens(), 96);
        EXPECT_GT(microbatch.loss_tokens, 0);
        for (const SampleRef& sample : microbatch.samples) {
          EXPECT_EQ(sample.index % world, rank);
          EXPECT_GT(sample.index, last);
          last = sample.index;
          EXPECT_TRUE(seen.insert(sample.index).second);
          EXPECT_EQ(sample.group, sample.index % 2 == 0 ? "colour" : "size");
        }
      }
      EXPECT_EQ(loader->num_samples(), 20);
      EXPECT_TRUE(loader->faults().empty());
    }
    EXPECT_EQ(seen.size(), 20u);
  }
}

TEST(EvalLoaderTest, MaxSamplesAreTheFirst) {
  const auto shades = Shades(All(*Start(Pictures(), {}, 5)));
  EXPECT_EQ(shades.size(), 5u);
  EXPECT_EQ(shades.rbegin()->first, 4);
}

TEST(EvalLoaderTest, SwappedMediaAreAnothersOfTheSameQuestion) {
  const auto seen = Shades(All(*Start(Pictures(), {})));
  const auto swapped = Shades(All(*Start(Pictures(), {.blind = Blind::kSwapped})));
  ASSERT_EQ(swapped.size(), 20u);
  std::set<int> used;
  for (const auto& [index, shade] : swapped) {
    EXPECT_EQ(seen.at(index), 10 + index);
    EXPECT_NE(shade, 10 + index);
    EXPECT_EQ(shade % 2, index % 2) << "of another question";
    EXPECT_TRUE(used.insert(shade).second) << "one picture for two samples";
  }
  // The same on any number of ranks.
  std::map<int64_t, int> together;
  for (int32_t rank = 0; rank < 3; ++rank) {
    together.merge(
        Shades(All(*Start(Pictures(), {.rank = rank, .world = 3, .blind = Blind::kSwapped}))));
  }
  EXPECT_EQ(together, swapped);
}

TEST(EvalLoaderTest, ASampleWithoutAPartnerIsLeftOutAndNamed) {
  std::vector<FakeSample> samples = {Picture(28, 28, 1, "a"), Picture(28, 28, 2, "b"),
                                     Picture(28, 28, 3, "b"), Question("a", "x")};
  const auto loader =
      Start(std::make_shared<FakeStore>(std::move(samples)), {.blind = Blind::kSwapped});
  const auto packs = All(*loader);
  std::set<int64_t> seen;
  for (const SampleRef& sample : packs[0].samples) seen.insert(sample.index);
  EXPECT_EQ(seen, (std::set<int64_t>{1, 2, 3}));
  ASSERT_EQ(loader->faults().size(), 1u);
  EXPECT_EQ(loader->faults()[0].fault, SampleFault::kUnpaired);
  EXPECT_EQ(loader->faults()[0].sample_id, "fake.tar:0");
}

TEST(EvalLoaderTest, BlankedMediaAreZerosWithTheLossKept) {
  const auto packs = All(*Start(Pictures(), {.blind = Blind::kBlanked}));
  for (const auto& [index, shade] : Shades(packs)) EXPECT_EQ(shade, 0);
  for (const Microbatch& microbatch : packs) {
    for (const SampleRef& sample : microbatch.samples) {
      EXPECT_GT(sample.loss_tokens, 0);
      EXPECT_FALSE(sample.is_blanked);
    }
  }
}

TEST(EvalLoaderTest, BadSamplesAreNamedAndTheRestEvaluated) {
  std::vector<FakeSample> samples = {Question("a", "b"), Question("a", "b"),
                                     Question(std::string(300, 'z'), "b"), Picture(28, 28, 9)};
  samples[1].conversation_error = absl::DataLossError("torn");
  samples[3].media[0] = "not a picture";
  const auto loader = Start(std::make_shared<FakeStore>(std::move(samples)), {});
  const auto packs = All(*loader);
  ASSERT_EQ(packs.size(), 1u);
  EXPECT_EQ(packs[0].samples.size(), 2u);
  EXPECT_TRUE(packs[0].samples[1].is_blanked);
  ASSERT_EQ(loader->faults().size(), 3u);
  EXPECT_EQ(loader->faults()[0].fault, SampleFault::kBroken);
  EXPECT_EQ(loader->faults()[1].fault, SampleFault::kOverlong);
  EXPECT_EQ(loader->faults()[2].fault, SampleFault::kBlanked);
}

TEST(EvalLoaderTest, UnknownSourceNamesTheNearest) {
  DataConfig config = TestConfig({{"x", 1}});
  config.eval = {{.name = "image", .path = "x.tar"}};
  const auto loader = EvalLoader::Create(config, "imgae", {.tokenizer = TestTokenizer()});
  EXPECT_EQ(loader.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(loader.status().message()), HasSubstr("did you mean \"image\""));
}

TEST(EvalLoaderTest, AnEmptySourceEndsAtOnce) {
  EXPECT_TRUE(All(*Start(std::make_shared<FakeStore>(std::vector<FakeSample>{}), {})).empty());
}

}  // namespace
}  // namespace omni::dataloader
