// The quickstart's data at a tiny scale: equal bytes from equal seeds, everything decodes, the
// two splits share no source, answers are balanced and from their closed sets.
#include "tools/data_make.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "dataloader/formats/sample_store.h"
#include "dataloader/formats/tar_index.h"
#include "dataloader/media/audio.h"
#include "dataloader/media/image.h"
#include "runtime/base/file.h"
#include "tools/data_make_audio.h"
#include "tools/data_make_image.h"
#include "tools/data_make_tasks.h"
#include "tools/data_make_text.h"
#include "tools/data_make_video.h"

namespace omni::tools {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;

std::string FileText(const fs::path& path) {
  auto text = ReadFile(path.string());
  EXPECT_TRUE(text.ok()) << text.status();
  return text.value_or("");
}

std::map<std::string, std::string> Files(const fs::path& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (!entry.is_regular_file()) continue;
    files[fs::relative(entry.path(), folder).string()] = FileText(entry.path());
  }
  return files;
}

struct MadeSample {
  json value;  // as in the shard
  size_t num_media;
};

class DataMakeTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    root_ = new fs::path(fs::path(testing::TempDir()) / absl::StrCat("data_make_", getpid()));
    fs::create_directories(*root_);
    Make("first", 7);
  }
  static void TearDownTestSuite() {
    fs::remove_all(*root_);
    delete root_;
  }

  static DataMakeOptions Options(const std::string& name, uint64_t seed) {
    return {.out = (*root_ / name).string(), .seed = seed, .scale = 1e-3};
  }
  static void Make(const std::string& name, uint64_t seed) {
    const absl::Status status = MakeQuickstartData(Options(name, seed));
    ASSERT_TRUE(status.ok()) << status;
  }
  static fs::path First() { return *root_ / "first"; }

  static std::vector<MadeSample> Samples(const std::string& split, const std::string& source) {
    std::vector<MadeSample> samples;
    for (const auto& entry : fs::directory_iterator(First() / split / source)) {
      const std::string path = entry.path().string();
      if (!absl::EndsWith(path, ".tar")) continue;
      auto index = dataloader::TarIndex::Open(path);
      EXPECT_TRUE(index.ok()) << index.status();
      const std::string tar = FileText(path);
      for (int64_t i = 0; i < (*index)->num_samples(); ++i) {
        const auto record = (*index)->Get(i);
        EXPECT_TRUE(record.ok()) << record.status();
        samples.push_back({json::parse(tar.substr(record->json.offset, record->json.size)),
                           record->media.size()});
      }
    }
    return samples;
  }

  // question -> answer -> how often, of samples with a "question".
  static std::map<std::string, std::map<std::string, int>> Answers(const std::string& split,
                                                                   const std::string& source) {
    std::map<std::string, std::map<std::string, int>> answers;
    for (const MadeSample& sample : Samples(split, source)) {
      if (!sample.value.contains("question")) continue;
      EXPECT_EQ(sample.value["messages"].size(), 2u);
      ++answers[sample.value["question"]][sample.value["messages"][1]["content"][0]["text"]];
    }
    return answers;
  }

  // The values of one key of "made_with", over all sources of a split.
  static std::set<std::string> MadeWith(const std::string& split, const std::string& key) {
    std::set<std::string> values;
    for (const char* source : {"image", "audio", "video", "mixed"}) {
      for (const MadeSample& sample : Samples(split, source)) {
        EXPECT_EQ(sample.value["made_with"].size(), sample.num_media);
        for (const json& media : sample.value["made_with"]) {
          if (media.contains(key)) values.insert(media[key].get<std::string>());
        }
      }
    }
    return values;
  }

  static fs::path* root_;
};

fs::path* DataMakeTest::root_ = nullptr;

template <typename T>
std::set<T> Common(const std::set<T>& a, const std::set<T>& b) {
  std::set<T> common;
  std::set_intersection(a.begin(), a.end(), b.begin(), b.end(),
                        std::inserter(common, common.end()));
  return common;
}

TEST_F(DataMakeTest, EqualSeedsGiveEqualBytesAndOthersDoNot) {
  Make("again", 7);
  Make("other", 8);
  const auto first = Files(First()), again = Files(*root_ / "again"),
             other = Files(*root_ / "other");
  ASSERT_GT(first.size(), 20u);
  ASSERT_EQ(first.size(), again.size());
  for (const auto& [path, bytes] : first) {
    ASSERT_TRUE(again.contains(path)) << path;
    EXPECT_TRUE(bytes == again.at(path)) << path << " differs";
  }
  EXPECT_FALSE(first.at("train/image/image-00000.tar") == other.at("train/image/image-00000.tar"));
  EXPECT_FALSE(first.at("heldout/audio/audio-00000.tar") ==
               other.at("heldout/audio/audio-00000.tar"));
}

