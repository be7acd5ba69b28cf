#include "dataloader/media/audio.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <complex>

#include "dataloader/media/encode.h"
#include "dataloader/media/fft400.h"
#include "tests/dataloader/media/golden_inputs.h"

namespace omni::dataloader {
namespace {

using ::testing::HasSubstr;

std::vector<float> Tone(double hz, int32_t rate, int64_t n, double amplitude = 0.5) {
  std::vector<float> wave(n);
  for (int64_t t = 0; t < n; ++t) {
    wave[t] = static_cast<float>(
        amplitude * std::sin(2 * std::numbers::pi * hz * static_cast<double>(t) / rate));
  }
  return wave;
}

TEST(Fft400Test, AgreesWithTheDefinition) {
  const Fft400 fft;
  Fft400::Lanes x[400], power[201];
  std::vector<double> samples[4];
  Lcg lcg(5);
  for (int i = 0; i < 400; ++i) {
    for (int lane = 0; lane < 4; ++lane) {
      samples[lane].push_back(static_cast<double>(lcg.Next()) / 32768 - 1);
      x[i][lane] = samples[lane].back();
    }
  }
  fft.Power(x, power);
  for (int lane = 0; lane < 4; ++lane) {
    for (int k = 0; k <= 200; ++k) {
      std::complex<double> sum = 0;
      for (int i = 0; i < 400; ++i) {
        sum += samples[lane][i] * std::polar(1.0, -2 * std::numbers::pi * (i * k % 400) / 400);
      }
      ASSERT_NEAR(power[k][lane], std::norm(sum), 1e-9) << "bin " << k << ", lane " << lane;
    }
  }
}

struct MelCase {
  const char* kind;
  int64_t samples;
  int32_t every;
};
class LogMelTest : public testing::TestWithParam<std::tuple<int32_t, MelCase>> {};

TEST_P(LogMelTest, AgreesWithWhispersFrontEnd) {
  const auto& [bands, c] = GetParam();
  const LogMel log_mel(bands);
  const int64_t frames = LogMel::NumFrames(c.samples);
  std::vector<float> mel(frames * bands);
  log_mel.Compute(GoldenWave(c.kind, c.samples), absl::MakeSpan(mel));
  const std::string golden =
      ReadGolden("mel" + std::to_string(bands) + "_" + c.kind + "_" + std::to_string(c.samples) +
                 "_every" + std::to_string(c.every) + ".f32");
  ASSERT_EQ(golden.size(), (frames + c.every - 1) / c.every * bands * sizeof(float));
  float largest = 0;
  for (int64_t i = 0; i * c.every < frames; ++i) {
    for (int32_t b = 0; b < bands; ++b) {
      float expected;
      std::memcpy(&expected, golden.data() + (i * bands + b) * sizeof(float), sizeof(float));
      largest = std::max(largest, std::abs(mel[i * c.every * bands + b] - expected));
    }
  }
  EXPECT_LT(largest, 1e-4f);
}

INSTANTIATE_TEST_SUITE_P(
    Clips, LogMelTest,
    testing::Combine(testing::Values(80, 128),
                     testing::Values(MelCase{"tone", 15840, 6}, MelCase{"mix", 15840, 6},
                                     MelCase{"mix", 32160, 12}, MelCase{"silence", 8000, 10},
                                     MelCase{"mix", 496000, 150}, MelCase{"mix", 700, 1})),
    [](const testing::TestParamInfo<LogMelTest::ParamType>& info) {
      const int32_t bands = std::get<0>(info.param);
      const MelCase& c = std::get<1>(info.param);
      return std::string("Bands") + std::to_string(bands) + c.kind + std::to_string(c.samples);
    });

TEST(ResampleTest, KeepsTonesAndRemovesWhatWouldAlias) {
  for (const int32_t rate : {8000, 11025, 22050, 24000, 32000, 44100, 48000}) {
    const int64_t n = rate;  // one second
    const std::vector<float> kept = Resample(Tone(1000, rate, n), rate, 16000);
    ASSERT_EQ(kept.size(), 16000u);
    const std::vector<float> expected = Tone(1000, 16000, 16000);
    double worst = 0;
    for (size_t i = 1000; i < 15000; ++i) {
      worst = std::max<double>(worst, std::abs(kept[i] - expected[i]));
    }
    EXPECT_LT(worst, 1e-3) << rate << " Hz";
    if (rate <= 16000) continue;
    const double above = std::min(8600.0, rate / 2.0 - 100);
    double loudest = 0;
    const std::vector<float> removed = Resample(Tone(above, rate, n), rate, 16000);
    for (size_t i = 1000; i < 15000; ++i) {
      loudest = std::max<double>(loudest, std::abs(removed[i]));
    }
    EXPECT_LT(loudest, 1e-3) << above << " Hz at " << rate << " Hz";
  }
}

TEST(ResampleTest, LengthsRoundUp) {
  EXPECT_EQ(Resample(std::vector<float>(1, 1.0f), 44100, 16000).size(), 1u);
  EXPECT_EQ(Resample(std::vector<float>(441, 1.0f), 44100, 16000).size(), 160u);
  EXPECT_EQ(Resample(std::vector<float>(442, 1.0f), 44100, 16000).size(), 161u);
  EXPECT_EQ(Resample({}, 44100, 16000).size(), 0u);
  EXPECT_EQ(Resample(std::vector<float>(7, 0.5f), 16000, 16000), std::vector<float>(7, 0.5f));
}

class FormatTest : public testing::TestWithParam<MediaFormat> {};

TEST_P(FormatTest, SoundComesBackAtItsIndexedLength) {
  for (const int32_t rate : {16000, 22050, 44100}) {
    const std::vector<float> wave = Tone(440, rate, rate / 2 + 13);
    absl::StatusOr<std::string> bytes = EncodeAudio(wave, rate, GetParam());
    ASSERT_TRUE(bytes.ok()) << bytes.status();
    absl::StatusOr<MediaInfo> info = ProbeMedia(MediaKind::kAudio, *bytes);
    ASSERT_TRUE(info.ok()) << info.status();
    EXPECT_EQ(info->format, GetParam());
    EXPECT_EQ(info->sample_rate, rate);
    absl::StatusOr<std::vector<float>> samples = DecodeAudio(*bytes, 30);
    ASSERT_TRUE(samples.ok()) << samples.status();
    EXPECT_EQ(static_cast<int64_t>(samples->size()), AudioSamples(*info));
    const auto [low, high] = std::minmax_element(samples->begin() + 2000, samples->end() - 2000);
    EXPECT_NEAR(*high, 0.5, 0.03);
    EXPECT_NEAR(*low, -0.5, 0.03);
    const LogMel log_mel(80);
    std::vector<float> mel(MelFrames(*info) * 80);
    EXPECT_TRUE(AudioToMel(*bytes, {}, log_mel, MelFrames(*info), absl::MakeSpan(mel)).ok());
  }
}

TEST_P(FormatTest, TornSoundIsDataLoss) {
  const std::string whole = EncodeAudio(GoldenWave("mix", 32000), 16000, GetParam()).value();
  for (const size_t keep : {size_t{10}, size_t{60}}) {
    EXPECT_TRUE(absl::IsDataLoss(DecodeAudio(whole.substr(0, keep), 30).status()))
        << Name(GetParam()) << " cut to " << keep;
  }
  // An MP3 or OGG stream cut later is a shorter sound: nothing in it says how long it was.
  if (GetParam() == MediaFormat::kMp3 || GetParam() == MediaFormat::kOgg) return;
  EXPECT_TRUE(absl::IsDataLoss(DecodeAudio(whole.substr(0, whole.size() / 2), 30).status()));
}

TEST_P(FormatTest, DamagedBytesAreDataLossOrSomeSound) {
  Lcg lcg(3);
  const std::string whole = EncodeAudio(GoldenWave("mix", 4000), 16000, GetParam()).value();
  for (int round = 0; round < 100; ++round) {
    std::string bytes = whole;
    bytes[lcg.Next() % bytes.size()] = static_cast<char>(lcg.Next());
    absl::StatusOr<std::vector<float>> sound = DecodeAudio(bytes, 1e6);
    if (!sound.ok()) {
      EXPECT_TRUE(absl::IsDataLoss(sound.status())) << sound.status();
    } else {
      EXPECT_EQ(static_cast<int64_t>(sound->size()),
                AudioSamples(ProbeMedia(MediaKind::kAudio, bytes).value()));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, FormatTest,
                         testing::Values(MediaFormat::kWav, MediaFormat::kFlac, MediaFormat::kOgg,
                                         MediaFormat::kMp3),
                         [](const auto& info) { return std::string(Name(info.param)); });

TEST(DecodeAudioTest, LongClipsAreAnErrorNotCut) {
  const std::string bytes = EncodeAudio(std::vector<float>(32000, 0.1f), 16000).value();
  EXPECT_TRUE(DecodeAudio(bytes, 2).ok());
  const absl::Status status = DecodeAudio(bytes, 1.5).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(status.message(), HasSubstr("2.00 s is longer than the 1.5 s"));
}

TEST(DecodeAudioTest, TinyClipsAreFilledUpToOneRow) {
  const std::string bytes = EncodeAudio(std::vector<float>(1, 0.5f), 16000).value();
  const std::vector<float> samples = DecodeAudio(bytes, 30).value();
  ASSERT_EQ(samples.size(), 640u);
  EXPECT_NEAR(samples[0], 0.5, 1e-4);
  EXPECT_EQ(samples[639], 0);
  EXPECT_TRUE(
      absl::IsDataLoss(DecodeAudio(EncodeAudio(std::vector<float>{}, 16000).value(), 30).status()));
}

TEST(DecodeAudioTest, SaysWhatWasFoundInstead) {
  EXPECT_THAT(DecodeAudio("", 30).status().message(), HasSubstr("an empty file"));
  EXPECT_THAT(DecodeAudio(EncodePng(GoldenPicture(2, 2, 1)).value(), 30).status().message(),
              HasSubstr("found PNG, expected a sound"));
}

struct WindowCase {
  int64_t samples;
  int64_t frames;  // of the reference's mask
};
class WindowedMelTest : public testing::TestWithParam<WindowCase> {};

TEST_P(WindowedMelTest, AgreesWithTheReferencesPaddedWindow) {
  const auto& [num_samples, frames] = GetParam();
  const AudioOptions options{.mel_bands = 80, .window_frames = 3000, .context_frames = 2};
  const MelShape shape = MelShapeOf(num_samples, options);
  EXPECT_EQ(shape.frames, frames);
  EXPECT_EQ(shape.rows, std::min<int64_t>(frames + 2, 3000));
  const LogMel log_mel(80);
  std::vector<float> mel(shape.rows * 80);
  MelOfSamples(GoldenWave("mix", num_samples), options, log_mel, absl::MakeSpan(mel));
  const std::string golden = ReadGolden("mel80_window_" + std::to_string(num_samples) + "_" +
                                        std::to_string(frames) + ".f32");
  ASSERT_EQ(golden.size(), 6 * 80 * sizeof(float));
  for (int64_t i = 0; i < 6 * 80; ++i) {
    float expected;
    std::memcpy(&expected, golden.data() + i * sizeof(float), sizeof(float));
    ASSERT_NEAR(mel[(shape.rows - 6) * 80 + i], expected, 1e-4) << "row " << i / 80 - 6;
  }
}

TEST_P(WindowedMelTest, ContextIsNotNeededForTheFramesThemselves) {
  const auto& [num_samples, frames] = GetParam();
  AudioOptions options{.mel_bands = 80, .window_frames = 3000, .context_frames = 2};
  const LogMel log_mel(80);
  const std::vector<float> wave = GoldenWave("mix", num_samples);
  std::vector<float> with(MelShapeOf(num_samples, options).rows * 80);
  MelOfSamples(wave, options, log_mel, absl::MakeSpan(with));
  options.context_frames = 0;
  const MelShape shape = MelShapeOf(num_samples, options);
  EXPECT_EQ(shape.rows, frames);
  std::vector<float> without(shape.rows * 80);
  MelOfSamples(wave, options, log_mel, absl::MakeSpan(without));
  with.resize(without.size());
  EXPECT_EQ(with, without);
}

TEST(WindowedMelFloorTest, AClickAtTheEndSetsTheFloorOfAllFrames) {
  // A click in the last sample: the frame it is loudest in is the one past the sound's last.
  std::vector<float> wave(1600, 0.0f);
  for (size_t i = 0; i < wave.size(); ++i) wave[i] = 1e-4f * std::sin(static_cast<float>(i));
  wave[1599] = 1.0f;
  const AudioOptions options{.mel_bands = 80, .window_frames = 3000};
  const LogMel log_mel(80);
  std::vector<float> mel(10 * 80), padded(13 * 80);
  MelOfSamples(wave, options, log_mel, absl::MakeSpan(mel));
  wave.resize(13 * 160 + 160);
  log_mel.Compute(wave, absl::MakeSpan(padded));
  padded.resize(mel.size());
  EXPECT_EQ(mel, padded);
}

INSTANTIATE_TEST_SUITE_P(Lengths, WindowedMelTest,
                         testing::Values(WindowCase{15840, 99}, WindowCase{15841, 100},
                                         WindowCase{15999, 100}, WindowCase{479700, 2999},
                                         WindowCase{479900, 3000}),
                         [](const auto& info) { return std::to_string(info.param.samples); });

TEST(AudioToMelTest, WindowedSoundsHaveTheirContext) {
  const std::string bytes = EncodeAudio(std::vector<float>(1601, 0.1f), 16000).value();
  const AudioOptions options{.mel_bands = 80, .window_frames = 100, .context_frames = 2};
  const LogMel log_mel(80);
  std::vector<float> mel(13 * 80, 77.0f);
  EXPECT_TRUE(AudioToMel(bytes, options, log_mel, 11, absl::MakeSpan(mel)).ok());
  EXPECT_LT(*std::max_element(mel.begin(), mel.end()), 3.0f);
  const absl::Status status = AudioToMel(bytes, options, log_mel, 10, absl::MakeSpan(mel));
  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_THAT(status.message(), HasSubstr("11 frames of 10 ms, its index says 10"));
}

TEST(AudioToMelTest, RefusesAnotherLengthThanTheIndex) {
  const std::string bytes = EncodeAudio(std::vector<float>(1600, 0.1f), 16000).value();
  const LogMel log_mel(80);
  std::vector<float> mel(9 * 80);
  const absl::Status status = AudioToMel(bytes, {}, log_mel, 9, absl::MakeSpan(mel));
  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_THAT(status.message(), HasSubstr("10 frames of 10 ms, its index says 9"));
}

}  // namespace
}  // namespace omni::dataloader

// libsndfile 1.2 forgets libvorbis' tables when it refuses a damaged file.
extern "C" const char* __lsan_default_suppressions() { return "leak:vorbis_info_init\n"; }
