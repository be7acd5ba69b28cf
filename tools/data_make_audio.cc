#include "tools/data_make_audio.h"

#include <espeak-ng/espeak_ng.h>
#include <espeak-ng/speak_lib.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "dataloader/media/audio.h"
#include "dataloader/media/encode.h"
#include "runtime/base/status.h"
#include "tools/data_make_noise.h"

namespace omni::tools {
namespace {

// Called by the synthesizer with the next samples; user_data is set by Speak.
int Collect(short* samples, int num_samples, espeak_EVENT* events) {
  if (samples != nullptr && events->user_data != nullptr) {
    auto* out = static_cast<std::vector<float>*>(events->user_data);
    for (int i = 0; i < num_samples; ++i) {
      out->push_back(static_cast<float>(samples[i]) / 32768.0f);
    }
  }
  return 0;
}

float Peak(const std::vector<float>& samples) {
  float peak = 0;
  for (const float sample : samples) peak = std::max(peak, std::abs(sample));
  return peak;
}

// Whispering, croaking and robot variants are left out: they make the task another one.
const VoiceSet kTrainVoices = {
    .accents = {"en-us", "en", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029",
                "en-us-nyc"},
    .variants = {"f1",      "f3",     "f5",       "m1",      "m3",      "m5",     "m7",
                 "Alex",    "Alicia", "Andy",     "Denis",   "Gene",    "Gene2",  "Henrique",
                 "Jacky",   "Marco",  "Mario",    "Michael", "Nguyen",  "anika",  "announcer",
                 "antonio", "aunty",  "benjamin", "caleb",   "ed",      "edward", "edward2",
                 "grandma", "iven",   "iven2",    "john",    "marcelo", "michel", "miguel",
                 "norbert", "pablo",  "paul",     "quincy",  "robert",  "sandro", "steph",
                 "steph2",  "travis"},
    .words_per_minute = {110, 130, 150, 170, 190, 210},
    .pitches = {30, 40, 50, 60, 70},
};
const VoiceSet kHeldoutVoices = {
    .accents = {"en-us", "en", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029",
                "en-us-nyc", "en-gb-x-rp"},
    .variants = {"f2",      "f4",      "m2",    "m4",   "m6",    "m8",      "Andrea", "Annie",
                 "Diogo",   "Hugo",    "Lee",   "Mike", "adam",  "belinda", "boris",  "david",
                 "grandpa", "gustave", "linda", "max",  "pedro", "rob",     "shelby", "victor"},
    .words_per_minute = {120, 140, 160, 180, 200},
    .pitches = {35, 45, 55, 65},
};

}  // namespace

const VoiceSet& Voices(Split split) {
  return split == Split::kTrain ? kTrainVoices : kHeldoutVoices;
}

SpeechMaker::SpeechMaker(int32_t native_rate) : native_rate_(native_rate) {}
SpeechMaker::~SpeechMaker() { espeak_Terminate(); }

absl::StatusOr<std::unique_ptr<SpeechMaker>> SpeechMaker::Create(uint64_t seed) {
  const int rate = espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, /*buflength=*/0, /*path=*/nullptr,
                                     espeakINITIALIZE_DONT_EXIT);
  if (rate <= 0) {
    return absl::FailedPreconditionError(
        "libespeak-ng does not start: install the Debian package espeak-ng-data");
  }
  espeak_SetSynthCallback(Collect);
  std::srand(static_cast<unsigned>(seed));  // breath and Klatt noise come from rand()
  return std::unique_ptr<SpeechMaker>(new SpeechMaker(rate));
}

std::string SpeechMaker::version() const { return espeak_Info(nullptr); }

absl::StatusOr<std::vector<float>> SpeechMaker::Speak(absl::string_view word,
                                                      const std::string& voice,
                                                      int words_per_minute, int pitch) {
  if (espeak_SetVoiceByName(voice.c_str()) != EE_OK) {
    return absl::FailedPreconditionError(absl::StrCat(
        "espeak-ng has no voice ", voice, ": install the Debian package espeak-ng-data"));
  }
  espeak_SetParameter(espeakRATE, words_per_minute, 0);
  espeak_SetParameter(espeakPITCH, pitch, 0);
  std::vector<float> samples;
  const std::string text(word);
  if (espeak_Synth(text.c_str(), text.size() + 1, 0, POS_CHARACTER, 0, espeakCHARS_UTF8, nullptr,
                   &samples) != EE_OK ||
      espeak_Synchronize() != EE_OK) {
    return absl::InternalError(absl::StrCat("espeak-ng could not say ", text, " as ", voice));
  }
  const float threshold = 0.02f * Peak(samples);
  const auto is_sound = [&](float sample) { return std::abs(sample) > threshold; };
  const auto begin = std::find_if(samples.begin(), samples.end(), is_sound);
  const auto end = std::find_if(samples.rbegin(), samples.rend(), is_sound).base();
  if (begin >= end) {
    return absl::InternalError(absl::StrCat("espeak-ng said nothing for ", text, " as ", voice));
  }
  return dataloader::Resample(absl::Span<const float>(&*begin, static_cast<size_t>(end - begin)),
                              native_rate_, kSpeechRate);
}

absl::StatusOr<Media> SpeechMaker::Make(absl::string_view word, Split split, CounterRng& rng) {
  const VoiceSet& voices = Voices(split);
  const auto pick = [&](const auto& choices) { return choices[rng.NextBelow(choices.size())]; };
  const std::string voice = absl::StrCat(pick(voices.accents), "+", pick(voices.variants));
  const int words_per_minute = pick(voices.words_per_minute);
  const int pitch = pick(voices.pitches);
  OMNI_ASSIGN_OR_RETURN(std::vector<float> spoken, Speak(word, voice, words_per_minute, pitch));
  if (spoken.size() > kClipSamples) spoken.resize(kClipSamples);  // one in a thousand

  const double gain_db = Between(rng, -12, -1);  // of the peak
  const auto scale = static_cast<float>(std::pow(10.0, gain_db / 20)) / Peak(spoken);
  const auto hiss = static_cast<float>(std::pow(10.0, Between(rng, -3.3, -2.3)));
  const size_t offset = rng.NextBelow(kClipSamples - spoken.size() + 1);
  const uint64_t format = rng.NextBelow(20);
  std::vector<float> clip(kClipSamples);
  NoiseSource noise(&rng);
  for (float& sample : clip) sample = hiss * noise.Next();
  for (size_t i = 0; i < spoken.size(); ++i) clip[offset + i] += scale * spoken[i];
  for (float& sample : clip) sample = std::clamp(sample, -1.0f, 1.0f);

  Media media;
  media.type = "audio";
  media.made_with = {{"voice", voice},
                     {"words_per_minute", absl::StrCat(words_per_minute)},
                     {"pitch", absl::StrCat(pitch)}};
  using dataloader::MediaFormat;
  MediaFormat codec = MediaFormat::kWav;
  media.extension = "wav";
  if (format < 4) {
    codec = MediaFormat::kFlac;
    media.extension = "flac";
  } else if (format < 6) {
    codec = MediaFormat::kOgg;
    media.extension = "ogg";
  } else if (format < 7) {
    codec = MediaFormat::kMp3;
    media.extension = "mp3";
  }
  OMNI_ASSIGN_OR_RETURN(media.bytes, dataloader::EncodeAudio(clip, kSpeechRate, codec));
  return media;
}

}  // namespace omni::tools
