#include "dataloader/positions.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "dataloader/chat_template.h"

namespace omni::dataloader {
namespace {

std::vector<std::vector<float>> Positions(const std::vector<PositionSpan>& spans,
                                          const PositionOptions& options = {}) {
  size_t total = 0;
  for (const PositionSpan& span : spans) total += span.num_tokens;
  std::vector<std::vector<float>> axes(3, std::vector<float>(total, -1));
  MropePositions(spans, options, absl::MakeSpan(axes[0]), absl::MakeSpan(axes[1]),
                 absl::MakeSpan(axes[2]));
  return axes;
}

using Axes = std::vector<std::vector<float>>;

TEST(PositionsTest, TextCountsOnAllAxes) {
  EXPECT_EQ(Positions({PositionSpan::Tokens(3)}), (Axes{{0, 1, 2}, {0, 1, 2}, {0, 1, 2}}));
}

TEST(PositionsTest, NothingIsNothing) {
  EXPECT_EQ(Positions({}), (Axes{{}, {}, {}}));
  EXPECT_EQ(Positions({PositionSpan::Tokens(0)}), (Axes{{}, {}, {}}));
}

TEST(PositionsTest, ImageIsAGridAndTheNextSpanStartsAfterItsLargestPosition) {
  EXPECT_EQ(
      Positions({PositionSpan::Tokens(2), PositionSpan::Grid(1, 2, 3), PositionSpan::Tokens(1)}),
      (Axes{
          {0, 1, 2, 2, 2, 2, 2, 2, 5}, {0, 1, 2, 2, 2, 3, 3, 3, 5}, {0, 1, 2, 3, 4, 2, 3, 4, 5}}));
}

TEST(PositionsTest, VideoTimeIsTruncatedAndCanExceedItsGrid) {
  // 0.1 s a grid: 0, 2.5 -> 2, 5.0 -> 5 positions.
  EXPECT_EQ(Positions({PositionSpan::Tokens(1), PositionSpan::Grid(3, 1, 1, 0.1),
                       PositionSpan::Tokens(1)}),
            (Axes{{0, 1, 3, 6, 7}, {0, 1, 1, 1, 7}, {0, 1, 1, 1, 7}}));
}

TEST(PositionsTest, RulesDifferInTimeAndInWhereTheNextSpanStarts) {
  const std::vector<PositionSpan> spans = {
      PositionSpan::Tokens(1), PositionSpan::Grid(3, 1, 2, 1.5), PositionSpan::Tokens(1)};
  const auto temporal = [&](PositionRule rule) {
    return Positions(spans, {.rule = rule, .positions_per_second = 2})[0];
  };
  using Axis = std::vector<float>;
  EXPECT_EQ(temporal(PositionRule::kQwen2_5Max), (Axis{0, 1, 1, 4, 4, 7, 7, 8}));
  EXPECT_EQ(temporal(PositionRule::kQwen2_5Whole), (Axis{0, 1, 1, 3, 3, 5, 5, 6}));
  EXPECT_EQ(temporal(PositionRule::kQwen2_5Grid), (Axis{0, 1, 1, 3, 3, 5, 5, 3}));
  EXPECT_EQ(temporal(PositionRule::kSequential), (Axis{0, 1, 2, 3, 4, 5, 6, 7}));
}

TEST(PositionsDeathTest, AFrameStandsAloneInQwen3Vl) {
  EXPECT_DEATH(Positions({PositionSpan::Grid(2, 1, 1)}, {.rule = PositionRule::kQwen3Vl}),
               "span.t == 1");
}

TEST(PositionsDeathTest, OutputOfAnotherLengthIsAMistakeOfOurs) {
  std::vector<float> axis(2);
  const std::vector<PositionSpan> spans = {PositionSpan::Tokens(3)};
  EXPECT_DEATH(
      MropePositions(spans, {}, absl::MakeSpan(axis), absl::MakeSpan(axis), absl::MakeSpan(axis)),
      "CHECK failed");
}

// tools/golden/families/positions.py wrote these: 30 random layouts of each family.
TEST(PositionsTest, AgreeWithTheFamilies) {
  struct Family {
    const char* file;
    const char* key;
    PositionOptions options;
  };
  const Family families[] = {
      {"qwen2_5_vl", "older", {PositionRule::kQwen2_5Max, 2}},
      {"qwen2_5_vl", "position_ids", {PositionRule::kQwen2_5Whole, 2}},
      {"qwen2_5_vl", "newer", {PositionRule::kQwen2_5Grid, 2}},
      {"qwen2_5_omni", "position_ids", {PositionRule::kQwen2_5Max, 25}},
      {"qwen3_vl", "position_ids", {PositionRule::kQwen3Vl, 25}},
  };
  for (const Family& family : families) {
    std::ifstream file(std::string(OMNI_SOURCE_DIR "/tests/golden/families/positions_") +
                       family.file + ".json");
    const auto cases = nlohmann::json::parse(file);
    const bool by_frame = family.options.rule == PositionRule::kQwen3Vl;
    size_t num_checked = 0;
    for (const auto& golden : cases) {
      std::vector<PositionSpan> spans;
      bool is_overlap = false;
      for (const auto& span : golden["spans"]) {
        const std::string kind = span[0];
        if (kind == "text") {
          spans.push_back(PositionSpan::Tokens(span[1]));
        } else if (kind == "audio") {
          const int steps = (span[1].get<int>() - 1) / 2 + 1;
          spans.push_back(PositionSpan::Tokens(1 + (steps - 2) / 2 + 1 + 1));
        } else if (kind == "image") {
          spans.push_back(PositionSpan::Tokens(1));
          spans.push_back(PositionSpan::Grid(1, span[1].get<int>() / 2, span[2].get<int>() / 2));
          spans.push_back(PositionSpan::Tokens(1));
        } else if (kind == "video") {
          const int t = span[1], h = span[2].get<int>() / 2, w = span[3].get<int>() / 2;
          for (int frame = 0; frame < (by_frame ? t : 1); ++frame) {
            spans.push_back(PositionSpan::Tokens(by_frame ? 3 : 1));
            spans.push_back(by_frame ? PositionSpan::Grid(1, h, w)
                                     : PositionSpan::Grid(t, h, w, span[4]));
            spans.push_back(PositionSpan::Tokens(1));
          }
        } else {
          is_overlap = true;  // video_with_audio: one stream in the other, which we don't do
        }
      }
      if (is_overlap) continue;
      EXPECT_EQ(Positions(spans, family.options), golden[family.key].get<Axes>())
          << family.file << " " << family.key << " " << golden["spans"];
      ++num_checked;
    }
    EXPECT_GE(num_checked, 20u) << family.file;
  }
}

// tools/golden/families/processors.py: the times Qwen3-VL's processor writes.
TEST(FrameTimeTest, AgreesWithQwen3VlsProcessor) {
  std::ifstream file(OMNI_SOURCE_DIR "/tests/golden/families/processors.json");
  const auto golden = nlohmann::json::parse(file);
  size_t num_checked = 0;
  for (const auto& clip : golden["frames_qwen3_vl"]) {
    const std::vector<int64_t> indices = clip["indices"];
    const double fps = clip["fps"];
    std::vector<std::string> times;
    for (size_t first = 0; first < indices.size(); first += 2) {
      const size_t last = std::min(first + 1, indices.size() - 1);
      times.push_back(FrameTime(
          (static_cast<double>(indices[first]) / fps + static_cast<double>(indices[last]) / fps) /
              2,
          FrameText::kQwen3Vl));
    }
    EXPECT_EQ(times, clip["stamps"].get<std::vector<std::string>>());
    ++num_checked;
  }
  EXPECT_GE(num_checked, 10u);
}

// tools/golden/positions.py wrote these from transformers.
TEST(PositionsTest, AgreeWithTransformers) {
  std::ifstream file(OMNI_SOURCE_DIR "/tests/golden/positions.json");
  const auto cases = nlohmann::json::parse(file);
  ASSERT_GE(cases.size(), 10u);
  for (const auto& golden : cases) {
    std::vector<PositionSpan> spans;
    for (const auto& span : golden["spans"]) {
      const std::string kind = span[0];
      if (kind == "text") {
        spans.push_back(PositionSpan::Tokens(span[1]));
        continue;
      }
      spans.push_back(PositionSpan::Tokens(1));
      if (kind == "audio") {
        const int frames = span[1];
        spans.push_back(PositionSpan::Tokens((((frames - 1) / 2 + 1) - 2) / 2 + 1));
      } else if (kind == "image") {
        spans.push_back(PositionSpan::Grid(1, span[1].get<int>() / 2, span[2].get<int>() / 2));
      } else {
        spans.push_back(
            PositionSpan::Grid(span[1], span[2].get<int>() / 2, span[3].get<int>() / 2, span[4]));
      }
      spans.push_back(PositionSpan::Tokens(1));
    }
    EXPECT_EQ(Positions(spans), golden["positions"].get<Axes>()) << golden["name"];
  }
}

}  // namespace
}  // namespace omni::dataloader
