#include "runtime/device/elastic_memory.h"

#include <gtest/gtest.h>

#include <cstring>

namespace omni {
namespace {

TEST(ElasticMemoryTest, ComesAndGoesAtOneAddress) {
  auto pool = *PagePool::Create(16 * kPageBytes);
  auto memory = *ElasticMemory::Create(*pool, 3 * kPageBytes - 5);
  std::byte* const data = memory->data();
  EXPECT_EQ(pool->stats().used_bytes, 0);
  for (int round = 0; round < 3; ++round) {
    ASSERT_TRUE(memory->Commit().ok());
    EXPECT_EQ(memory->data(), data);
    EXPECT_EQ(pool->stats().used_bytes, 3 * kPageBytes);
    std::memset(data, 7, 3 * kPageBytes);
    memory->Release();
    EXPECT_EQ(pool->stats().used_bytes, 0);
  }
  EXPECT_EQ(pool->stats().high_water_bytes, 3 * kPageBytes);
  ASSERT_TRUE(memory->Commit().ok());
  memory.reset();
  EXPECT_EQ(pool->stats().used_bytes, 0);
}

TEST(ElasticMemoryTest, CountsAgainstTheReservationBothWays) {
  auto pool = *PagePool::Create(4 * kPageBytes);
  auto memory = *ElasticMemory::Create(*pool, 3 * kPageBytes);
  const PageRun run = *pool->Allocate(2 * kPageBytes);
  const absl::Status status = memory->Commit();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(std::string(status.message()).find("no room for 12288 bytes: 8192 of the 16384"),
            std::string::npos)
      << status;
  pool->Free(run);
  ASSERT_TRUE(memory->Commit().ok());
  EXPECT_FALSE(pool->Allocate(2 * kPageBytes).ok());  // there is a run that would fit
  EXPECT_TRUE(pool->Allocate(kPageBytes).ok());
}

TEST(ElasticMemoryDeathTest, WhatIsGoneCannotBeTouched) {
  auto pool = *PagePool::Create(4 * kPageBytes);
  auto memory = *ElasticMemory::Create(*pool, 10);
  EXPECT_DEATH(memory->data()[0] = std::byte{1}, "");
  EXPECT_DEATH(memory->Release(), "is_committed_");
  ASSERT_TRUE(memory->Commit().ok());
  memory->data()[0] = std::byte{1};
  EXPECT_DEATH((void)memory->Commit(), "is_committed_");
}

}  // namespace
}  // namespace omni
