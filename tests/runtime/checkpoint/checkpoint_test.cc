#include "runtime/checkpoint/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <memory>
#include <numeric>
#include <thread>

#include "tests/support/checkpoints.h"

namespace omni {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

// Two tensors, "w" [4, 5] and "m" [3], cut over any number of ranks.
class CheckpointTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "/ckpt_" +
              ::testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    std::iota(w_.begin(), w_.end(), 0.5f);
    std::iota(m_.begin(), m_.end(), 100.0f);
  }

  std::vector<TensorRange> Ranges(int32_t rank, int32_t num_ranks) {
    std::vector<TensorRange> ranges;
    const auto add = [&](const std::string& name, std::vector<float>& data,
                         std::vector<int64_t> shape) {
      const int64_t n = static_cast<int64_t>(data.size());
      const int64_t begin = n * rank / num_ranks, end = n * (rank + 1) / num_ranks;
      ranges.push_back({name, shape, begin,
                        TensorView::Dense(data.data() + begin, DType::kFloat32, DeviceKind::kCpu,
                                          {end - begin})});
    };
    add("w", w_, {4, 5});
    add("m", m_, {3});
    return ranges;
  }

  void Save(int64_t step, int32_t num_ranks, int32_t keep = 0) {
    std::vector<std::unique_ptr<CheckpointWriter>> writers;
    for (int32_t rank = 0; rank < num_ranks; ++rank) {
      writers.push_back(std::make_unique<CheckpointWriter>(folder_, rank, num_ranks, keep));
      writers.back()->Begin(step, Ranges(rank, num_ranks), "{\"cursor\": 7}");
    }
    for (auto& writer : writers) writer->WaitWritten();
    ASSERT_TRUE(writers[0]->Commit().ok());
    for (auto& writer : writers) ASSERT_TRUE(writer->Finish().ok());
  }

  std::string folder_;
  std::vector<float> w_ = std::vector<float>(20), m_ = std::vector<float>(3);
};

TEST_F(CheckpointTest, AnyNumberOfRanksLoadsWhatAnyOtherSaved) {
  for (const int32_t saved : {1, 2, 3, 5}) {
    Save(saved, saved);
    const auto checkpoint = Checkpoint::Open(CheckpointsIn(folder_).back().second);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    EXPECT_EQ((*checkpoint)->step(), saved);
    EXPECT_EQ((*checkpoint)->state(), "{\"cursor\": 7}");
    for (const int32_t loading : {1, 2, 4, 7}) {
      for (int32_t rank = 0; rank < loading; ++rank) {
        for (TensorRange range : Ranges(rank, loading)) {
          std::vector<float> read(range.data.num_elements(), -1.0f);
          const auto* expected = static_cast<const float*>(range.data.data);
          const std::vector<float> wanted(expected, expected + read.size());
          range.data.data = read.data();
          ASSERT_TRUE((*checkpoint)->Read(range).ok());
          EXPECT_EQ(read, wanted);
        }
      }
    }
  }
}

TEST_F(CheckpointTest, TheCopyLivesAsLongAsTheSave) {
  std::vector<float> large(int64_t{3} << 20, 1.5f), constant(int64_t{1} << 20, 2.5f);
  const auto view = [](std::vector<float>& data) {
    return TensorView::Dense(data.data(), DType::kFloat32, DeviceKind::kCpu,
                             {static_cast<int64_t>(data.size())});
  };
  const std::vector<TensorRange> ranges = {
      {"large", {3 << 20}, 0, view(large)},
      {"constant", {1 << 20}, 0, view(constant), /*is_constant=*/true}};
  CheckpointWriter writer(folder_, 0, 1, 0);
  EXPECT_EQ(writer.held_bytes(), 0);
  writer.Begin(1, ranges, "{}");
  EXPECT_LE(writer.held_bytes(), 12 << 20);  // less what is written already; not the constant one
  large.assign(large.size(), -1.0f);         // training goes on
  writer.WaitWritten();
  EXPECT_EQ(writer.held_bytes(), 0);
  ASSERT_TRUE(writer.Commit().ok());
  ASSERT_TRUE(writer.Finish().ok());
  const auto checkpoint = Checkpoint::Open(CheckpointsIn(folder_).back().second);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  for (const auto& [name, value] : {std::pair{"large", 1.5f}, {"constant", 2.5f}}) {
    std::vector<float> read((*checkpoint)->Shape(name).value()[0]);
    const auto status =
        (*checkpoint)->Read({name, {static_cast<int64_t>(read.size())}, 0, view(read)});
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(read, std::vector<float>(read.size(), value));
  }
}

