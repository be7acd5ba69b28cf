// A checkpoint loaded by all ranks together: each byte of it is read once over the job, whatever
// the layout; what is damaged is named alike on all ranks; and storage may be as slow as it likes.
#include "trainer/shared_load.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <numeric>

#include "absl/time/clock.h"
#include "runtime/base/status.h"
#include "runtime/comm/progress_of.h"
#include "tests/support/checkpoints.h"
#include "tests/support/run_ranks.h"

namespace omni {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int64_t kRows = 37, kCols = 23;

// Cuts of a matrix "w" [37, 23] and a vector "v" [101] over ranks: flat, or "w" by columns.
class SharedLoadTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "/shared_" +
              ::testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    std::iota(w_.begin(), w_.end(), 0.5f);
    std::iota(v_.begin(), v_.end(), 1000.0f);
  }

  // What a rank holds, over memory of its own.
  struct Part {
    std::vector<std::vector<float>> memory;
    std::vector<TensorRange> ranges;
    std::vector<std::vector<float>> expected;

    void Add(const std::string& name, std::vector<int64_t> shape, int64_t begin,
             absl::Span<const float> values) {
      memory.emplace_back(values.begin(), values.end());
      expected.push_back(memory.back());
      ranges.push_back({name, std::move(shape), begin, {}});
    }
    std::vector<TensorRange>& Finish(bool clear) {
      for (size_t i = 0; i < ranges.size(); ++i) {
        if (clear) std::fill(memory[i].begin(), memory[i].end(), -1.0f);
        ranges[i].data = TensorView::Dense(memory[i].data(), DType::kFloat32, DeviceKind::kCpu,
                                           {static_cast<int64_t>(memory[i].size())});
      }
      return ranges;
    }
  };

  Part PartOf(int32_t rank, int32_t ranks, bool columns) {
    Part part;
    const auto cut = [&](int64_t n, int32_t r) { return n * r / ranks; };
    if (columns) {
      const int64_t begin = cut(kCols, rank), end = cut(kCols, rank + 1);
      for (int64_t row = 0; row < kRows && end > begin; ++row) {
        part.Add("w", {kRows, kCols}, row * kCols + begin,
                 absl::MakeSpan(w_).subspan(row * kCols + begin, end - begin));
      }
    } else {
      const int64_t begin = cut(kRows * kCols, rank), end = cut(kRows * kCols, rank + 1);
      part.Add("w", {kRows, kCols}, begin, absl::MakeSpan(w_).subspan(begin, end - begin));
    }
    const int64_t begin = cut(101, rank), end = cut(101, rank + 1);
    part.Add("v", {101}, begin, absl::MakeSpan(v_).subspan(begin, end - begin));
    return part;
  }

  std::string Save(int32_t ranks, bool columns) {
    std::vector<std::unique_ptr<CheckpointWriter>> writers;
    for (int32_t rank = 0; rank < ranks; ++rank) {
      Part part = PartOf(rank, ranks, columns);
      writers.push_back(std::make_unique<CheckpointWriter>(folder_, rank, ranks, 1));
      writers.back()->Begin(7, part.Finish(/*clear=*/false), "{\"at\": 7}");
    }
    for (auto& writer : writers) writer->WaitWritten();
    EXPECT_EQ(writers[0]->Commit(), absl::OkStatus());
    for (auto& writer : writers) EXPECT_EQ(writer->Finish(), absl::OkStatus());
    return CheckpointsIn(folder_).back().second;
  }

  // Loads on `ranks` ranks; every rank its part and, like values that all hold, the whole of "v".
  std::vector<absl::Status> Load(const std::string& path, int32_t ranks, bool columns,
                                 const std::function<absl::Status(int32_t rank)>& on_block = {},
                                 CommOptions comm_options = {.deadline = absl::Minutes(1)}) {
    std::vector<absl::Status> statuses(ranks);
    const absl::Status ran = test::RunRanks(
        ranks, "shm",
        [&](Communicator& comm, int32_t rank) {
          const SharedLoadOptions options = {
              .comm = &comm,
              .limit = comm_options.deadline,
              .on_block = [&](absl::string_view file, absl::string_view block) {
                {
                  const std::lock_guard<std::mutex> lock(mutex_);
                  read_[fs::path(std::string(file)).filename().string()] += block.size();
                }
                if (on_block) OMNI_RETURN_IF_ERROR(on_block(rank));
                ProgressOf(comm)->Tick();
                return absl::OkStatus();
              }};
          statuses[rank] = LoadOnRank(path, rank, ranks, columns, options);
          return absl::OkStatus();
        },
        comm_options);
    EXPECT_EQ(ran, absl::OkStatus());
    return statuses;
  }

  absl::Status LoadOnRank(const std::string& path, int32_t rank, int32_t ranks, bool columns,
                          const SharedLoadOptions& options) {
    OMNI_ASSIGN_OR_RETURN(const auto index, ShareIndex(path, options));
    EXPECT_EQ(index->state(), "{\"at\": 7}");
    Part part = PartOf(rank, ranks, columns);
    part.Add("v", {101}, 0, v_);
    OMNI_RETURN_IF_ERROR(LoadShared(*index, part.Finish(/*clear=*/true), options));
    EXPECT_EQ(part.memory, part.expected) << "rank " << rank << " of " << ranks;
    return absl::OkStatus();
  }

  void ExpectAllReadOnce(const std::string& path) {
    for (const auto& entry : fs::directory_iterator(path)) {
      EXPECT_EQ(read_[entry.path().filename().string()],
                static_cast<int64_t>(fs::file_size(entry.path())))
          << entry.path();
    }
  }

  std::string folder_;
  std::vector<float> w_ = std::vector<float>(kRows * kCols), v_ = std::vector<float>(101);
  std::mutex mutex_;
  std::map<std::string, int64_t> read_;  // bytes by file, over all ranks
};

