#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "dataloader/formats/json_split.h"
#include "dataloader/formats/measured_media.h"
#include "dataloader/formats/sample_store.h"
#include "dataloader/formats/tar_index.h"
#include "runtime/base/file.h"
#include "tests/dataloader/formats/store_fixture.h"

namespace omni::dataloader {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class StoreTest : public StoreFixture {
 protected:
  void WriteShards() const {
    WriteTar("s-00001.tar", {{"b.json", R"({"text":"two"})"}, {"c.json", R"({"text":"three"})"}});
    WriteTar("s-00000.tar",
             {{"a.json", ImageAndSound()}, {"a.0.png", Png(20, 31)}, {"a.1.wav", Wav(800)}});
  }
};

TEST_F(StoreTest, AFolderOfShardsIsReadInOrderOfNames) {
  WriteShards();
  for (const std::string& path : {Path(""), Path("s-*.tar")}) {
    const std::unique_ptr<SampleStore> store = OpenSource(path).value();
    ASSERT_EQ(store->num_samples(), 3);
    EXPECT_EQ(store->sample_id(0), Path("s-00000.tar:a"));
    EXPECT_EQ(store->sample_id(2), Path("s-00001.tar:c"));
    const SampleMetadata metadata = store->Metadata(0).value();
    EXPECT_EQ(metadata.sample_id, store->sample_id(0));
    ASSERT_EQ(metadata.media.size(), 2u);
    EXPECT_EQ(metadata.media[0].width, 31);
    const Sample sample = store->Load(0).value();
    EXPECT_EQ(sample.media[0], Png(20, 31));
    EXPECT_EQ(sample.media[1], Wav(800));
    EXPECT_EQ(sample.media_info, metadata.media);
    EXPECT_EQ(sample.conversation.messages[1].parts[0].text, "47");
    EXPECT_EQ(store->Load(2)->conversation.messages[0].parts[0].text, "three");
    EXPECT_TRUE(absl::IsDataLoss(store->LoadMedia(0, 2).status()));
    EXPECT_TRUE(absl::IsDataLoss(store->LoadMedia(0, -1).status()));
  }
}

TEST_F(StoreTest, AMissingIndexIsBuiltUnlessTold) {
  const std::string tar = WriteTar("a.tar", {{"0.json", R"({"text":"x"})"}});
  const absl::Status refused = OpenSource(tar, {.build_missing_index = false}).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(refused));
  EXPECT_THAT(std::string(refused.message()), HasSubstr("omnitrain data index " + tar));
  EXPECT_FALSE(std::filesystem::exists(IndexPath(tar)));
  EXPECT_TRUE(OpenSource(tar).ok());
  EXPECT_TRUE(std::filesystem::exists(IndexPath(tar)));
  EXPECT_TRUE(OpenSource(tar, {.build_missing_index = false}).ok());
}

TEST_F(StoreTest, AStaleIndexIsRebuiltUnlessTold) {
  const std::string tar = WriteTar("a.tar", {{"0.json", R"({"text":"x"})"}});
  ASSERT_TRUE(OpenSource(tar).ok());
  WriteTar("a.tar", {{"0.json", R"({"text":"x"})"}, {"1.json", R"({"text":"y"})"}});
  const absl::Status refused = OpenSource(tar, {.build_missing_index = false}).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(refused));
  EXPECT_THAT(std::string(refused.message()), HasSubstr("is stale"));
  EXPECT_EQ(OpenSource(tar).value()->num_samples(), 2);
}

TEST_F(StoreTest, AShardLostWhileReadingTakesNoOtherWithIt) {
  WriteShards();
  const std::unique_ptr<SampleStore> store = OpenSource(Path("")).value();
  std::filesystem::remove(Path("s-00000.tar"));
  const absl::Status status = store->Load(0).status();
  EXPECT_TRUE(absl::IsUnavailable(status));  // see storage_test.cc
  EXPECT_THAT(std::string(status.message()), StartsWith(Path("s-00000.tar:a: ")));
  EXPECT_TRUE(store->Load(1).ok());
}

