// What single parts hold, and how much they ever need, counted in bytes of malloc.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "dataloader/formats/sample_store.h"
#include "dataloader/media/encode.h"
#include "dataloader/media/patches.h"
#include "dataloader/media/video.h"
#include "runtime/base/check.h"
#include "runtime/base/file.h"
#include "runtime/checkpoint/checkpoint.h"
#include "tests/memory/system_memory.h"

namespace omni {
namespace {

namespace fs = std::filesystem;
using dataloader::VideoPlugin;

class HoldersMemoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "/holders_XXXXXX";
    OMNI_CHECK(mkdtemp(folder_.data()) != nullptr);
  }
  void TearDown() override { fs::remove_all(folder_); }

  static int64_t Live() { return test::ReadSystemUse().live_bytes; }
  // The most there was beside what was there before.
  static int64_t PeakOf(const std::function<void()>& fn) {
    const int64_t before = Live();
    test::ResetPeak();
    fn();
    return test::PeakLiveBytes() - before;
  }

  std::string folder_;
};

TEST_F(HoldersMemoryTest, AJsonFileOfManyRows) {
  constexpr int64_t kRows = 1000000;
  const std::string path = folder_ + "/a.jsonl";
  {
    std::ofstream file(path);
    for (int64_t i = 0; i < kRows; ++i) file << "{\"text\":\"" << i << "\"}\n";
  }
  const int64_t before = Live();
  std::unique_ptr<dataloader::SampleStore> store;
  const int64_t peak = PeakOf([&] { store = dataloader::OpenSource(path).value(); });
  ASSERT_EQ(store->num_samples(), kRows);
  EXPECT_LT(Live() - before, 6 * kRows);
  EXPECT_LT(peak, 6 * kRows + (4 << 20));  // also while it is looked through
  for (const int64_t row : {int64_t{0}, kRows / 3, kRows - 1}) {
    EXPECT_EQ(store->LoadConversation(row)->messages[0].parts[0].text, absl::StrCat(row));
    EXPECT_EQ(store->sample_id(row), absl::StrCat(path, ":", row + 1));
  }
}

TEST_F(HoldersMemoryTest, SizesOfMediaOfManySamples) {
  constexpr int64_t kRows = 400000;
  const std::string path = folder_ + "/a.jsonl";
  {
    std::ofstream file(path);
    for (int64_t i = 0; i < kRows; ++i)
      file << R"({"query":"<image>","response":"y","images":["a.png"]})"
           << "\n";
  }
  dataloader::Image image{.size = {3, 4}};
  image.rgb.assign(36, 7);
  ASSERT_TRUE(WriteFileAtomically(folder_ + "/a.png", dataloader::EncodePng(image).value()).ok());
  const auto store = dataloader::OpenSource(path).value();
  const int64_t before = Live();
  for (int64_t i = 0; i < kRows; ++i) ASSERT_EQ(store->Metadata(i)->media[0].width, 4);
  EXPECT_LT(Live() - before, int64_t{60} << 20);
  EXPECT_LE(store->held_bytes(), store->max_held_bytes());
}

// The copy of a save is no longer there when the save has ended.
TEST_F(HoldersMemoryTest, ASave) {
  std::vector<float> values(int64_t{4} << 20, 1.0f);
  const std::vector<TensorRange> ranges = {
      {"w",
       {4 << 20},
       0,
       TensorView::Dense(values.data(), DType::kFloat32, DeviceKind::kCpu, {4 << 20})}};
  CheckpointWriter writer(folder_, 0, 1, 2);
  const int64_t before = Live();
  for (const int64_t step : {1, 2}) {
    writer.Begin(step, ranges, "{}");
    writer.WaitWritten();
    ASSERT_TRUE(writer.Commit().ok());
    ASSERT_TRUE(writer.Finish().ok());
  }
  EXPECT_LT(Live() - before, 1 << 20);
}