TEST(SnapshotTest, GivesBackWhatIsWritten) {
  std::vector<float> a(10000, 1.0f), b(5000, 2.0f), fixed(100, 3.0f);
  const auto view = [](std::vector<float>& data) {
    return TensorView::Dense(data.data(), DType::kFloat32, DeviceKind::kCpu,
                             {static_cast<int64_t>(data.size())});
  };
  Snapshot snapshot;
  const std::vector<TensorRange> ranges = {{"a", {10000}, 0, view(a)},
                                           {"fixed", {100}, 0, view(fixed), true},
                                           {"b", {5000}, 0, view(b)}};
  EXPECT_EQ(Snapshot::BytesOf(ranges), 60000);
  ASSERT_TRUE(snapshot.Take(ranges).ok());
  EXPECT_EQ(snapshot.held_bytes(), 60000);
  EXPECT_EQ(snapshot.ranges()[1].data.data, fixed.data());
  EXPECT_NE(snapshot.ranges()[0].data.data, a.data());
  snapshot.ReleaseThrough(0);  // whole pages of it
  EXPECT_LE(snapshot.held_bytes(), 60000 - 9 * 4096);
  EXPECT_EQ(static_cast<const float*>(snapshot.ranges()[2].data.data)[4999], 2.0f);
  snapshot.ReleaseThrough(1);
  snapshot.ReleaseThrough(2);
  EXPECT_EQ(snapshot.held_bytes(), 0);
  ASSERT_TRUE(snapshot.Take({}).ok());
}

// Columns [begin, end) of "w", a range a row.
std::vector<TensorRange> Columns(const std::vector<float>& w, int64_t begin, int64_t end,
                                 std::vector<float>* held) {
  held->clear();
  for (int64_t row = 0; row < 4; ++row) {
    held->insert(held->end(), w.begin() + row * 5 + begin, w.begin() + row * 5 + end);
  }
  std::vector<TensorRange> ranges;
  for (int64_t row = 0; row < 4; ++row) {
    ranges.push_back({"w",
                      {4, 5},
                      row * 5 + begin,
                      TensorView::Dense(held->data() + row * (end - begin), DType::kFloat32,
                                        DeviceKind::kCpu, {end - begin})});
  }
  return ranges;
}

TEST_F(CheckpointTest, ColumnsAreOneEntryAndLoadAsAnythingElse) {
  std::vector<std::unique_ptr<CheckpointWriter>> writers;
  std::vector<float> held;
  for (const auto& [begin, end] : {std::pair{0, 2}, {2, 3}, {3, 5}}) {
    const auto rank = static_cast<int32_t>(writers.size());
    writers.push_back(std::make_unique<CheckpointWriter>(folder_, rank, 3, 0));
    writers.back()->Begin(9, Columns(w_, begin, end, &held), "{}");
  }
  for (auto& writer : writers) writer->WaitWritten();
  ASSERT_TRUE(writers[0]->Commit().ok());
  for (auto& writer : writers) ASSERT_TRUE(writer->Finish().ok());
  const std::string path = CheckpointsIn(folder_).back().second;
  const auto file = *SafetensorsFile::Open(path + "/rank-00002.safetensors");
  EXPECT_EQ(file->names(), std::vector<std::string>{"w@3"});

  const auto checkpoint = Checkpoint::Open(path);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  for (int64_t begin = 0; begin <= 20; ++begin) {
    for (int64_t end = begin; end <= 20; ++end) {
      std::vector<float> read(end - begin, -1.0f);
      const auto view =
          TensorView::Dense(read.data(), DType::kFloat32, DeviceKind::kCpu, {end - begin});
      const absl::Status status = (*checkpoint)->Read({"w", {4, 5}, begin, view});
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_EQ(read, std::vector<float>(w_.begin() + begin, w_.begin() + end));
    }
  }
}