TEST_F(StoreTest, JsonLinesWithMediaBesideThem) {
  std::filesystem::create_directory(Path("media"));
  ASSERT_TRUE(WriteFileAtomically(Path("media/a.png"), Png(300, 200)).ok());
  ASSERT_TRUE(WriteFileAtomically(
                  Path("d.jsonl"),
                  "{\"query\":\"<image>?\",\"response\":\"y\",\"images\":[\"media/a.png\"]}\n"
                  "\n"
                  "{\"text\":\"plain\"}\r\n"
                  "{\"query\":\"<image>\",\"response\":\"n\",\"images\":[\"media/b.png\"]}")
                  .ok());
  const std::unique_ptr<SampleStore> store = OpenSource(Path("d.jsonl")).value();
  ASSERT_EQ(store->num_samples(), 3);
  EXPECT_EQ(store->sample_id(1), Path("d.jsonl:3"));
  for (int round = 0; round < 2; ++round) {  // measured, then remembered
    const SampleMetadata metadata = store->Metadata(0).value();
    EXPECT_EQ(metadata.media.at(0).height, 300);
  }
  EXPECT_EQ(store->Load(0)->media.at(0), Png(300, 200));
  EXPECT_EQ(store->Load(1)->conversation.messages[0].parts[0].text, "plain");
  const absl::Status lost = store->Metadata(2).status();
  EXPECT_TRUE(absl::IsDataLoss(lost));
  EXPECT_THAT(std::string(lost.message()), StartsWith(Path("d.jsonl:4: media/b.png: ")));
}

TEST_F(StoreTest, AJsonArray) {
  ASSERT_TRUE(WriteFileAtomically(Path("a.png"), Png(3, 4)).ok());
  ASSERT_TRUE(
      WriteFileAtomically(Path("d.json"),
                          "\xef\xbb\xbf [\n  {\"text\": \"a ] } \\\" b\"},\n"
                          "  {\"messages\": [{\"role\": \"user\", \"content\": \"<image>\"}],\n"
                          "   \"images\": [\"" +
                              Path("a.png") + "\"]}\n]\n")
          .ok());
  const std::unique_ptr<SampleStore> store = OpenSource(Path("d.json")).value();
  ASSERT_EQ(store->num_samples(), 2);
  EXPECT_EQ(store->sample_id(1), Path("d.json:3"));
  EXPECT_EQ(store->LoadConversation(0)->messages[0].parts[0].text, "a ] } \" b");
  EXPECT_EQ(store->Load(1)->media.at(0), Png(3, 4));
}

TEST_F(StoreTest, ManyThreadsMayReadOneStore) {
  WriteShards();
  const std::unique_ptr<SampleStore> store = OpenSource(Path("")).value();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 50; ++i) OMNI_CHECK(store->Load(i % 3).ok());
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(StoreTest, WhatIsNoSourceIsRefused) {
  EXPECT_TRUE(absl::IsNotFound(OpenSource(Path("none")).status()));
  EXPECT_TRUE(absl::IsNotFound(OpenSource(Path("none*.tar")).status()));
  EXPECT_TRUE(absl::IsNotFound(OpenSource(Path("")).status()));  // an empty folder
  ASSERT_TRUE(WriteFileAtomically(Path("a.txt"), "x").ok());
  EXPECT_TRUE(absl::IsInvalidArgument(OpenSource(Path("a.txt")).status()));
  EXPECT_THAT(std::string(OpenSource(Path("a.txt")).status().message()),
              HasSubstr("expected a .tar, .json or .jsonl file"));
}

absl::StatusOr<std::vector<JsonRange>> Split(absl::string_view text, size_t piece) {
  JsonSplitter splitter;
  for (size_t at = 0; at < text.size(); at += piece) {
    if (absl::Status status = splitter.Feed(text.substr(at, piece)); !status.ok()) return status;
  }
  const absl::StatusOr<RangeTable> table = splitter.Finish();
  if (!table.ok()) return table.status();
  std::vector<JsonRange> ranges;
  for (int64_t i = 0; i < table->size(); ++i) ranges.push_back(table->at(i));
  return ranges;
}

TEST(RangeTableTest, TellsEveryRangeAsItWasGiven) {
  for (const int64_t num_ranges : {0, 1, 31, 32, 33, 1000}) {
    RangeTable table;
    std::vector<JsonRange> ranges;
    int64_t offset = 3, line = 1;
    for (int64_t i = 0; i < num_ranges; ++i) {
      // Also samples of gigabytes, with as much between them.
      const int64_t size = i % 7 == 6 ? (int64_t{5} << 30) + i : 1 + i % 1000;
      ranges.push_back({.offset = offset, .size = size, .line = line});
      table.Append(ranges.back());
      offset += size + (i % 11 == 10 ? int64_t{1} << 40 : i % 4);
      line += i % 5 == 4 ? 100000 : i % 3;
    }
    ASSERT_EQ(table.size(), num_ranges);
    for (int64_t i = num_ranges - 1; i >= 0; --i) ASSERT_EQ(table.at(i), ranges[i]) << i;
  }
}

TEST(RangeTableTest, ARowOfALargeFileCostsFiveBytes) {
  RangeTable table;
  constexpr int64_t kRows = 1000000;
  for (int64_t i = 0; i < kRows; ++i)
    table.Append({.offset = i * 1400, .size = 1399, .line = i + 1});
  EXPECT_EQ(table.at(kRows - 1),
            (JsonRange{.offset = (kRows - 1) * 1400, .size = 1399, .line = kRows}));
  EXPECT_LE(table.held_bytes(), 5 * kRows);
}

