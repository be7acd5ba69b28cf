#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "parallel/data_layout.h"
#include "parallel/parallel_config.h"

namespace omni::parallel {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr DecoderShape kDecoder = {
    .layers = 8, .heads = 8, .kv_heads = 2, .experts = 4, .ffn = 5, .vocab = 9};

absl::StatusOr<Layout> LayoutOf(const std::string& yaml, const DecoderShape& decoder = kDecoder) {
  const auto root = ConfigNode::Parse("parallel:\n  " + yaml, "test.yaml");
  if (!root.ok()) return root.status();
  ParallelConfig config;
  const absl::Status status = Read(root->Get("parallel"), &config);
  if (!status.ok()) return status;
  return Layout::Create(root->Get("parallel"), config, decoder, {"vision", "audio"});
}

TEST(LayoutTest, ChattyAxesAreInnermost) {
  const auto layout = LayoutOf(
      "{workers: 16, pipeline: 2, tensor: 2, context: {degree: 2, kind: ring}, expert: 4,\n"
      "   encoders: {vision: {sequence: 4}}}");
  ASSERT_TRUE(layout.ok()) << layout.status();
  EXPECT_EQ(layout->decoder_mesh().ToString(),
            "pipeline 2 x data 2 x context 2 x ulysses 1 x tensor 2");
  EXPECT_EQ(layout->expert_mesh().Extent(Axis::kData), 2);
  EXPECT_EQ(layout->encoder_mesh(0).Extent(Axis::kInstance), 2);
  EXPECT_EQ(layout->encoder_mesh(1).Extent(Axis::kInstance), 8);
  for (int32_t rank = 0; rank < 16; ++rank) {
    EXPECT_EQ(layout->RankAt(layout->PipelineRank(rank), layout->Replica(rank),
                             layout->SequenceIndex(rank)),
              rank);
  }
}

TEST(LayoutTest, UlyssesGoesAsFarAsHeadsDivide) {
  // 6 ranks, 4 heads each of 2 tensor ranks, one KV head: by heads over 2, the rest a ring of 3.
  const auto layout = LayoutOf("{workers: 12, tensor: 2, context: {degree: 6, kind: ulysses}}");
  ASSERT_TRUE(layout.ok()) << layout.status();
  EXPECT_EQ(layout->sequence(), (SequenceDegrees{.ring = 3, .ulysses = 2, .tensor = 2}));
}

TEST(LayoutTest, LayersAreEvenUnlessTheRecipeSaysOtherwise) {
  auto layout = LayoutOf("{workers: 3, pipeline: 3}");
  ASSERT_TRUE(layout.ok()) << layout.status();
  EXPECT_EQ(layout->LayersOf(0), (std::pair{0, 3}));
  EXPECT_EQ(layout->LayersOf(2), (std::pair{6, 8}));
  layout = LayoutOf("{workers: 2, pipeline: 2, layers: [1, 7]}");
  ASSERT_TRUE(layout.ok()) << layout.status();
  EXPECT_EQ(layout->LayersOf(1), (std::pair{1, 8}));
}

TEST(LayoutTest, RowsTravelInRoundsUnlessAllMayBeStaged) {
  auto layout = LayoutOf("{workers: 2, pipeline: 2}");
  ASSERT_TRUE(layout.ok()) << layout.status();
  EXPECT_TRUE(layout->Schedule(1, {true, true}).row_rounds);
  EXPECT_EQ(layout->config().staging, 0.25);
  layout = LayoutOf("{workers: 2, pipeline: 2, reshard: {staging: 1, whole_mib: 0.5}}");
  ASSERT_TRUE(layout.ok()) << layout.status();
  EXPECT_FALSE(layout->Schedule(1, {true, true}).row_rounds);
  EXPECT_EQ(layout->config().staged_whole_mib, 0.5);
  for (const char* wrong : {"{staging: 0}", "{staging: 1.5}", "{whole_mib: -1}", "{rounds: 4}"}) {
    EXPECT_EQ(LayoutOf(absl::StrCat("{reshard: ", wrong, "}")).status().code(),
              absl::StatusCode::kInvalidArgument)
        << wrong;
  }
}

TEST(LayoutTest, DataLayoutSaysTheSame) {
  for (const char* yaml :
       {"{workers: 24, pipeline: 2, tensor: 2, context: {degree: 3, kind: ring, threshold: 7},\n"
        "   joint: {kind: first_stage, q: 3}, encoders: {audio: {sequence: 4, threshold: none}}}",
        "{workers: 4, pipeline: 2, schedule: interleaved, chunks_per_rank: 2}",
        "{workers: 4, pipeline: 2, schedule: zb_v, chunks_per_rank: 2}", "{workers: 3}"}) {
    const auto layout = LayoutOf(yaml);
    ASSERT_TRUE(layout.ok()) << layout.status();
    const DataLayout data = DataLayout::Of(*layout, {{.input_rows = 4, .output_rows = 1}, {}});
    const ScheduleOptions schedule = layout->Schedule(5, {true, false});
    EXPECT_EQ(data.num_ranks(), layout->num_ranks());
    EXPECT_EQ(schedule.RankOf(0), 0) << "chunk 0 is not on the first stage";
    EXPECT_EQ(data.group_size, schedule.group_size());
    EXPECT_EQ(data.joint, schedule.joint);
    EXPECT_EQ(data.sequence, layout->sequence());
    EXPECT_EQ(data.ring_threshold, layout->config().ring_threshold);
    for (int32_t rank = 0; rank < data.num_ranks(); ++rank) {
      EXPECT_EQ(data.Stage(rank), layout->PipelineRank(rank));
      EXPECT_EQ(data.Replica(rank), layout->Replica(rank));
      EXPECT_EQ(data.SequenceIndex(rank), layout->SequenceIndex(rank));
      EXPECT_EQ(data.RankAt(data.Stage(rank), data.Replica(rank), data.SequenceIndex(rank)), rank);
      // Sequence groups are consecutive ranks, which start at multiples of their size.
      for (int32_t e = 0; e < 2; ++e) {
        const auto group = layout->encoder_mesh(e).Group(rank, {Axis::kSequence});
        EXPECT_EQ(static_cast<int32_t>(group.size()), data.encoders[e].sequence);
        EXPECT_EQ(group.front() % data.encoders[e].sequence, 0);
        EXPECT_EQ(group.back() - group.front() + 1, data.encoders[e].sequence);
      }
    }
    ASSERT_EQ(data.encoders.size(), 2u);
    EXPECT_EQ(data.encoders[0].unit.input_rows, 4);
    EXPECT_EQ(data.encoders[1].unit.input_rows, 0);
    EXPECT_EQ(data.encoders[1].name, "audio");
    EXPECT_EQ(data.encoders[1].threshold, layout->encoder(1).threshold);
  }
}

struct BadCase {
  const char* yaml;
  const char* where;
  const char* what;
};

class BadLayoutTest : public ::testing::TestWithParam<BadCase> {};

TEST_P(BadLayoutTest, IsNamed) {
  const auto layout = LayoutOf(GetParam().yaml);
  ASSERT_FALSE(layout.ok());
  EXPECT_EQ(layout.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(
      std::string(layout.status().message()),
      AllOf(HasSubstr("test.yaml:2"), HasSubstr(GetParam().where), HasSubstr(GetParam().what)));
}

INSTANTIATE_TEST_SUITE_P(
    Cases, BadLayoutTest,
    ::testing::Values(
        BadCase{"{workers: 6, tensor: 4}", "workers",
                "expected a multiple of pipeline 1 x context 1 x tensor 4"},
        BadCase{"{workers: 3, tensor: 3}", "tensor", "does not divide model.decoder.heads (8)"},
        BadCase{"{workers: 8, tensor: 8}", "tensor", "more than model.decoder.ffn (5)"},
        BadCase{"{workers: 2, expert: 3}", "expert",
                "does not divide model.decoder.moe.experts (4)"},
        BadCase{"{workers: 3, expert: 2}", "expert", "does not divide the ranks of a stage (3)"},
        BadCase{"{workers: 9, pipeline: 9}", "pipeline",
                "9 chunks, more than model.decoder.layers (8); pipeline 8 fits"},
        BadCase{"{workers: 2, pipeline: 2, layers: [4, 5]}", "layers", "sum 9"},
        BadCase{"{workers: 2, encoders: {visoin: {sequence: 2}}}", "encoders",
                "did you mean \"vision\"?"},
        BadCase{"{workers: 2, encoders: {vision: {sequence: 3}}}", "sequence",
                "does not divide the ranks of a stage (2)"},
        BadCase{"{workers: 2, pipeline: 2, schedule: 2f2b}", "schedule", "1f1b"},
        BadCase{"{workers: 2, encoders: {vision: {threshold: some}}}", "threshold", "auto or none"},
        BadCase{"{workers: 2, pipeline: 2, schedule: zb_v, chunks_per_rank: 1}", "chunks_per_rank",
                "expected 2"}));

}  // namespace
}  // namespace omni::parallel