TEST_F(CheckpointTest, MissingColumnsAndUnlikelyRunsAreNoticed) {
  std::vector<float> held, read(20);
  const TensorRange whole = {
      "w", {4, 5}, 0, TensorView::Dense(read.data(), DType::kFloat32, DeviceKind::kCpu, {20})};
  CheckpointWriter writer(folder_, 0, 1, 0);
  writer.Begin(9, Columns(w_, 0, 4, &held), "{}");
  writer.WaitWritten();
  ASSERT_TRUE(writer.Commit().ok());
  const std::string path = CheckpointsIn(folder_).back().second;
  EXPECT_THAT(std::string((*Checkpoint::Open(path))->Read(whole).message()),
              HasSubstr("\"w\" lacks elements 4 to 20"));
  std::ifstream in(path + "/manifest.json");
  const std::string manifest((std::istreambuf_iterator<char>(in)), {});
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string changed = manifest;
    const size_t at = changed.find(from);
    EXPECT_NE(at, std::string::npos) << manifest;
    std::ofstream(path + "/manifest.json") << changed.replace(at, from.size(), to);
    const auto checkpoint = Checkpoint::Open(path);
    return checkpoint.ok() ? (*checkpoint)->Read(whole) : checkpoint.status();
  };
  EXPECT_THAT(std::string(with("\"stride\": 5", "\"stride\": 0").message()),
              HasSubstr("\"w@0\" has runs of 4 elements at a distance of 0"));
  EXPECT_THAT(std::string(with("\"count\": 4", "\"count\": 5").message()),
              HasSubstr("\"w@0\" has 16 elements, the manifest says 20"));
}

TEST_F(CheckpointTest, ReadConvertsBetweenFloatTypes) {
  Save(1, 2);
  const auto checkpoint = *Checkpoint::Open(CheckpointsIn(folder_).back().second);
  std::vector<double> wide(20);
  ASSERT_TRUE(checkpoint
                  ->Read({"w",
                          {4, 5},
                          0,
                          TensorView::Dense(wide.data(), DType::kFloat64, DeviceKind::kCpu, {20})})
                  .ok());
  EXPECT_EQ(wide[19], 19.5);
}

TEST_F(CheckpointTest, OtherShapeAndMissingTensorAreNamed) {
  Save(1, 1);
  const auto checkpoint = *Checkpoint::Open(CheckpointsIn(folder_).back().second);
  std::vector<float> data(20);
  const auto view = TensorView::Dense(data.data(), DType::kFloat32, DeviceKind::kCpu, {20});
  EXPECT_THAT(std::string(checkpoint->Read({"w", {5, 4}, 0, view}).message()),
              HasSubstr("has shape [4, 5], the model expects [5, 4]"));
  EXPECT_EQ(checkpoint->Read({"ww", {4, 5}, 0, view}).code(), absl::StatusCode::kNotFound);
}

TEST_F(CheckpointTest, WithoutCommitThereIsNoCheckpoint) {
  CheckpointWriter writer(folder_, 0, 1, 0);
  writer.Begin(3, Ranges(0, 1), "{}");
  writer.WaitWritten();
  EXPECT_EQ(writer.progress(), CheckpointWriter::Progress::kWritten);
  EXPECT_TRUE(CheckpointsIn(folder_).empty());
  EXPECT_FALSE(fs::is_empty(folder_));
  RemovePartialCheckpoints(folder_);
  EXPECT_TRUE(fs::is_empty(folder_));
}

// What can't be listed may hold checkpoints. A link to itself fails for root, too.
TEST_F(CheckpointTest, AFolderThatCannotBeReadIsNotAnEmptyOne) {
  const std::string absent = folder_ + "/absent", loop = folder_ + "/loop";
  ASSERT_TRUE(ListCheckpoints(absent).ok());
  EXPECT_TRUE(CheckpointsIn(absent).empty());
  fs::create_symlink("loop", loop);
  const absl::Status status = ListCheckpoints(loop).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr(loop + ": can't be listed: "));
  EXPECT_EQ(PruneCheckpoints(loop, 1, 1).code(), absl::StatusCode::kUnavailable);
}

