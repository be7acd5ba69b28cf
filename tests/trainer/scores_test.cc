// Names between ranks and in metrics are data, never structure.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "absl/strings/str_cat.h"
#include "tests/support/run_ranks.h"
#include "trainer/evaluate.h"
#include "trainer/gather_strings.h"
#include "trainer/trainer.h"

namespace omni::trainer {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Key;
using ::testing::UnorderedElementsAre;

Score Of(int64_t samples) {
  return {.samples = samples, .exact = samples / 2, .tokens = samples, .loss_sum = 1.0 * samples};
}

TEST(GatherStringsTest, AnyBytesComeAsTheyWent) {
  const std::vector<std::string> strings = {"",   "a\nb", std::string("\0\n\0", 3),
                                            "\n", "",     std::string(70000, 'x')};
  EXPECT_EQ(UnpackStrings(PackStrings(strings)).value(), strings);
  EXPECT_THAT(UnpackStrings("").value(), ElementsAre());
  const std::string bytes = PackStrings(strings);
  for (const size_t cut : {1u, 7u, 9u, 20u}) {
    EXPECT_FALSE(UnpackStrings(bytes.substr(0, bytes.size() - 70000 + cut)).ok());
  }
}

TEST(GatherStringsTest, EveryRankGetsThoseOfAll) {
  const absl::Status status = test::RunRanks(3, "shm", [&](Communicator& comm, int32_t rank) {
    KernelRegistry kernels;
    RegisterCpuKernels(kernels);
    const auto device =
        Device::Create({.kind = DeviceKind::kCpu, .reserved_bytes = 1 << 24, .kernels = &kernels});
    OMNI_CHECK_OK(device.status());
    const auto stream = (*device)->NewStream();
    comm.SetInputStream(stream.get());
    TensorArena arena(**device);
    ExecContext ctx{.device = **device, .stream = *stream, .tape = nullptr, .arena = &arena};
    std::vector<std::string> mine;
    for (int32_t i = 0; i < rank; ++i) mine.push_back(absl::StrCat("rank\n", rank, ",", i));
    const auto all = GatherStrings(ctx, &comm, absl::Minutes(1), mine);
    EXPECT_TRUE(all.ok()) << all.status();
    if (all.ok()) {
      EXPECT_THAT(*all, ElementsAre(ElementsAre(), ElementsAre("rank\n1,0"),
                                    ElementsAre("rank\n2,0", "rank\n2,1")));
    }
    comm.SetInputStream(nullptr);
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
}

TEST(ScoresTest, GroupsThatAreNoNamesOrTooManyAreTogether) {
  std::map<std::string, Score> groups = {{"word", Of(5)}, {"a\nb", Of(2)}, {"number", Of(7)}};
  groups[std::string(65, 'x')] = Of(1);
  std::map<std::string, Score> bounded = BoundGroups(groups);
  EXPECT_THAT(bounded, UnorderedElementsAre(Key("word"), Key("number"), Key("other")));
  EXPECT_EQ(bounded["other"].samples, 3);
  groups.clear();
  for (int i = 0; i < 94; ++i) groups[absl::StrCat("question ", i)] = Of(i + 1);
  bounded = BoundGroups(groups);
  EXPECT_EQ(bounded.size(), SourceScore::kMaxGroups);
  EXPECT_EQ(bounded.count("question 93"), 1u);  // the largest
  EXPECT_EQ(bounded.count("question 3"), 0u);
  int64_t samples = 0;
  for (const auto& [group, score] : bounded) samples += score.samples;
  EXPECT_EQ(samples, 94 * 95 / 2);
}

TEST(ScoresTest, NothingScoredHasNoScore) {
  SourceScore none{.source = "none"}, some{.source = "a/b", .all = Of(4)};
  none.left_out.AddDrawn("none", 3);
  for (int i = 0; i < 3; ++i) {
    none.left_out.Add({.fault = dataloader::SampleFault::kOverlong,
                       .source = "none",
                       .sample_id = absl::StrCat("n.jsonl:", i),
                       .message = "900 tokens"});
  }
  const std::string table = FormatScores({none, some}, "step 3");
  EXPECT_THAT(table, HasSubstr("none                                       0        -        -"));
  EXPECT_THAT(table, HasSubstr("a/b                                        4    50.0%   1.0000"));
  EXPECT_THAT(table, HasSubstr("not scored:\nnone: 3 of 3 samples left out (overlong 3)\n"
                               "  overlong: n.jsonl:0: 900 tokens"));
  const std::map<std::string, double> values = ScoreValues({none, some});
  EXPECT_TRUE(std::isnan(values.at("eval/none/accuracy")));
  EXPECT_TRUE(std::isnan(values.at("eval/none/loss")));
  EXPECT_EQ(values.at("eval/none/left_out/overlong"), 3);
  EXPECT_EQ(values.at("eval/a%2Fb/accuracy"), 0.5);
  EXPECT_TRUE(CheckScored({none, some}).ok());
  EXPECT_THAT(std::string(CheckScored({none}).message()),
              HasSubstr("nothing was scored; none: 3 of 3 samples left out"));
  EXPECT_FALSE(CheckScored({}).ok());
}

}  // namespace
}  // namespace omni::trainer
