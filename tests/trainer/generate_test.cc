// Generating with a key-value cache gives what running the whole sequence gives, token by token.
#include "trainer/generate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "runtime/ops/ops.h"
#include "tests/support/family_case.h"

namespace omni::trainer {
namespace {

using ::testing::TestWithParam;

struct Case {
  const char* family;
  const char* name;
};

class GenerateTest : public TestWithParam<Case> {};

int32_t ArgMax(const std::vector<double>& values) {
  return static_cast<int32_t>(std::max_element(values.begin(), values.end()) - values.begin());
}

// The prompt with `answer` behind it, in one pass.
parallel::TokenPack Extended(const parallel::TokenPack& prompt,
                             const std::vector<int32_t>& answer) {
  parallel::TokenPack pack = prompt;
  const int64_t before = prompt.num_tokens();
  const auto more = static_cast<int64_t>(answer.size());
  pack.token_ids.insert(pack.token_ids.end(), answer.begin(), answer.end());
  pack.targets.assign(before + more, -1);
  pack.cu_seqlens = {0, static_cast<int32_t>(before + more)};
  pack.positions.clear();
  for (int axis = 0; axis < 3; ++axis) {
    const auto from = prompt.positions.begin() + axis * before;
    pack.positions.insert(pack.positions.end(), from, from + before);
    for (int64_t i = 1; i <= more; ++i) {
      pack.positions.push_back(prompt.positions[before - 1] + static_cast<float>(i));
    }
  }
  return pack;
}

TEST_P(GenerateTest, GreedyIsTheArgMaxOfTheWholeSequence) {
  const auto pretrained = testing::OpenFamily(GetParam().family);
  const auto harness = testing::LoadFamily(*pretrained);
  const testing::FamilyCase golden = testing::LoadFamilyCase(
      GetParam().family, GetParam().name, harness->model(), pretrained->folder().config());
  const auto stream = harness->device().NewStream();
  const std::vector<int32_t> answer = Generate(harness->device(), *stream, harness->model(),
                                               golden.tokens, golden.media, {.max_tokens = 12});
  ASSERT_EQ(answer.size(), 12u);
  ExecContext ctx = harness->context();
  for (size_t i = 0; i < answer.size(); ++i) {
    const parallel::TokenPack pack =
        Extended(golden.tokens, {answer.begin(), answer.begin() + static_cast<int64_t>(i)});
    const TensorView logits = harness->model().Logits(ctx, pack, golden.media);
    EXPECT_EQ(ArgMax(testing::ReadDoubles(ctx, logits.Rows(pack.num_tokens() - 1, 1))), answer[i])
        << "token " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Families, GenerateTest,
                         ::testing::Values(Case{"qwen2", "text"}, Case{"llama_tied", "text"},
                                           Case{"qwen3_moe", "text"},
                                           Case{"qwen2_5_vl", "images_two"},
                                           Case{"qwen2_5_omni", "audio_video"}),
                         [](const auto& info) {
                           std::string name = info.param.family;
                           std::erase(name, '_');
                           return name;
                         });

TEST(GenerateStopTest, AStopTokenEndsTheAnswerAndIsNoPartOfIt) {
  const auto pretrained = testing::OpenFamily("qwen2");
  const auto harness = testing::LoadFamily(*pretrained);
  const testing::FamilyCase golden =
      testing::LoadFamilyCase("qwen2", "text", harness->model(), pretrained->folder().config());
  const auto stream = harness->device().NewStream();
  const auto generate = [&](std::vector<int32_t> stop) {
    return Generate(harness->device(), *stream, harness->model(), golden.tokens, {},
                    {.max_tokens = 8, .stop_tokens = std::move(stop)});
  };
  const std::vector<int32_t> whole = generate({});
  const auto first = std::find(whole.begin(), whole.end(), whole[3]);
  EXPECT_EQ(generate({whole[3]}), std::vector<int32_t>(whole.begin(), first));
}

// ln of 8, 4, 2, 1: probabilities 8/15, 4/15, 2/15, 1/15.
const std::vector<float> kLogits = {0.0f, 2.0794415f, 0.6931472f, 1.3862944f};

std::map<int32_t, int> Draws(const SamplingOptions& options, int count) {
  std::map<int32_t, int> draws;
  for (int i = 0; i < count; ++i) ++draws[SampleToken(kLogits, options, i)];
  return draws;
}

TEST(SampleTokenTest, GreedyTakesTheMostLikelyAndTheLowestOfEquals) {
  EXPECT_EQ(SampleToken(kLogits, {}, 0), 1);
  EXPECT_EQ(SampleToken(std::vector<float>{1, 3, 3, 2}, {}, 5), 1);
}

TEST(SampleTokenTest, DrawsFollowTheDistribution) {
  constexpr int kDraws = 15000;
  const auto draws = Draws({.temperature = 1.0, .seed = 7}, kDraws);
  for (const auto& [token, share] : std::map<int32_t, double>{{1, 8}, {3, 4}, {2, 2}, {0, 1}}) {
    // Five standard deviations of a binomial at most sqrt(15000 / 4) = 61.
    EXPECT_NEAR(draws.at(token), kDraws * share / 15, 306) << token;
  }
}

TEST(SampleTokenTest, TemperatureSharpens) {
  constexpr int kDraws = 8500;  // squares: 64, 16, 4, 1 of 85
  EXPECT_NEAR(Draws({.temperature = 0.5, .seed = 1}, kDraws).at(1), kDraws * 64 / 85, 231);
}

TEST(SampleTokenTest, TopKAndTopPCutTheTail) {
  EXPECT_EQ(Draws({.temperature = 1, .top_k = 2}, 2000).size(), 2u);
  EXPECT_EQ(Draws({.temperature = 1, .top_k = 1}, 200).size(), 1u);
  // 8/15 < 0.6 <= 12/15: the second is still needed, the third is not.
  const auto draws = Draws({.temperature = 1, .top_p = 0.6}, 2000);
  EXPECT_EQ(draws.size(), 2u);
  EXPECT_EQ(draws.count(3), 1u);
  EXPECT_EQ(Draws({.temperature = 1, .top_p = 0.0}, 200).size(), 1u);
}

TEST(SampleTokenTest, TheSeedDecides) {
  const auto sequence = [](uint64_t seed) {
    std::vector<int32_t> tokens;
    for (int i = 0; i < 50; ++i) {
      tokens.push_back(SampleToken(kLogits, {.temperature = 1, .seed = seed}, i));
    }
    return tokens;
  };
  EXPECT_EQ(sequence(3), sequence(3));
  EXPECT_NE(sequence(3), sequence(4));
}

}  // namespace
}  // namespace omni::trainer