// An errno is the storage's fault: only what was read can be damaged.
TEST_F(CheckpointTest, AFileThatCannotBeOpenedIsNotADamagedOne) {
  for (const char* name : {"manifest.json", "state.json", "rank-00001.safetensors"}) {
    Save(1, 2);
    const std::string path = CheckpointsIn(folder_).back().second;
    fs::remove(absl::StrCat(path, "/", name));
    fs::create_symlink(name, absl::StrCat(path, "/", name));
    const absl::Status status = Checkpoint::Open(path).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(name));
    fs::remove_all(path);
  }
}

// Who resumes has read the state before, maybe of a checkpoint that is not the newest any more.
TEST_F(CheckpointTest, AStateReadBeforeIsTakenOnlyWhereTheManifestSaysSo) {
  Save(1, 1);
  const std::string path = CheckpointsIn(folder_).back().second;
  const auto reads_of_state = [&](const std::string& before) {
    int reads = 0;
    const auto texts = ReadCheckpointTexts(
        path,
        [&](absl::string_view file, absl::string_view) {
          reads += fs::path(std::string(file)).filename() == "state.json";
          return absl::OkStatus();
        },
        before);
    EXPECT_TRUE(texts.ok()) << texts.status();
    if (!texts.ok()) return -1;
    EXPECT_EQ(texts->state, "{\"cursor\": 7}") << before;
    EXPECT_TRUE(Checkpoint::Index(path, *texts).ok()) << before;
    return reads;
  };
  const int once = reads_of_state("");
  EXPECT_GT(once, 0);
  EXPECT_EQ(reads_of_state("{\"cursor\": 7}"), 0);
  EXPECT_EQ(reads_of_state("{\"cursor\": 8}"), once);  // as long
  EXPECT_EQ(reads_of_state("{\"cursor\": 77}"), once);
}

// Nor is what was read before a way round a manifest that is damaged.
TEST_F(CheckpointTest, AStateReadBeforeDoesNotHideADamagedManifest) {
  Save(1, 1);
  const std::string path = CheckpointsIn(folder_).back().second;
  for (const char* manifest : {"", "{", "[]", "{}", R"({"state": 1})", R"({"state": {}})",
                               R"({"state": {"bytes": "x", "xxh3": 1}})"}) {
    std::ofstream(path + "/manifest.json") << manifest;
    const auto texts = ReadCheckpointTexts(path, {}, "{\"cursor\": 7}");
    ASSERT_TRUE(texts.ok()) << texts.status();
    EXPECT_EQ(Checkpoint::Index(path, *texts).status().code(), absl::StatusCode::kDataLoss)
        << manifest;
  }
}

TEST_F(CheckpointTest, KeepsTheNewest) {
  for (int64_t step = 1; step <= 5; ++step) Save(step, 1, /*keep=*/2);
  const auto left = CheckpointsIn(folder_);
  ASSERT_EQ(left.size(), 2u);
  EXPECT_EQ(left[0].first, 4);
  EXPECT_EQ(left[1].first, 5);
}

// A resume that leaves out a damaged checkpoint saves steps before it: they are the newest then.
TEST_F(CheckpointTest, ADamagedLaterOneDoesNotPushOutAWholeOne) {
  Save(4, 1, /*keep=*/1);
  Save(6, 1, /*keep=*/0);
  fs::remove(CheckpointsIn(folder_).back().second + "/manifest.json");
  EXPECT_THAT(
      std::string(Checkpoint::Open(CheckpointsIn(folder_).back().second).status().message()),
      HasSubstr("step-00000006/manifest.json"));
  Save(5, 1, /*keep=*/1);
  const auto left = CheckpointsIn(folder_);
  ASSERT_EQ(left.size(), 2u);
  EXPECT_EQ(left[0].first, 5);
  EXPECT_TRUE(Checkpoint::Open(left[0].second).ok());
  Save(6, 1, /*keep=*/1);
  EXPECT_TRUE(Checkpoint::Open(CheckpointsIn(folder_).back().second).ok());
  EXPECT_EQ(CheckpointsIn(folder_).size(), 1u);
}