TEST_F(SharedLoadTest, EveryByteIsReadOnceByTheJobWhateverTheLayout) {
  for (const bool saved_columns : {false, true}) {
    for (const int32_t saved : {1, 2, 5}) {
      const std::string path = Save(saved, saved_columns);
      for (const bool columns : {false, true}) {
        for (const int32_t loading : {1, 2, 3, 7}) {
          SCOPED_TRACE(absl::StrCat(saved, " ranks saved, ", loading, " load"));
          read_.clear();
          for (const absl::Status& status : Load(path, loading, columns)) {
            EXPECT_EQ(status, absl::OkStatus());
          }
          ExpectAllReadOnce(path);
        }
      }
    }
  }
}

TEST_F(SharedLoadTest, AFlippedBitIsNamedAlikeOnAllRanks) {
  const std::string path = Save(3, false);
  std::fstream file(path + "/rank-00002.safetensors",
                    std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(-1, std::ios::end);
  file.put('\x7f');
  file.close();
  for (const int32_t loading : {1, 2, 3}) {
    const auto statuses = Load(path, loading, false);
    for (const absl::Status& status : statuses) {
      EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
      EXPECT_THAT(std::string(status.message()), HasSubstr("rank-00002.safetensors: checksum"));
      EXPECT_EQ(status, statuses[0]);
    }
  }
}

TEST_F(SharedLoadTest, TornAndMissingFilesAreNamedAlikeOnAllRanks) {
  std::string path = Save(2, false);
  fs::resize_file(path + "/rank-00001.safetensors", 40);
  for (const absl::Status& status : Load(path, 2, false)) {
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("rank-00001.safetensors: holds 40 bytes, the manifest says"));
  }
  fs::remove(path + "/rank-00001.safetensors");
  for (const absl::Status& status : Load(path, 2, false)) {
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(status.message()), HasSubstr("No such file"));
  }
  fs::remove(path + "/manifest.json");
  for (const absl::Status& status : Load(path, 2, false)) {
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  }
}

// Storage that fails is no damage: another checkpoint would lie on it, too.
TEST_F(SharedLoadTest, AStorageThatFailsIsUnavailable) {
  const std::string path = Save(2, false);
  const auto statuses = Load(path, 2, false, [](int32_t rank) {
    return rank == 1 ? absl::UnavailableError("Input/output error") : absl::OkStatus();
  });
  for (const absl::Status& status : statuses) {
    EXPECT_EQ(status, absl::UnavailableError("Input/output error"));
  }
}

// Several deadlines on one rank, next to nothing on the others.
TEST_F(SharedLoadTest, MaySlowlyAndUnevenlyTakeLongerThanTheDeadline) {
  constexpr absl::Duration kDeadline = absl::Seconds(1);
  const std::string path = Save(3, true);
  std::atomic<int> blocks{0};
  const absl::Time begin = absl::Now();
  const auto statuses = Load(path, 3, true,
                             [&](int32_t rank) {
                               if (rank == 0) {
                                 ++blocks;
                                 absl::SleepFor(kDeadline * 2 / 3);
                               }
                               return absl::OkStatus();
                             },
                             {.deadline = kDeadline});
  for (const absl::Status& status : statuses) EXPECT_EQ(status, absl::OkStatus());
  EXPECT_GE(blocks, 4);  // manifest, state, shard and its end
  EXPECT_GT(absl::Now() - begin, 2 * kDeadline);
}

TEST_F(SharedLoadTest, WhatTheModelExpectsOtherwiseIsNamedBeforeAnythingIsRead) {
  const std::string path = Save(2, false);
  const absl::Status ran = test::RunRanks(2, "shm", [&](Communicator& comm, int32_t) {
    const SharedLoadOptions options = {.comm = &comm};
    const auto index = ShareIndex(path, options);
    std::vector<float> data(4);
    const auto view = TensorView::Dense(data.data(), DType::kFloat32, DeviceKind::kCpu, {4});
    const TensorRange range = {"w", {23, 37}, 0, view};
    const absl::Status status = LoadShared(**index, {range}, options);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("\"w\" has shape [37, 23]"), HasSubstr("expects [23, 37]")));
    return absl::OkStatus();
  });
  EXPECT_EQ(ran, absl::OkStatus());
}

}  // namespace
}  // namespace omni
