#include "dataloader/positions.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace omni::dataloader {
namespace {

std::vector<std::vector<float>> Positions(const std::vector<PositionSpan>& spans) {
  size_t total = 0;
  for (const PositionSpan& span : spans) total += span.num_tokens;
  std::vector<std::vector<float>> axes(3, std::vector<float>(total, -1));
  MropePositions(spans, 25, absl::MakeSpan(axes[0]), absl::MakeSpan(axes[1]),
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

TEST(PositionsDeathTest, OutputOfAnotherLengthIsAMistakeOfOurs) {
  std::vector<float> axis(2);
  const std::vector<PositionSpan> spans = {PositionSpan::Tokens(3)};
  EXPECT_DEATH(
      MropePositions(spans, 25, absl::MakeSpan(axis), absl::MakeSpan(axis), absl::MakeSpan(axis)),
      "CHECK failed");
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
