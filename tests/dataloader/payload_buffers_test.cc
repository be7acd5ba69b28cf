#include "dataloader/payload_buffers.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "dataloader/loader.h"
#include "tests/dataloader/support.h"

namespace omni::dataloader {
namespace {

TEST(PayloadBuffersTest, StorageIsUsedAgainAndIsZero) {
  PayloadBuffers buffers;
  buffers.Limit(1 << 20);
  std::vector<uint8_t> first = buffers.Take(100000);
  ASSERT_EQ(first.size(), 100000u);
  std::fill(first.begin(), first.end(), uint8_t{7});
  const uint8_t* const data = first.data();
  buffers.Give(std::move(first));
  EXPECT_GE(buffers.kept_bytes(), 100000);
  for (const int64_t size : {90000, 1, 100000, 110000}) {  // a little more fits as well
    std::vector<uint8_t> again = buffers.Take(size);
    EXPECT_EQ(again.data(), data) << size;
    EXPECT_EQ(again, std::vector<uint8_t>(size)) << size;
    EXPECT_EQ(buffers.kept_bytes(), 0);
    std::fill(again.begin(), again.end(), uint8_t{9});
    buffers.Give(std::move(again));
  }
  EXPECT_TRUE(buffers.Take(0).empty());
}

TEST(PayloadBuffersTest, WhatIsKeptIsBounded) {
  PayloadBuffers buffers;
  buffers.Give(std::vector<uint8_t>(1 << 20));  // nobody said how large steps are
  EXPECT_EQ(buffers.kept_bytes(), 0);
  buffers.Limit(1 << 20);
  for (int i = 0; i < 10; ++i) buffers.Give(std::vector<uint8_t>(1 << 19));
  EXPECT_LE(buffers.kept_bytes(), (2 << 20) + (64 << 10));
  EXPECT_GE(buffers.kept_bytes(), 2 << 20);
  buffers.Limit(1);  // a small step later changes nothing
  buffers.Give(buffers.Take(1 << 19));
  EXPECT_GE(buffers.kept_bytes(), 2 << 20);
}

TEST(PayloadBuffersTest, StepsInStorageOfEarlierOnesAreTheSame) {
  DataConfig config = TestConfig({{"image", 1}, {"audio", 1}});
  config.audio.max_seconds = 30;
  std::vector<FakeSample> pictures, sounds;
  for (int i = 0; i < 9; ++i) pictures.push_back(Picture(56, 28 * (1 + i % 4), 5 * i + 3));
  for (int i = 0; i < 5; ++i) sounds.push_back(Sound(4000 + 2111 * i, 0.05f * (i + 1)));
  pictures[4].media[0].resize(60);  // blanked: zeros, whatever was there
  const auto samples =
      MakePlanner(config, {{"image", std::make_shared<FakeStore>(pictures, "image.tar")},
                           {"audio", std::make_shared<FakeStore>(sounds, "audio.tar")}});
  const auto fresh = Loader::Create(samples, {}), recycling = Loader::Create(samples, {});
  ASSERT_TRUE(fresh.ok() && recycling.ok());
  for (int step = 0; step < 20; ++step) {
    const StepBatch expected = (*fresh)->Next().value();
    StepBatch batch = (*recycling)->Next().value();
    ASSERT_EQ(batch.encodes.size(), expected.encodes.size());
    for (size_t e = 0; e < batch.encodes.size(); ++e) {
      ASSERT_EQ(batch.encodes[e].size(), expected.encodes[e].size());
      for (size_t g = 0; g < batch.encodes[e].size(); ++g) {
        EXPECT_EQ(batch.encodes[e][g].whole.payload, expected.encodes[e][g].whole.payload);
      }
    }
    (*recycling)->Recycle(std::move(batch));
  }
}

}  // namespace
}  // namespace omni::dataloader
