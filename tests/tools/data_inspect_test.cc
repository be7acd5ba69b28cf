// One sample as the trainer sees it: pictures come back out of the packs as they went in, and the
// text says what has loss.
#include "tools/data_inspect.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "dataloader/formats/sample_store.h"
#include "dataloader/media/image.h"
#include "dataloader/media/video.h"
#include "runtime/base/file.h"
#include "tools/data_make.h"

namespace omni::tools {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class DataInspectTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    root_ = new std::string(absl::StrCat(testing::TempDir(), "/data_inspect_", getpid()));
    fs::create_directories(*root_);
    const absl::Status made = MakeQuickstartData({.out = *root_ + "/data", .scale = 1e-3});
    ASSERT_TRUE(made.ok()) << made;
  }
  static void TearDownTestSuite() {
    fs::remove_all(*root_);
    delete root_;
  }

  static DataInspectOptions Options(const std::string& source, int64_t index, bool heldout) {
    const std::string folder = *root_ + "/data/" + (heldout ? "heldout/" : "train/") + source;
    return {.recipe = absl::StrCat(OMNI_SOURCE_DIR, "/deploy/recipes/quickstart.yaml"),
            .overrides = {absl::StrCat("data.tokenizer=", *root_, "/data/tokenizer.model"),
                          absl::StrCat("data.", heldout ? "eval" : "sources", "=[{name: ", source,
                                       ", path: ", folder, "}]")},
            .source = source,
            .heldout = heldout,
            .index = index,
            .out = *root_ + "/out"};
  }
  static dataloader::Sample Stored(const std::string& split_source, int64_t index) {
    auto store = dataloader::OpenSource(absl::StrCat(*root_, "/data/", split_source));
    EXPECT_TRUE(store.ok()) << store.status();
    auto sample = (*store)->Load(index);
    EXPECT_TRUE(sample.ok()) << sample.status();
    return *std::move(sample);
  }
  static dataloader::Image Written(const std::string& name) {
    const auto bytes = ReadFile(absl::StrCat(*root_, "/out/", name));
    EXPECT_TRUE(bytes.ok()) << bytes.status();
    auto image = dataloader::DecodeImage(bytes.value_or(""));
    EXPECT_TRUE(image.ok()) << image.status();
    return image.ok() ? *std::move(image) : dataloader::Image();
  }
  static int LinesWithLoss(const std::string& report) {
    int count = 0;
    for (const auto line : absl::StrSplit(report, '\n')) {
      count += absl::StrContains(line, "  loss  ") && !absl::StrContains(line, "piece");
    }
    return count;
  }

  static std::string* root_;
};

std::string* DataInspectTest::root_ = nullptr;

TEST_F(DataInspectTest, PictureComesOutOfThePackAsItWentIn) {
  for (int64_t index = 0; index < 12; ++index) {  // several formats
    const auto report = InspectSample(Options("image", index, /*heldout=*/false));
    ASSERT_TRUE(report.ok()) << report.status();
    const dataloader::Sample sample = Stored("train/image", index);
    const auto expected = dataloader::DecodeImage(sample.media[0]);
    ASSERT_TRUE(expected.ok());
    const dataloader::Image written = Written(absl::StrCat("image-", index, ".0.png"));
    EXPECT_EQ(written.size, expected->size);
    EXPECT_TRUE(written.rgb == expected->rgb) << index;

    const bool is_word = sample.conversation.question == "word";
    EXPECT_THAT(*report, HasSubstr(absl::StrCat("question \"", is_word ? "word" : "number")));
    EXPECT_THAT(*report, HasSubstr("84x28 -> grid 1x2x6, 12 patches -> 3 tokens"));
    // A word is one token and a number two, and the end of the turn has loss too.
    EXPECT_EQ(LinesWithLoss(*report), is_word ? 2 : 3) << *report;
  }
}

TEST_F(DataInspectTest, ClipComesOutAsAStripOfItsFrames) {
  const auto report = InspectSample(Options("video", 3, /*heldout=*/true));
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_THAT(*report, HasSubstr("8 frames in 2.00 s -> grid 4x4x4, 64 patches -> 16 tokens"));
  EXPECT_EQ(LinesWithLoss(*report), 2);

  const auto plugin = dataloader::VideoPlugin::Load();
  ASSERT_TRUE(plugin.ok()) << plugin.status();
  constexpr int kSide = 56, kFrames = 8;
  std::vector<uint8_t> frames(kFrames * kSide * kSide * 3);
  ASSERT_TRUE((*plugin)
                  ->Decode(Stored("heldout/video", 3).media[0], {0, 1, 2, 3, 4, 5, 6, 7},
                           {.height = kSide, .width = kSide}, absl::MakeSpan(frames), nullptr)
                  .ok());
  const dataloader::Image strip = Written("video-3.0.png");
  ASSERT_EQ(strip.size.width, kSide * kFrames);
  ASSERT_EQ(strip.size.height, kSide);
  for (int f = 0; f < kFrames; ++f) {
    for (int y = 0; y < kSide; ++y) {
      const auto* expected = &frames[((f * kSide) + y) * kSide * 3];
      const auto* found = &strip.rgb[(y * kFrames + f) * kSide * 3];
      ASSERT_TRUE(std::equal(expected, expected + kSide * 3, found)) << f << " " << y;
    }
  }
}

TEST_F(DataInspectTest, SoundIsDrawnAndTextNeedsNoPicture) {
  const auto sound = InspectSample(Options("audio", 0, /*heldout=*/false));
  ASSERT_TRUE(sound.ok()) << sound.status();
  EXPECT_THAT(*sound, HasSubstr("0.96 s at 16000 Hz -> 96 mel frames -> 24 tokens"));
  const dataloader::Image mel = Written("audio-0.0.png");
  EXPECT_EQ(mel.size.width, 96 * 3);
  EXPECT_EQ(mel.size.height, 80 * 3);
  EXPECT_NE(*std::max_element(mel.rgb.begin(), mel.rgb.end()),
            *std::min_element(mel.rgb.begin(), mel.rgb.end()));

  const auto text = InspectSample(Options("text", 0, /*heldout=*/false));
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_THAT(*text, HasSubstr("encoders 0,"));
  EXPECT_FALSE(fs::exists(*root_ + "/out/text-0.0.png"));
}

TEST_F(DataInspectTest, SaysWhatIsWrong) {
  DataInspectOptions options = Options("image", 0, /*heldout=*/false);
  options.source = "imgae";
  EXPECT_THAT(std::string(InspectSample(options).status().message()),
              HasSubstr("did you mean \"image\""));
  const auto beyond = InspectSample(Options("image", 100000, /*heldout=*/false));
  EXPECT_EQ(beyond.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(beyond.status().message()), HasSubstr("not 100000"));

  DataInspectOptions overlong = Options("audio", 0, /*heldout=*/false);
  overlong.overrides.push_back("data.sequence_length=16");
  const auto left_out = InspectSample(overlong);
  EXPECT_EQ(left_out.status().code(), absl::StatusCode::kDataLoss) << left_out.status();
  EXPECT_THAT(std::string(left_out.status().message()), HasSubstr("overlong"));
}

}  // namespace
}  // namespace omni::tools
