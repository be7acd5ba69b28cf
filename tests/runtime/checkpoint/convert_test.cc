#include "runtime/checkpoint/convert.h"

#include <gtest/gtest.h>

#include <vector>

namespace omni {
namespace {

// Every alignment of both sides and every length around the width of a vector.
TEST(ConvertElementsTest, WidensBf16WhereverItLies) {
  std::vector<BFloat16> narrow(64);
  for (size_t i = 0; i < narrow.size(); ++i) narrow[i].bits = static_cast<uint16_t>(i * 1021 + 7);
  for (int from = 0; from < 9; ++from) {
    for (int to = 0; to < 9; ++to) {
      for (int count = 0; count <= 40; ++count) {
        std::vector<uint32_t> wide(64, 0xABCDEF01u);
        ASSERT_TRUE(ConvertElements(DType::kBFloat16, narrow.data() + from, DType::kFloat32,
                                    wide.data() + to, count));
        for (int i = 0; i < 64; ++i) {
          const bool is_written = i >= to && i < to + count;
          const uint32_t expected =
              is_written ? uint32_t{narrow[from + i - to].bits} << 16 : 0xABCDEF01u;
          ASSERT_EQ(wide[i], expected) << from << " " << to << " " << count << " at " << i;
        }
      }
    }
  }
}

TEST(ConvertElementsTest, IntegersDoNotConvert) {
  int32_t from = 3;
  float to = 1;
  EXPECT_FALSE(ConvertElements(DType::kInt32, &from, DType::kFloat32, &to, 1));
  EXPECT_EQ(to, 1);
}

}  // namespace
}  // namespace omni
