#include "runtime/device/elastic_memory.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cstring>

namespace omni {
namespace {

int64_t PageFaults() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_minflt;
}

TEST(ElasticMemoryTest, ComesAndGoesAtOneAddress) {
  auto pool = *PagePool::Create(16 * kPageBytes);
  {
    ElasticRoom room(*pool);
    ElasticMemory* memory = room.Add(0, 3 * kPageBytes - 5);
    ASSERT_TRUE(room.Map().ok());
    std::byte* const data = memory->data();
    EXPECT_EQ(pool->stats().used_bytes, 0);
    for (int round = 0; round < 3; ++round) {
      memory->Commit();
      EXPECT_EQ(memory->data(), data);
      EXPECT_EQ(pool->stats().used_bytes, 3 * kPageBytes);
      std::memset(data, 7, 3 * kPageBytes);
      memory->Release();
      EXPECT_EQ(pool->stats().used_bytes, 0);
    }
    EXPECT_EQ(pool->stats().high_water_bytes, 3 * kPageBytes);
    memory->Commit();
  }
  EXPECT_EQ(pool->stats().used_bytes, 0);
  EXPECT_TRUE(pool->Allocate(16 * kPageBytes).ok());  // the room is back
}

TEST(ElasticMemoryTest, TurnsLieOnTopOfEachOther) {
  auto pool = *PagePool::Create(16 * kPageBytes);
  ElasticRoom room(*pool);
  ElasticMemory* a = room.Add(0, 10);
  ElasticMemory* b = room.Add(0, kPageBytes + 1);
  ElasticMemory* c = room.Add(1, 4 * kPageBytes);
  ElasticMemory* d = room.Add(2, 10);
  ASSERT_TRUE(room.Map().ok());
  EXPECT_EQ(room.num_bytes(), 4 * kPageBytes);
  EXPECT_EQ(b->data(), a->data() + kPageBytes);
  EXPECT_EQ(c->data(), a->data());
  EXPECT_EQ(d->data(), a->data());
  a->Commit();
  b->Commit();
  EXPECT_EQ(pool->stats().used_bytes, 3 * kPageBytes);
  a->Release();
  b->Release();
  c->Commit();
  EXPECT_EQ(pool->stats().used_bytes, 4 * kPageBytes);
}

TEST(ElasticMemoryTest, IsTheRoomsForGood) {
  auto pool = *PagePool::Create(4 * kPageBytes);
  const PageRun run = *pool->Allocate(2 * kPageBytes);
  {
    ElasticRoom room(*pool);
    room.Add(0, 3 * kPageBytes);
    const absl::Status status = room.Map();
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_NE(std::string(status.message()).find("no room for 12288 bytes: 8192 of the 16384"),
              std::string::npos)
        << status;
  }
  pool->Free(run);
  ElasticRoom room(*pool);
  room.Add(0, 3 * kPageBytes);
  ASSERT_TRUE(room.Map().ok());
  EXPECT_FALSE(pool->Allocate(2 * kPageBytes).ok());  // also while it is not used
  EXPECT_TRUE(pool->Allocate(kPageBytes).ok());
}

TEST(ElasticMemoryTest, AsksTheSystemOnce) {
  constexpr int64_t kBytes = int64_t{8} << 20;
  auto pool = *PagePool::Create(2 * kBytes);
  ElasticRoom room(*pool);
  ElasticMemory* const turns[] = {room.Add(0, kBytes), room.Add(1, kBytes / 2)};
  ASSERT_TRUE(room.Map().ok());
  const auto use = [&](ElasticMemory* memory, int64_t num_bytes) {
    memory->Commit();
    std::memset(memory->data(), 7, num_bytes);
    memory->Release();
  };
  use(turns[0], kBytes);
  const int64_t before = PageFaults();
  for (int round = 0; round < 10; ++round) {
    use(turns[0], kBytes);
    use(turns[1], kBytes / 2);
  }
  // Pages that went back would fault again: 4 at least a round if they are large, 2048 if small.
  EXPECT_LT(PageFaults() - before, 20);
}

TEST(ElasticMemoryDeathTest, WhatIsGoneCannotBeTouched) {
  auto pool = *PagePool::Create(4 * kPageBytes);
  ElasticRoom room(*pool);
  ElasticMemory* memory = room.Add(0, 10);
  ElasticMemory* other = room.Add(1, 10);
  ASSERT_TRUE(room.Map().ok());
  EXPECT_DEATH(memory->data()[0] = std::byte{1}, "");
  EXPECT_DEATH(memory->Release(), "is_committed_");
  memory->Commit();
  memory->data()[0] = std::byte{1};
  EXPECT_DEATH(memory->Commit(), "is_committed_");
  EXPECT_DEATH(other->Commit(), "turn_");
  memory->Release();
  EXPECT_DEATH(memory->data()[0] = std::byte{1}, "");
}

}  // namespace
}  // namespace omni