TEST_F(CheckpointTest, AFlippedBitIsNoticed) {
  Save(1, 2);
  const std::string path = CheckpointsIn(folder_).back().second;
  std::fstream file(path + "/rank-00001.safetensors",
                    std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(-1, std::ios::end);
  file.put('\x7f');
  file.close();
  const auto status = Checkpoint::Open(path).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank-00001.safetensors: checksum"));
}

TEST_F(CheckpointTest, ATornShardIsNoticed) {
  Save(1, 2);
  const std::string path = CheckpointsIn(folder_).back().second;
  fs::resize_file(path + "/rank-00000.safetensors", 40);
  EXPECT_THAT(std::string(Checkpoint::Open(path).status().message()), HasSubstr("holds 40 bytes"));
  fs::remove(path + "/rank-00000.safetensors");
  EXPECT_EQ(Checkpoint::Open(path).status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(CheckpointTest, ATornPartIsAnErrorOfTheCommit) {
  CheckpointWriter writer(folder_, 0, 1, 0);
  writer.Begin(3, Ranges(0, 1), "{}");
  writer.WaitWritten();
  const std::string part = folder_ + "/step-00000003.partial/rank-00000.safetensors.part.json";
  for (const auto size : {fs::file_size(part) / 2, uintmax_t{0}}) {
    fs::resize_file(part, size);
    const absl::Status status = writer.Commit();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(status.message()), HasSubstr("part.json: is torn"));
  }
  EXPECT_TRUE(CheckpointsIn(folder_).empty());
}

// Its blocks are what others see of it, and the bytes of its checksum.
TEST_F(CheckpointTest, BlocksOfAWriteAreToldAndGrowItsProgress) {
  int64_t bytes = 0;
  CheckpointWriter writer(folder_, 0, 1, 0, [&](absl::string_view, absl::string_view block) {
    bytes += static_cast<int64_t>(block.size());
    return absl::OkStatus();
  });
  writer.Begin(3, Ranges(0, 1), "{}");
  writer.WaitWritten();
  EXPECT_GT(writer.blocks().count(), 0);
  ASSERT_TRUE(writer.Finish().ok());
  const std::string shard = folder_ + "/step-00000003.partial/rank-00000.safetensors";
  EXPECT_EQ(bytes, static_cast<int64_t>(fs::file_size(shard)));
}

// As a full disk would be: but it stays away for good.
TEST_F(CheckpointTest, AWriteThatStallsIsAbandonedAndTheNextOneSaysSo) {
  const auto stalls = std::make_shared<std::atomic<bool>>(true);
  CheckpointWriter writer(folder_, 0, 1, 0, [stalls](absl::string_view, absl::string_view) {
    while (*stalls) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    return absl::OkStatus();
  });
  writer.Begin(3, Ranges(0, 1), "{}");
  EXPECT_EQ(writer.progress(), CheckpointWriter::Progress::kWriting);
  writer.Abandon(absl::UnavailableError("nothing moves"));
  EXPECT_EQ(writer.progress(), CheckpointWriter::Progress::kFailed);
  EXPECT_EQ(writer.Finish(), absl::UnavailableError("nothing moves"));
  writer.Begin(4, Ranges(0, 1), "{}");
  writer.WaitWritten();
  EXPECT_THAT(std::string(writer.Finish().message()), HasSubstr("earlier checkpoint"));
  *stalls = false;
  while (true) {
    writer.Begin(5, Ranges(0, 1), "{}");
    writer.WaitWritten();
    if (writer.Finish().ok()) break;
  }
}

TEST_F(CheckpointTest, AFolderThatCannotBeWrittenFailsTheSaveOnly) {
  std::ofstream(folder_ + "/blocked") << "a file where the folder should be";
  CheckpointWriter writer(folder_ + "/blocked", 0, 1, 0);
  writer.Begin(1, Ranges(0, 1), "{}");
  writer.WaitWritten();
  EXPECT_EQ(writer.progress(), CheckpointWriter::Progress::kFailed);
  EXPECT_FALSE(writer.Finish().ok());
  EXPECT_EQ(writer.progress(), CheckpointWriter::Progress::kIdle);
}

}  // namespace
}  // namespace omni
