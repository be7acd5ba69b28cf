#include "runtime/device/page_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <vector>

#include "runtime/base/rng.h"

namespace omni {
namespace {

std::unique_ptr<PagePool> MakePool(int64_t num_pages) {
  auto pool = PagePool::Create(num_pages * kPageBytes);
  EXPECT_TRUE(pool.ok()) << pool.status();
  return *std::move(pool);
}

TEST(PagePoolTest, RunsAreWholePagesAndNeverEmpty) {
  const auto pool = MakePool(8);
  for (const auto& [asked, given] : std::map<int64_t, int64_t>{
           {0, 1}, {1, 1}, {kPageBytes, 1}, {kPageBytes + 1, 2}, {3 * kPageBytes, 3}}) {
    const auto run = pool->Allocate(asked);
    ASSERT_TRUE(run.ok());
    EXPECT_EQ(run->num_bytes, given * kPageBytes) << asked;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(run->data) % kPageBytes, 0u);
    pool->Free(*run);
  }
  EXPECT_EQ(pool->stats().used_bytes, 0);
}

TEST(PagePoolTest, ExhaustionNamesTheNumbersAndLeavesThePoolUsable) {
  const auto pool = MakePool(4);
  const auto half = pool->Allocate(2 * kPageBytes);
  ASSERT_TRUE(half.ok());
  const auto failed = pool->Allocate(3 * kPageBytes);
  EXPECT_EQ(failed.status().code(), absl::StatusCode::kResourceExhausted);
  for (const char* number : {"12288", "8192", "16384"})  // asked, used, reserved
    EXPECT_NE(failed.status().message().find(number), absl::string_view::npos) << failed.status();
  EXPECT_TRUE(pool->Allocate(2 * kPageBytes).ok());
}

TEST(PagePoolTest, NeighboursMergeInAnyOrderOfReturn) {
  std::vector<int> order = {0, 1, 2, 3};
  do {
    const auto pool = MakePool(4);
    std::vector<PageRun> runs;
    for (int i = 0; i < 4; ++i) runs.push_back(*pool->Allocate(kPageBytes));
    EXPECT_FALSE(pool->Allocate(1).ok());
    for (const int i : order) pool->Free(runs[i]);
    EXPECT_TRUE(pool->Allocate(4 * kPageBytes).ok());
  } while (std::next_permutation(order.begin(), order.end()));
}

TEST(PagePoolTest, TakesTheTightestHole) {
  const auto pool = MakePool(16);
  const PageRun big = *pool->Allocate(5 * kPageBytes);
  const PageRun wall1 = *pool->Allocate(kPageBytes);
  const PageRun small = *pool->Allocate(2 * kPageBytes);
  const PageRun wall2 = *pool->Allocate(kPageBytes);
  pool->Free(big);
  pool->Free(small);
  EXPECT_EQ(pool->Allocate(2 * kPageBytes)->data, small.data);
  EXPECT_EQ(pool->Allocate(5 * kPageBytes)->data, big.data);
  pool->Free(wall1);
  pool->Free(wall2);
}

TEST(PagePoolTest, HighWaterIsTheMostAtOnce) {
  const auto pool = MakePool(16);
  const PageRun a = *pool->Allocate(3 * kPageBytes), b = *pool->Allocate(4 * kPageBytes);
  pool->Free(a);
  const PageRun c = *pool->Allocate(2 * kPageBytes);
  EXPECT_EQ(pool->stats().high_water_bytes, 7 * kPageBytes);
  EXPECT_EQ(pool->stats().num_allocations, 3);
  pool->ResetHighWater();
  EXPECT_EQ(pool->stats().high_water_bytes, 6 * kPageBytes);
  pool->Free(b);
  pool->Free(c);
}

TEST(PagePoolTest, OnFreeSeesEveryReturnedRun) {
  const auto pool = MakePool(8);
  std::vector<std::byte*> seen;
  pool->set_on_free([&](PageRun run) { seen.push_back(run.data); });
  const PageRun a = *pool->Allocate(1), b = *pool->Allocate(1);
  pool->Free(b);
  pool->Free(a);
  pool->Free(PageRun{});  // of nothing: no one is told
  EXPECT_EQ(seen, (std::vector<std::byte*>{b.data, a.data}));
}

TEST(PagePoolTest, ADoubleFreeIsCaught) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto pool = MakePool(8);
  const PageRun kept = *pool->Allocate(1), run = *pool->Allocate(1);
  pool->Free(run);
  EXPECT_DEATH(pool->Free(run), "CHECK failed");
  pool->Free(kept);
}

// Against a plain list of what is out: runs never overlap, contents survive, a request is
// refused only if no hole between the runs that are out is large enough.
TEST(PagePoolTest, RandomUse) {
  constexpr int64_t kPages = 96;
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    SCOPED_TRACE(seed);
    const auto pool = MakePool(kPages);
    CounterRng rng(seed, 0);
    std::map<std::byte*, PageRun> out;
    int64_t used = 0, high = 0;
    const PageRun whole = *pool->Allocate(kPages * kPageBytes);
    std::byte* const base = whole.data;
    pool->Free(whole);
    pool->ResetHighWater();
    const auto largest_hole = [&] {
      int64_t largest = 0;
      std::byte* at = base;
      for (const auto& [data, run] : out) {
        largest = std::max<int64_t>(largest, data - at);
        at = data + run.num_bytes;
      }
      return std::max<int64_t>(largest, base + kPages * kPageBytes - at);
    };
    for (int i = 0; i < 3000; ++i) {
      if (rng.NextBelow(2) == 0 || out.empty()) {
        const int64_t bytes = static_cast<int64_t>(rng.NextBelow(12 * kPageBytes));
        const int64_t pages = std::max<int64_t>(1, (bytes + kPageBytes - 1) / kPageBytes);
        const bool fits = pages * kPageBytes <= largest_hole();
        const auto run = pool->Allocate(bytes);
        ASSERT_EQ(run.ok(), fits);
        if (!fits) continue;
        const auto after = out.lower_bound(run->data);
        if (after != out.end()) {
          ASSERT_LE(run->data + run->num_bytes, after->first);
        }
        if (after != out.begin()) {
          ASSERT_LE(std::prev(after)->first + std::prev(after)->second.num_bytes, run->data);
        }
        std::memset(run->data, static_cast<int>(run->data - base) / kPageBytes, run->num_bytes);
        out[run->data] = *run;
        used += run->num_bytes;
        high = std::max(high, used);
      } else {
        auto it = out.begin();
        std::advance(it, rng.NextBelow(out.size()));
        const PageRun run = it->second;
        const auto mark = static_cast<std::byte>((run.data - base) / kPageBytes);
        for (int64_t b = 0; b < run.num_bytes; b += 512) ASSERT_EQ(run.data[b], mark);
        pool->Free(run);
        used -= run.num_bytes;
        out.erase(it);
      }
      ASSERT_EQ(pool->stats().used_bytes, used);
      ASSERT_EQ(pool->stats().high_water_bytes, high);
    }
    for (const auto& [data, run] : out) pool->Free(run);
    EXPECT_TRUE(pool->Allocate(kPages * kPageBytes).ok());  // all holes merged
  }
}

}  // namespace
}  // namespace omni