// Frames come and go: a clip of four times as many needs no more.
TEST_F(HoldersMemoryTest, AClip) {
  const auto plugin = VideoPlugin::Load();
  ASSERT_TRUE(plugin.ok()) << plugin.status();
  const dataloader::ImageSize size{448, 448};
  const int64_t frame_bytes = 448 * 448 * 3;
  std::vector<int64_t> peaks;
  for (const int32_t num_frames : {16, 64}) {
    std::vector<uint8_t> frames(num_frames * frame_bytes);
    for (size_t i = 0; i < frames.size(); ++i)
      frames[i] = static_cast<uint8_t>(i / 448 + i / frame_bytes);
    const std::string bytes = (*plugin)->Encode(frames, size, {.fps = 8}).value();
    const dataloader::MediaInfo info = (*plugin)->Probe(bytes).value();
    const dataloader::VideoOptions options{.fps = 8, .max_pixels = 448 * 448};
    const dataloader::VideoPlan plan = dataloader::PlanVideo(info, options).value();
    ASSERT_EQ(plan.frame_indices.size(), static_cast<size_t>(num_frames));
    std::vector<uint8_t> rows(plan.grid.num_rows() * options.geometry.row_elements());
    peaks.push_back(PeakOf([&] {
      OMNI_CHECK_OK(
          dataloader::VideoToPatches(**plugin, bytes, info, plan, options, absl::MakeSpan(rows)));
    }));
    // Of which a rank may want a part: the same bytes.
    for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 7},
                                     {1000, 3001},
                                     {plan.grid.num_rows() - 1, plan.grid.num_rows()}}) {
      std::vector<uint8_t> part((end - begin) * options.geometry.row_elements());
      OMNI_CHECK_OK(dataloader::VideoToPatches(**plugin, bytes, info, plan, options, {begin, end},
                                               absl::MakeSpan(part)));
      EXPECT_TRUE(std::equal(part.begin(), part.end(),
                             rows.begin() + begin * options.geometry.row_elements()));
    }
    // And as the whole clip's frames give them.
    std::vector<uint8_t> rgb(num_frames * frame_bytes), whole(rows.size());
    OMNI_CHECK_OK(
        (*plugin)->Decode(bytes, plan.frame_indices, plan.size, absl::MakeSpan(rgb), nullptr));
    dataloader::PackPatches(rgb, /*repeat_frame=*/false, options.geometry, plan.grid,
                            absl::MakeSpan(whole));
    EXPECT_TRUE(rows == whole);
  }
  EXPECT_LT(peaks[1], peaks[0] + 4 * frame_bytes);
  EXPECT_LT(peaks[1], 32 * frame_bytes);
}

// A picture that several ranks encode: each has its pixels once, and its own rows.
TEST_F(HoldersMemoryTest, APartOfAPicture) {
  dataloader::Image image{.size = {1120, 1120}};
  image.rgb.resize(int64_t{1120} * 1120 * 3);
  for (size_t i = 0; i < image.rgb.size(); ++i)
    image.rgb[i] = static_cast<uint8_t>(i * 7 / 5 + i / 3360);
  const std::string bytes = dataloader::EncodePng(image).value();
  const dataloader::ImageOptions options{.max_pixels = 1120 * 1120};
  const dataloader::PatchGrid grid = dataloader::ImageGrid(image.size, options).value();
  const int64_t row_bytes = options.geometry.row_elements();
  std::vector<uint8_t> whole(grid.num_rows() * row_bytes);
  ASSERT_TRUE(ImageToPatches(bytes, options, grid, absl::MakeSpan(whole)).ok());
  for (const auto& [begin, end] :
       {std::pair<int64_t, int64_t>{0, 1600}, {1600, 3201}, {6399, 6400}, {5, 5}}) {
    std::vector<uint8_t> part((end - begin) * row_bytes);
    ASSERT_TRUE(ImageToPatches(bytes, options, grid, {begin, end}, absl::MakeSpan(part)).ok());
    EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + begin * row_bytes));
  }
}

}  // namespace
}  // namespace omni
