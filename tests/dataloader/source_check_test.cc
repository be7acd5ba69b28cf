#include "dataloader/source_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/dataloader/formats/store_fixture.h"
#include "tests/dataloader/support.h"

namespace omni::dataloader {
namespace {

using ::testing::HasSubstr;
using Samples = std::vector<FakeSample>;

FakeSample Unreadable() {
  FakeSample sample = Question("a", "b");
  sample.conversation_error = absl::DataLossError("fake.tar:0: not JSON");
  return sample;
}

FakeSample Undecodable() {
  FakeSample sample = Picture(28, 56, 7);
  sample.media[0].resize(60);  // its header stands
  return sample;
}

absl::Status Check(const DataConfig& config, const Samples& a, const Samples& b) {
  return CheckSources(*MakePlanner(
      config, {{"a", std::make_shared<FakeStore>(a)}, {"b", std::make_shared<FakeStore>(b)}}));
}

TEST(CheckSourcesTest, OneSoundSampleIsEnough) {
  const DataConfig config = TestConfig({{"a", 1}, {"b", 1}});
  EXPECT_TRUE(
      Check(config, {Unreadable(), Undecodable(), Question("a", "b")}, {Picture(28, 28, 3)}).ok());
}

TEST(CheckSourcesTest, ASourceWithoutOneIsNamedWithItsFirstFault) {
  const DataConfig config = TestConfig({{"a", 1}, {"b", 1}});
  const Samples sound = {Question("a", "b")};
  const absl::Status unreadable = Check(config, sound, {Unreadable(), Undecodable()});
  EXPECT_EQ(unreadable.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(unreadable.message()), HasSubstr("data source \"b\" (b): none of its 2"));
  EXPECT_THAT(std::string(unreadable.message()), HasSubstr("fake.tar:0 is broken: not JSON"));
  const absl::Status undecodable = Check(config, {Undecodable()}, sound);
  EXPECT_THAT(std::string(undecodable.message()), HasSubstr("\"a\" (a): none of its 1"));
  EXPECT_THAT(std::string(undecodable.message()), HasSubstr("fake.tar:0: medium 0: corrupt PNG"));
  EXPECT_THAT(std::string(Check(config, {}, sound).message()), HasSubstr("it is empty"));
}

TEST(CheckSourcesTest, OnlySourcesThatAreDrawnFromCount) {
  DataConfig config = TestConfig({{"a", 1}, {"b", 0}});
  EXPECT_TRUE(Check(config, {Question("a", "b")}, {Unreadable()}).ok());
  config.phases = {{.until_step = 3, .weights = {{"b", 1}}}};
  EXPECT_FALSE(Check(config, {Question("a", "b")}, {Unreadable()}).ok());
}

class CheckStoredSourcesTest : public StoreFixture {};

TEST_F(CheckStoredSourcesTest, StorageThatFailsIsNoFaultOfTheSource) {
  const std::string shard = WriteTar(
      "a.tar", {{"0.json", ImageAndSound()}, {"0.0.png", Png(28, 28)}, {"0.1.wav", Wav(800)}});
  std::shared_ptr<const SampleStore> store = OpenSource(shard).value();
  const auto planner = MakePlanner(TestConfig({{"a", 1}}), {{"a", store}});
  EXPECT_EQ(CheckSources(*planner), absl::OkStatus());
  std::filesystem::remove(shard);
  const absl::Status status = CheckSources(*planner);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("a.tar:0: "));
}

}  // namespace
}  // namespace omni::dataloader