TEST_F(DataMakeTest, CompleteDataIsKeptTornOrOtherDataIsMadeAnew) {
  Make("kept", 7);
  std::vector<std::string> lines;
  DataMakeOptions options = Options("kept", 7);
  options.progress = [&](const std::string& line) { lines.push_back(line); };
  ASSERT_TRUE(MakeQuickstartData(options).ok());
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_THAT(lines[0], HasSubstr("complete"));

  const fs::path shard = *root_ / "kept/train/image/image-00000.tar";
  fs::resize_file(shard, 1000);
  ASSERT_TRUE(MakeQuickstartData(options).ok());
  EXPECT_GT(lines.size(), 5u);
  EXPECT_TRUE(FileText(shard) == FileText(First() / "train/image/image-00000.tar"));

  options.seed = 9;
  ASSERT_TRUE(MakeQuickstartData(options).ok());
  EXPECT_EQ(json::parse(FileText(*root_ / "kept/manifest.json"))["made_from"]["seed"], 9);
  EXPECT_FALSE(fs::exists(*root_ / "kept.making"));
}

TEST_F(DataMakeTest, RefusesWhatItShouldNotTouch) {
  fs::create_directories(*root_ / "mine");
  std::ofstream(*root_ / "mine/thesis.txt") << "years of work";
  const absl::Status foreign = MakeQuickstartData(Options("mine", 1));
  EXPECT_EQ(foreign.code(), absl::StatusCode::kFailedPrecondition) << foreign;
  EXPECT_TRUE(fs::exists(*root_ / "mine/thesis.txt"));
  EXPECT_FALSE(fs::exists(*root_ / "mine.making"));

  for (const double scale : {0.0, -1.0, 10.5, std::nan("")}) {
    DataMakeOptions options = Options("scaled", 1);
    options.scale = scale;
    EXPECT_EQ(MakeQuickstartData(options).code(), absl::StatusCode::kInvalidArgument) << scale;
  }
  DataMakeOptions fontless = Options("fontless", 1);
  fontless.font_dir = "/nonexistent";
  const absl::Status status = MakeQuickstartData(fontless);
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("fonts-dejavu-core"));
  EXPECT_FALSE(fs::exists(*root_ / "fontless"));
  EXPECT_FALSE(fs::exists(*root_ / "fontless.making"));
}

TEST_F(DataMakeTest, EveryMemberDecodesToTheSizeItShouldHave) {
  auto plugin = dataloader::VideoPlugin::Load();
  ASSERT_TRUE(plugin.ok()) << plugin.status();
  std::map<dataloader::MediaFormat, int> formats;
  for (const char* split : {"train", "heldout"}) {
    for (const char* source : {"image", "audio", "video", "mixed", "text"}) {
      auto store = dataloader::OpenSource((First() / split / source).string());
      ASSERT_TRUE(store.ok()) << store.status();
      ASSERT_GT((*store)->num_samples(), 0);
      for (int64_t i = 0; i < (*store)->num_samples(); ++i) {
        const auto sample = (*store)->Load(i);
        ASSERT_TRUE(sample.ok()) << sample.status();
        for (size_t m = 0; m < sample->media.size(); ++m) {
          const std::string& bytes = sample->media[m];
          ++formats[sample->media_info[m].format];
          switch (sample->media_info[m].kind) {
            case dataloader::MediaKind::kImage: {
              const auto image = dataloader::DecodeImage(bytes);
              ASSERT_TRUE(image.ok()) << image.status();
              EXPECT_EQ(image->size.width, kImageWidth);
              EXPECT_EQ(image->size.height, kImageHeight);
              break;
            }
            case dataloader::MediaKind::kAudio: {
              const auto sound = dataloader::DecodeAudio(bytes, 2);
              ASSERT_TRUE(sound.ok()) << sound.status();
              EXPECT_EQ(sound->size(), static_cast<size_t>(kClipSamples));
              break;
            }
            case dataloader::MediaKind::kVideo: {
              EXPECT_EQ(sample->media_info[m].num_frames, kClipFrames);
              EXPECT_EQ(sample->media_info[m].fps, kClipFps);
              std::vector<uint8_t> rgb(kClipFrames * kClipSide * kClipSide * 3);
              const absl::Status status = (*plugin)->Decode(
                  bytes, {0, 1, 2, 3, 4, 5, 6, 7}, {.height = kClipSide, .width = kClipSide},
                  absl::MakeSpan(rgb), nullptr);
              EXPECT_TRUE(status.ok()) << status;
              break;
            }
          }
        }
      }
    }
  }
  // All the formats a user may bring, but WebM.
  using dataloader::MediaFormat;
  for (const MediaFormat format :
       {MediaFormat::kJpeg, MediaFormat::kPng, MediaFormat::kWebp, MediaFormat::kWav,
        MediaFormat::kFlac, MediaFormat::kOgg, MediaFormat::kMp3, MediaFormat::kMp4}) {
    EXPECT_GT(formats[format], 0) << dataloader::Name(format);
  }
}