TEST(MeasuredMediaTest, IsBoundedAndKeepsWhatItHas) {
  MeasuredMedia measured(64 << 10);
  const int32_t a = measured.NewFile(), b = measured.NewFile();
  const auto info = [](int32_t width) {
    return std::vector<MediaInfo>{{.kind = MediaKind::kImage, .height = 1, .width = width}};
  };
  for (int32_t i = 0; i < 100000; ++i) {
    measured.Keep(a, i, info(i));
    measured.Keep(b, i, info(-i));
  }
  EXPECT_LE(measured.held_bytes(), 64 << 10);
  EXPECT_EQ(measured.Find(a, 17), info(17));
  EXPECT_EQ(measured.Find(b, 17), info(-17));
  EXPECT_EQ(measured.Find(a, 99999), std::nullopt);
}

TEST_F(StoreTest, TablesOfJsonFilesAreCounted) {
  std::string lines;
  for (int i = 0; i < 2000; ++i)
    lines += "{\"query\":\"<image>\",\"response\":\"y\",\"images\":[\"a.png\"]}\n";
  ASSERT_TRUE(WriteFileAtomically(Path("a.png"), Png(3, 4)).ok());
  for (const char* name : {"a.jsonl", "b.jsonl"})
    ASSERT_TRUE(WriteFileAtomically(Path(name), lines).ok());
  const std::unique_ptr<SampleStore> store = OpenSource(Path("")).value();
  ASSERT_EQ(store->num_samples(), 4000);
  const int64_t opened = store->held_bytes();
  EXPECT_LE(opened, 5 * 4000);
  for (int64_t i = 0; i < 4000; ++i) ASSERT_TRUE(store->Metadata(i).ok());
  const int64_t measured = store->held_bytes();
  EXPECT_GT(measured, opened + 4000 * 48);
  EXPECT_LT(measured, opened + 4000 * 200);
  for (int64_t i = 0; i < 4000; ++i) ASSERT_TRUE(store->Metadata(i).ok());  // remembered
  EXPECT_EQ(store->held_bytes(), measured);
}

TEST(JsonSplitterTest, PiecesMayEndAnywhere) {
  const std::string text = "[ {\"a\": \"\\\\\\\"]\"}, [1, {\"b\": []}],\n 3 ]\n";
  for (size_t piece = 1; piece < 20; ++piece) {
    const std::vector<JsonRange> ranges = Split(text, piece).value();
    std::vector<std::string> elements;
    for (const JsonRange& range : ranges) elements.push_back(text.substr(range.offset, range.size));
    EXPECT_THAT(elements, ElementsAre("{\"a\": \"\\\\\\\"]\"}", "[1, {\"b\": []}]", "3"));
    EXPECT_EQ(ranges[2].line, 2);
  }
}

TEST(JsonSplitterTest, AnObjectPrintedForPeopleIsOneSample) {
  const std::string text = "{\n  \"messages\": [\n    {\n    }\n  ]\n}\n";
  JsonSplitter splitter;
  ASSERT_TRUE(splitter.Feed(text).ok());
  const auto ranges = splitter.Finish();
  ASSERT_TRUE(ranges.ok()) << ranges.status();
  ASSERT_EQ(ranges->size(), 1);
  EXPECT_EQ(ranges->at(0),
            (JsonRange{.offset = 0, .size = static_cast<int64_t>(text.size()) - 1, .line = 1}));
}

TEST(JsonSplitterTest, WhatIsNeitherIsRefusedWithItsLine) {
  const auto message = [](absl::string_view text) {
    return std::string(Split(text, 100).status().message());
  };
  EXPECT_THAT(message(""), HasSubstr("no samples"));
  EXPECT_THAT(message("\n \n"), HasSubstr("no samples"));
  EXPECT_THAT(message("[]"), HasSubstr("no samples"));
  EXPECT_THAT(message("hello"), HasSubstr("line 1: expected an array"));
  EXPECT_THAT(message("[{},\n{}"), HasSubstr("line 2: the array of samples is not closed"));
  EXPECT_THAT(message("[{},\n,{}]"), HasSubstr("line 2: found , where a sample"));
  EXPECT_THAT(message("[{},]"), HasSubstr("found ] where a sample"));
  EXPECT_THAT(message("[{}}]"), HasSubstr("line 1: unexpected }"));
  EXPECT_THAT(message("[{}]\n[{}]"), HasSubstr("line 2: something follows"));
}

}  // namespace
}  // namespace omni::dataloader
