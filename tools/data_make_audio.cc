#include "tools/data_make_audio.h"

#include <dlfcn.h>
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

}  // namespace

const VoiceSet& Voices(Split split) {
  // Whispering, croaking and robot variants are left out: they make the task another one.
  static const VoiceSet train = {
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
  static const VoiceSet heldout = {
      .accents = {"en-us", "en", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029",
                  "en-us-nyc", "en-gb-x-rp"},
      .variants = {"f2",      "f4",      "m2",    "m4",   "m6",    "m8",      "Andrea", "Annie",
                   "Diogo",   "Hugo",    "Lee",   "Mike", "adam",  "belinda", "boris",  "david",
                   "grandpa", "gustave", "linda", "max",  "pedro", "rob",     "shelby", "victor"},
      .words_per_minute = {120, 140, 160, 180, 200},
      .pitches = {35, 45, 55, 65},
  };
  return split == Split::kTrain ? train : heldout;
}

// The library, loaded and started. It is loaded by hand because its state is in its globals and it
// can't be started a second time: only unloading it makes the next run equal to the first.
struct SpeechMaker::Library {
  void* handle = nullptr;
  int32_t native_rate = 0;  // Hz; 0 before it has started
  decltype(&espeak_Info) info = nullptr;
  decltype(&espeak_Initialize) initialize = nullptr;
  decltype(&espeak_SetSynthCallback) set_callback = nullptr;
  decltype(&espeak_SetVoiceByName) set_voice = nullptr;
  decltype(&espeak_SetParameter) set_parameter = nullptr;
  decltype(&espeak_Synth) synth = nullptr;
  decltype(&espeak_Terminate) terminate = nullptr;

  ~Library() {
    if (native_rate > 0) terminate();
    if (handle != nullptr) dlclose(handle);
  }

  template <typename Function>
  bool Find(const char* name, Function* function) {
    *function = reinterpret_cast<Function>(dlsym(handle, name));
    return *function != nullptr;
  }

  absl::Status Load() {
    handle = dlopen("libespeak-ng.so.1", RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr || !Find("espeak_Info", &info) ||
        !Find("espeak_Initialize", &initialize) ||
        !Find("espeak_SetSynthCallback", &set_callback) ||
        !Find("espeak_SetVoiceByName", &set_voice) ||
        !Find("espeak_SetParameter", &set_parameter) || !Find("espeak_Synth", &synth) ||
        !Find("espeak_Terminate", &terminate)) {
      return absl::FailedPreconditionError(absl::StrCat(
          "can't load libespeak-ng (", dlerror(), "): install the Debian package libespeak-ng1"));
    }
    return absl::OkStatus();
  }
};

SpeechMaker::SpeechMaker(std::unique_ptr<Library> library) : library_(std::move(library)) {}
SpeechMaker::~SpeechMaker() = default;

absl::StatusOr<std::unique_ptr<SpeechMaker>> SpeechMaker::Create(uint64_t seed) {
  auto library = std::make_unique<Library>();
  OMNI_RETURN_IF_ERROR(library->Load());
  library->native_rate = library->initialize(AUDIO_OUTPUT_SYNCHRONOUS, /*buflength=*/0,
                                             /*path=*/nullptr, espeakINITIALIZE_DONT_EXIT);
  if (library->native_rate <= 0) {
    return absl::FailedPreconditionError(
        "libespeak-ng does not start: install the Debian package espeak-ng-data");
  }
  library->set_callback(Collect);
  std::srand(static_cast<unsigned>(seed));  // breath and Klatt noise come from rand()
  return std::unique_ptr<SpeechMaker>(new SpeechMaker(std::move(library)));
}

absl::StatusOr<std::string> SpeechMaker::Version() {
  Library library;
  OMNI_RETURN_IF_ERROR(library.Load());
  return std::string(library.info(nullptr));
}

absl::StatusOr<std::vector<float>> SpeechMaker::Speak(absl::string_view word,
                                                      const std::string& voice,
                                                      int words_per_minute, int pitch) {
  if (library_->set_voice(voice.c_str()) != EE_OK) {
    return absl::FailedPreconditionError(absl::StrCat(
        "espeak-ng has no voice ", voice, ": install the Debian package espeak-ng-data"));
  }
  library_->set_parameter(espeakRATE, words_per_minute, 0);
  library_->set_parameter(espeakPITCH, pitch, 0);
  std::vector<float> samples;
  const std::string text(word);
  if (library_->synth(text.c_str(), text.size() + 1, 0, POS_CHARACTER, 0, espeakCHARS_UTF8, nullptr,
                      &samples) != EE_OK) {  // synchronous: all samples are here when it returns
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
                              library_->native_rate, kSpeechRate);
}

absl::StatusOr<Media> SpeechMaker::Make(absl::string_view word, Split split, CounterRng& rng) {
  const VoiceSet& voices = Voices(split);
  const auto pick = [&](const auto& choices) { return choices[rng.NextBelow(choices.size())]; };
  const std::string voice = absl::StrCat(pick(voices.accents), "+", pick(voices.variants));
  const int words_per_minute = pick(voices.words_per_minute);
  const int pitch = pick(voices.pitches);
  OMNI_ASSIGN_OR_RETURN(std::vector<float> spoken, Speak(word, voice, words_per_minute, pitch));
  if (spoken.size() > kClipSamples) spoken.resize(kClipSamples);  // one in a thousand
  // The trimmed ends would click: 4 ms of fade.
  const size_t fade = std::min<size_t>(64, spoken.size() / 2);
  for (size_t i = 0; i < fade; ++i) {
    const float part = (static_cast<float>(i) + 0.5f) / static_cast<float>(fade);
    spoken[i] *= part;
    spoken[spoken.size() - 1 - i] *= part;
  }

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
  if (format < 8) {
    codec = MediaFormat::kFlac;
    media.extension = "flac";
  } else if (format < 11) {
    codec = MediaFormat::kOgg;
    media.extension = "ogg";
  } else if (format < 12) {
    codec = MediaFormat::kMp3;
    media.extension = "mp3";
  }
  OMNI_ASSIGN_OR_RETURN(media.bytes, dataloader::EncodeAudio(clip, kSpeechRate, codec));
  return media;
}

}  // namespace omni::tools
