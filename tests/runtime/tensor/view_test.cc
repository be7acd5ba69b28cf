#include "runtime/tensor/view.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace omni {
namespace {

TensorView Over(std::vector<float>& data, std::vector<int64_t> sizes) {
  return TensorView::Dense(data.data(), DType::kFloat32, DeviceKind::kCpu, sizes);
}

std::vector<float> Iota(int64_t count) {
  std::vector<float> data(count);
  std::iota(data.begin(), data.end(), 0.0f);
  return data;
}

TEST(TensorViewTest, DenseIsRowMajor) {
  auto data = Iota(24);
  const TensorView view = Over(data, {2, 3, 4});
  EXPECT_EQ(view.num_elements(), 24);
  EXPECT_EQ(view.num_bytes(), 96);
  EXPECT_TRUE(view.is_dense());
  EXPECT_EQ((view.as<const float, 3>()(1, 2, 3)), 23.0f);
  EXPECT_EQ(view.size(-1), 4);
  EXPECT_EQ(view.stride(0), 12);
  EXPECT_EQ(view.DebugString(), "fp32[2, 3, 4]");
}

TEST(TensorViewTest, RowsAndColumnsAreTheSameMemory) {
  auto data = Iota(20);
  const TensorView view = Over(data, {4, 5});
  const auto window = view.Rows(1, 2).Columns(2, 3).as<const float, 2>();
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 3; ++j) EXPECT_EQ(window(i, j), static_cast<float>((i + 1) * 5 + j + 2));
  EXPECT_TRUE(view.Rows(1, 2).is_dense());
  EXPECT_FALSE(view.Columns(2, 3).is_dense());
  EXPECT_TRUE(view.Columns(2, 3).Rows(0, 1).is_dense());  // one row lies together
}

TEST(TensorViewTest, ReshapeSplitsTheColumnsOfASlice) {
  auto data = Iota(40);
  const TensorView slice = Over(data, {4, 10}).Columns(4, 6);
  const auto heads = slice.Reshape({4, 2, 3}).as<const float, 3>();
  for (int t = 0; t < 4; ++t)
    for (int n = 0; n < 2; ++n)
      for (int d = 0; d < 3; ++d)
        EXPECT_EQ(heads(t, n, d), static_cast<float>(t * 10 + 4 + n * 3 + d));
}

TEST(TensorViewTest, ReshapeMergesWhatLiesTogetherInASlice) {
  auto data = Iota(40);
  const TensorView heads = Over(data, {4, 10}).Columns(4, 6).Reshape({4, 2, 3});
  const auto rows = heads.Reshape({4, 6}).as<const float, 2>();
  const auto split = heads.Reshape({4, 3, 2}).as<const float, 3>();
  for (int t = 0; t < 4; ++t)
    for (int i = 0; i < 6; ++i) {
      EXPECT_EQ(rows(t, i), static_cast<float>(t * 10 + 4 + i));
      EXPECT_EQ(split(t, i / 2, i % 2), rows(t, i));
    }
  EXPECT_DEATH(heads.Columns(0, 2).Reshape({4, 4}), "CHECK failed");  // gaps between heads
}

TEST(TensorViewTest, EmptyAndScalar) {
  std::vector<float> data(1);
  EXPECT_EQ(Over(data, {0, 5}).num_elements(), 0);
  EXPECT_TRUE(Over(data, {0, 5}).is_dense());
  EXPECT_EQ(Over(data, {}).num_elements(), 1);
  EXPECT_TRUE(TensorView{}.empty());
}

TEST(TensorViewTest, ASliceWithoutElementsStaysInItsMemory) {
  std::vector<float> data(6);
  EXPECT_EQ(Over(data, {2, 3}).Rows(2, 0).data, data.data());
  EXPECT_EQ(Over(data, {2, 3}).Columns(3, 0).data, data.data());
  EXPECT_EQ(Over(data, {0, 9}).Columns(7, 2).data, data.data());
  EXPECT_EQ(Over(data, {2, 3}).Rows(1, 1).data, data.data() + 3);
}

TEST(TensorViewDeathTest, WrongUseIsCaught) {
  auto data = Iota(12);
  const TensorView view = Over(data, {3, 4});
  EXPECT_DEATH(view.Rows(2, 2), "4 vs 3");
  EXPECT_DEATH(view.Rows(-1, 1), "CHECK failed");
  EXPECT_DEATH(view.Columns(3, 2), "5 vs 4");
  EXPECT_DEATH(view.Reshape({5, 2}), "10 vs 12");
  EXPECT_DEATH(view.Columns(0, 2).Reshape({6}), "CHECK failed");
  EXPECT_DEATH(view.ptr<double>(), "CHECK failed");
  EXPECT_DEATH((view.as<float, 3>()), "CHECK failed");
}

TEST(BFloat16Test, RoundsToNearestEven) {
  EXPECT_EQ(BFloat16(1.0f).bits, 0x3f80);
  EXPECT_EQ(BFloat16(-0.0f).bits, 0x8000);
  EXPECT_EQ(BFloat16(std::bit_cast<float>(0x3f808000u)).bits, 0x3f80);  // tie, to even below
  EXPECT_EQ(BFloat16(std::bit_cast<float>(0x3f818000u)).bits, 0x3f82);  // tie, to even above
  EXPECT_EQ(BFloat16(std::bit_cast<float>(0x3f808001u)).bits, 0x3f81);
  EXPECT_EQ(BFloat16(std::numeric_limits<float>::max()).bits, 0x7f80);  // to infinity
  EXPECT_EQ(BFloat16(std::numeric_limits<float>::infinity()).bits, 0x7f80);
  // A NaN whose upper half would look like infinity stays a NaN.
  EXPECT_TRUE(std::isnan(static_cast<float>(BFloat16(std::bit_cast<float>(0x7f800001u)))));
}

TEST(BFloat16Test, EveryValueSurvivesTheWayThroughFloat) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float wide = std::bit_cast<float>(bits << 16);
    const BFloat16 back(wide);
    if (std::isnan(wide)) {
      ASSERT_TRUE(std::isnan(static_cast<float>(back))) << bits;
    } else {
      ASSERT_EQ(back.bits, bits);
    }
  }
}

}  // namespace
}  // namespace omni