TEST_F(DataMakeTest, HeldOutSourcesAreNotInTraining) {
  const auto fonts = MadeWith("train", "font"), unseen_fonts = MadeWith("heldout", "font");
  EXPECT_GT(fonts.size(), 25u);
  EXPECT_GT(unseen_fonts.size(), 15u);
  EXPECT_TRUE(Common(fonts, unseen_fonts).empty());
  // Whole families: no held-out family's name, without its style, starts a training font's.
  for (const std::string& unseen : unseen_fonts) {
    for (const char* family : {"LiberationSans", "DejaVuSerif", "OpenSans", "Caladea"}) {
      for (const std::string& font : fonts) EXPECT_FALSE(absl::StartsWith(font, family)) << font;
    }
    EXPECT_TRUE(absl::StartsWith(unseen, "LiberationSans") ||
                absl::StartsWith(unseen, "DejaVuSerif") || absl::StartsWith(unseen, "OpenSans") ||
                absl::StartsWith(unseen, "Caladea"))
        << unseen;
  }

  const auto speakers = [](const std::set<std::string>& voices) {
    std::set<std::string> variants;
    for (const std::string& voice : voices) {
      variants.insert(std::vector<std::string>(absl::StrSplit(voice, '+')).at(1));
    }
    return variants;
  };
  const auto seen = speakers(MadeWith("train", "voice")),
             unseen = speakers(MadeWith("heldout", "voice"));
  EXPECT_GT(unseen.size(), 10u);
  EXPECT_TRUE(Common(seen, unseen).empty());
  for (const char* key : {"words_per_minute", "pitch", "shape"}) {
    const auto train = MadeWith("train", key), heldout = MadeWith("heldout", key);
    EXPECT_FALSE(heldout.empty()) << key;
    EXPECT_TRUE(Common(train, heldout).empty()) << key;
  }
  for (const std::string& speed : MadeWith("heldout", "pixels_per_frame")) {
    EXPECT_GE(std::stod(speed), 3.2);
    EXPECT_LE(std::stod(speed), 3.6);
  }
  for (const std::string& speed : MadeWith("train", "pixels_per_frame")) {
    EXPECT_TRUE(std::stod(speed) <= 3.2 || std::stod(speed) >= 3.6) << speed;
  }
}

TEST_F(DataMakeTest, AnswersAreBalancedAndFromClosedSets) {
  const json manifest = json::parse(FileText(First() / "manifest.json"));
  std::map<std::string, std::set<std::string>> closed;
  for (const json& question : manifest["made_from"]["questions"]) {
    closed[question["question"]] = question["answers"].get<std::set<std::string>>();
  }
  EXPECT_EQ(closed.at("number").size(), 100u);
  EXPECT_EQ(closed.at("word").size(), 20u);
  EXPECT_EQ(closed.at("direction").size(), 4u);
  const std::map<std::string, std::set<std::string>> expected = {
      {"image", {"number", "word"}},
      {"audio", {"spoken"}},
      {"video", {"direction", "colour"}},
      {"mixed", {"number", "word", "spoken"}}};
  for (const auto& [source, questions] : expected) {
    for (const char* split : {"train", "heldout"}) {
      const auto answers = Answers(split, source);
      for (const auto& [question, counts] : answers) {
        EXPECT_TRUE(questions.contains(question)) << question;
        for (const auto& [answer, count] : counts) {
          EXPECT_TRUE(closed.at(question).contains(answer)) << question << " " << answer;
          // Every answer equally often, in the held-out split exactly.
          if (std::string(split) == "heldout") {
            EXPECT_EQ(count, counts.begin()->second) << source << " " << question << " " << answer;
          }
        }
        if (std::string(split) == "heldout") {
          EXPECT_EQ(counts.size(), closed.at(question).size()) << source << " " << question;
        }
      }
      EXPECT_EQ(answers.size(), questions.size()) << split << " " << source;
    }
  }
}

TEST(Sums, HeldOutSumsAreAskedTheOtherWayRoundInTraining) {
  std::set<std::pair<int, int>> train;
  std::set<int> answers;
  for (const Sum& sum : Sums(Split::kTrain)) {
    train.insert({sum.a, sum.b});
    answers.insert(sum.a + sum.b);
    EXPECT_EQ(sum.AnswerText(), absl::StrCat(sum.a + sum.b));
  }
  EXPECT_EQ(answers.size(), 21u);  // 0 .. 20
  const auto heldout = Sums(Split::kHeldout);
  EXPECT_GE(heldout.size(), 30u);
  for (const Sum& sum : heldout) {
    EXPECT_FALSE(train.contains({sum.a, sum.b})) << sum.Text();
    EXPECT_TRUE(train.contains({sum.b, sum.a})) << sum.Text();
  }
}

}  // namespace
}  // namespace omni::tools
