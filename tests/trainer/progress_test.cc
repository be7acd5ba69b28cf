#include "trainer/report/progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace omni::trainer {
namespace {

using ::testing::HasSubstr;

const std::map<std::string, double>& Values() {
  static const std::map<std::string, double> values = {
      {"loss", 1.832},      {"tokens_per_s", 5123},  {"step_ms", 500},     {"gflops", 61.2},
      {"grad_norm", 0.93},  {"lr", 2.5e-3},          {"samples/image", 9}, {"samples/audio", 8},
      {"samples/video", 0}, {"samples/sentences", 4}};
  return values;
}

TEST(ProgressLineTest, OfWhatDoesNotFitTheLeastLeavesFirst) {
  const auto format = [](int32_t columns) {
    return ProgressLine::Format(120, 750, Values(), absl::Seconds(252), columns);
  };
  const std::string whole =
      "step  120/750  loss 1.8320  5.1k tok/s  16 audio/s 18 image/s 8 sentences/s  61.2 GFLOP/s"
      "  |g| 0.930  lr 2.5e-03  4:12 left";
  EXPECT_EQ(format(0), whole);
  EXPECT_EQ(format(200), whole);
  EXPECT_EQ(format(79), "step  120/750  loss 1.8320  5.1k tok/s  |g| 0.930  lr 2.5e-03  4:12 left");
  EXPECT_EQ(format(40), "step  120/750  loss 1.8320  4:12 left");
  size_t before = 0;
  for (int32_t columns = 1; columns < 200; ++columns) {
    const std::string line = format(columns);
    EXPECT_LE(line.size(), static_cast<size_t>(columns));
    EXPECT_GE(line.size(), before);  // more room, no less said
    before = line.size();
    EXPECT_EQ(line.substr(0, 4), std::string("step").substr(0, columns));
    if (columns >= 37) {
      EXPECT_THAT(line, HasSubstr("left"));
    }
  }
}

}  // namespace
}  // namespace omni::trainer
