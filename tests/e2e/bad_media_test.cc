// Bad media: `data inspect` names file and sample in one line; in training the sample is left out
// or blanked, counted and named while the job goes on.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "absl/strings/str_cat.h"
#include "dataloader/media/encode.h"
#include "dataloader/media/video.h"
#include "runtime/base/check.h"
#include "runtime/base/file.h"
#include "tests/e2e/bad_input.h"
#include "tests/e2e/bad_samples.h"
#include "tests/e2e/process.h"
#include "tests/support/tiny_job.h"

namespace omni::test {
namespace {

using ::testing::HasSubstr;

std::string Png() { return dataloader::EncodePng(Picture(56, 84)).value(); }
std::string Wav() {
  return dataloader::EncodeAudio(std::vector<float>(8000, 0.25f), 16000).value();
}
std::string Mp4() {
  const auto plugin = dataloader::VideoPlugin::Load();
  OMNI_CHECK_OK(plugin.status());
  std::vector<uint8_t> frames;
  for (int f = 0; f < 8; ++f) {
    const dataloader::Image frame = Picture(56, 56);
    frames.insert(frames.end(), frame.rgb.begin(), frame.rgb.end());
  }
  return (*plugin)->Encode(frames, {.height = 56, .width = 56}, {.fps = 8}).value();
}

std::string Cut(const std::string& whole, double part) {
  return whole.substr(0, static_cast<size_t>(static_cast<double>(whole.size()) * part));
}
std::string With(std::string bytes, size_t at, const std::string& patch) {
  return bytes.replace(at, patch.size(), patch);
}

// A sound PNG whose header claims 100000 x 100000 pixels, its checksum made to fit.
std::string AbsurdPng() {
  std::string png = With(Png(), 16, std::string("\0\1\x86\xa0\0\1\x86\xa0", 8));
  uint32_t crc = ~0u;
  for (size_t i = 12; i < 29; ++i) {
    crc ^= static_cast<uint8_t>(png[i]);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc & 1 ? 0xedb88320u : 0);
  }
  crc = ~crc;
  for (int i = 0; i < 4; ++i) png[29 + i] = static_cast<char>(crc >> (24 - 8 * i));
  return png;
}

struct BadMedium {
  const char* name;
  const char* kind;
  const char* file;
  std::function<std::string()> bytes;
  const char* fault;    // what training calls it
  const char* message;  // after the file's name
};

const std::vector<BadMedium>& BadMedia() {
  static const std::vector<BadMedium> rows = {
      {"JpegWithoutPicture", "image", "head.jpg", [] { return Jpeg().substr(0, 20); }, "broken",
       "corrupt JPEG"},
      {"JpegCutOff", "image", "cut.jpg", [] { return Cut(Jpeg(), 0.7); }, "blanked",
       "corrupt JPEG"},
      {"PngWithAFlippedBit", "image", "flip.png",
       [] { return With(Png(), 200, std::string(1, static_cast<char>(Png()[200] ^ 1))); },
       "blanked", "corrupt PNG"},
      {"PngOfAbsurdSize", "image", "huge.png", AbsurdPng, "broken",
       "PNG header says 100000 x 100000 pixels; the limit is 65500 a side"},
      {"PictureOfAbsurdShape", "image", "strip.png",
       [] { return dataloader::EncodePng(Picture(2, 500)).value(); }, "broken",
       "picture of 500 x 2 pixels is more than 200 times as long as wide"},
      {"EmptyPicture", "image", "empty.jpg", [] { return std::string(); }, "broken",
       "found an empty file, expected image (JPEG, PNG or WebP)"},
      {"SoundCalledPicture", "image", "sound.jpg", Wav, "broken", "found WAV, expected image"},
      {"WebPage", "image", "page.png", [] { return std::string("<html>not found</html>"); },
       "broken", "found markup text (XML or HTML), expected image"},
      {"NoPicture", "image", "gone.jpg", nullptr, "broken", "No such file or directory"},
      {"WavCutOff", "audio", "cut.wav", [] { return Cut(Wav(), 0.5); }, "broken", "WAV is torn"},
      {"WavOfAbsurdRate", "audio", "rate.wav", [] { return With(Wav(), 24, "\xff\xff\xff\x7f"); },
       "broken", "WAV header is absurd"},
      {"EmptySound", "audio", "empty.wav", [] { return std::string(); }, "broken",
       "found an empty file, expected audio (WAV, FLAC, OGG or MP3)"},
      {"Mp4OfNoise", "video", "noise.mp4",
       [] {
         return std::string(
                    "\0\0\0\x18"
                    "ftypmp42",
                    12) +
                std::string(500, 'x');
       },
       "broken", "corrupt"},
      {"Mp4CutOff", "video", "cut.mp4", [] { return Cut(Mp4(), 0.5); }, "broken", "corrupt"},
      {"PictureCalledClip", "video", "picture.mp4", Jpeg, "broken",
       "found JPEG, expected video (MP4 or WebM)"},
      {"Mp4WithABrokenFrame", "video", "frame.mp4",
       [] { return With(Mp4(), Mp4().size() / 2, std::string(200, 'x')); }, "blanked",
       "corrupt clip"}};
  return rows;
}

// One line for each row of the table, then as many sound ones. The last of these are a PNG that is
// called .jpg: the content decides, never the name.
std::string MediaList() {
  std::string lines;
  for (const BadMedium& row : BadMedia()) {
    if (row.bytes != nullptr) WriteInput(absl::StrCat("media/", row.file), row.bytes());
    lines += Line(row.kind, row.file);
  }
  WriteInput("media/good.jpg", Jpeg());
  WriteInput("media/png.jpg", Png());
  for (size_t i = 0; i < BadMedia().size(); ++i) {
    lines += Line("image", i % 2 == 0 ? "good.jpg" : "png.jpg");
  }
  return WriteInput("media/list.jsonl", lines);
}

TEST(BadMediaTest, InspectNamesFileAndSample) {
  const std::string list = MediaList();
  for (size_t i = 0; i < BadMedia().size(); ++i) {
    const BadMedium& row = BadMedia()[i];
    SCOPED_TRACE(row.name);
    const std::string place =
        absl::StrCat("list.jsonl:", i + 1,
                     row.fault == std::string("broken") ? " would be left out as broken: " : ": ",
                     row.file, ": ");
    ExpectOneLine(Over({"data", "inspect", "--index", absl::StrCat(i)}, list),
                  {row.name, "", place.c_str(), row.message});
  }
}

TEST(BadMediaTest, TheContentDecidesNotTheName) {
  const std::string list = MediaList();
  OmnitrainProcess run(
      Over({"data", "inspect", "--index", absl::StrCat(BadMedia().size() + 1)}, list));
  EXPECT_EQ(run.Wait(), 0) << run.output();
  EXPECT_THAT(run.output(), HasSubstr("image 0: PNG 84x56"));
}

int64_t SumOf(const std::string& dir, const std::string& name) {
  int64_t sum = 0;
  for (const auto& [step, values] : ReadMetrics(dir + "/metrics.jsonl")) {
    if (const auto found = values.find(name); found != values.end())
      sum += std::stoi(found->second);
  }
  return sum;
}

TEST(BadMediaTest, TrainingGoesOnAndNamesAndCountsThem) {
  const std::string dir = absl::StrCat(TinyData(), "-bad-media");
  OmnitrainProcess run(
      Over({"train", "--run-dir", dir, "--set", "data.max_broken=1"}, MediaList()));
  EXPECT_EQ(run.Wait(), 0) << run.output();
  const std::string log = ReadFile(dir + "/logs/rank-00000.log").value();
  for (size_t i = 0; i < BadMedia().size(); ++i) {
    const BadMedium& row = BadMedia()[i];
    EXPECT_GE(LinesWith(log, {absl::StrCat("/list.jsonl:", i + 1, " of image is ", row.fault),
                              absl::StrCat(": ", row.file, ": "), row.message}),
              1)
        << row.name << "\n"
        << log;
  }
  for (const char* fault : {"broken", "blanked"}) {
    EXPECT_EQ(SumOf(dir, absl::StrCat("skipped/", fault)),
              LinesWith(log, {absl::StrCat(" of image is ", fault)}));
  }
  EXPECT_EQ(ReadMetrics(dir + "/metrics.jsonl").size(), 12u);
}

TEST(BadMediaTest, ASourceOfNothingElseIsRefusedBeforeTheRun) {
  WriteInput("media/cut.jpg", Cut(Jpeg(), 0.7));
  WriteInput("media/empty.jpg", "");
  const std::string list =
      WriteInput("media/bad.jsonl", Line("image", "cut.jpg") + Line("image", "empty.jpg"));
  ExpectTrainRefuses(Over({"train"}, list),
                     {"Media", "", "/bad.jsonl): none of its 2 samples can be trained on",
                      "/bad.jsonl:1: cut.jpg: corrupt JPEG"});
  ExpectTrainRefuses(Over({"train", "--set", "data.sequence_length=4"}, MediaList()),
                     {"Overlong", "", "none of its", "is broken"});
  ExpectTrainRefuses(Over({"train"}, WriteInput("media/none.json", "[]")),
                     {"Empty", "", "data source \"image\"", "/none.json: no samples in it"});
  ExpectTrainRefuses(Over({"train", "--set", "data.eval=[{name: held, path: /nope}]"}, MediaList()),
                     {"Evaluation", "", "evaluation source \"held\"", "/nope: no such file"});
}

}  // namespace
}  // namespace omni::test
