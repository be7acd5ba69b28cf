#include "runtime/base/rng.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

namespace omni {
namespace {

// Known-answer vectors of the Random123 distribution (philox4x32-10).
TEST(RngTest, PhiloxMatchesPublishedVectors) {
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}),
            (std::array<uint32_t, 4>{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}));
  EXPECT_EQ(
      Philox4x32({0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu}, {0xffffffffu, 0xffffffffu}),
      (std::array<uint32_t, 4>{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}));
}

TEST(RngTest, DrawsDependOnSeedStreamAndIndexOnly) {
  const CounterRng a(7, StreamOf("weights")), b(7, StreamOf("weights")), c(7, StreamOf("order"));
  EXPECT_EQ(a.Bits(123), b.Bits(123));
  EXPECT_NE(a.Bits(123), c.Bits(123));
  EXPECT_NE(a.Bits(123), CounterRng(8, StreamOf("weights")).Bits(123));
}

TEST(RngTest, NormalHasMeanZeroAndVarianceOne) {
  const CounterRng rng(1, 2);
  double sum = 0, squares = 0;
  constexpr int kDraws = 100000;
  for (int i = 0; i < kDraws; ++i) {
    const double x = rng.Normal(i);
    sum += x;
    squares += x * x;
  }
  EXPECT_NEAR(sum / kDraws, 0.0, 0.02);
  EXPECT_NEAR(squares / kDraws, 1.0, 0.03);
}

class PermutationTest : public ::testing::TestWithParam<uint64_t> {};

TEST_P(PermutationTest, IsABijection) {
  const uint64_t n = GetParam();
  const Permutation permutation(n, 3, 4);
  std::set<uint64_t> seen;
  for (uint64_t i = 0; i < n; ++i) {
    EXPECT_LT(permutation(i), n);
    seen.insert(permutation(i));
  }
  EXPECT_EQ(seen.size(), n);
}
INSTANTIATE_TEST_SUITE_P(Sizes, PermutationTest, ::testing::Values(1, 2, 3, 5, 16, 17, 1000, 4097));

TEST(RngTest, PermutationsOfDifferentSeedsDiffer) {
  const Permutation a(1000, 1, 0), b(1000, 2, 0);
  int equal = 0;
  for (uint64_t i = 0; i < 1000; ++i) equal += a(i) == b(i);
  EXPECT_LT(equal, 20);
}

}  // namespace
}  // namespace omni
