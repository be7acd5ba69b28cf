#include "tools/data_make_sources.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "dataloader/formats/tar_index.h"
#include "runtime/base/rng.h"
#include "runtime/base/status.h"
#include "tools/data_make_audio.h"
#include "tools/data_make_image.h"
#include "tools/data_make_text.h"
#include "tools/data_make_video.h"

namespace omni::tools {
namespace {

constexpr int64_t kSamplesPerShard = 4000;
constexpr int64_t kNumWords = kWords.size();
constexpr int64_t kNumColours = kColours.size();
constexpr int64_t kNumDirections = kDirections.size();

// Numbers of samples at scale 1.
constexpr int64_t kTrainImages = 16000, kHeldoutImages = 1000;
constexpr int64_t kTrainClips = 4008, kHeldoutClips = 432;
constexpr int64_t kTrainSpeech = 6000, kHeldoutSpeech = 400;
constexpr int64_t kTrainMixed = 1200, kHeldoutMixed = 400;

// The random draws of one sample, independent of every other's.
CounterRng SampleRng(uint64_t seed, absl::string_view source, Split split, int64_t index) {
  return CounterRng(seed, StreamOf(absl::StrCat(Name(split), "/", source, "/", index)));
}

// A shuffled order of `count` samples whose index, taken modulo the number of answers, gives
// each answer equally often.
Permutation Shuffle(uint64_t seed, absl::string_view source, Split split, int64_t count) {
  return Permutation(count, seed, StreamOf(absl::StrCat(Name(split), "/", source, "/order")));
}

}  // namespace

SourceMaker::SourceMaker(Options options) : options_(std::move(options)) {}

int64_t SourceMaker::Count(int64_t full, int64_t unit) const {
  const double units = options_.scale * static_cast<double>(full) / static_cast<double>(unit);
  return unit * std::max<int64_t>(1, std::llround(units));
}

void SourceMaker::Progress(const std::string& line) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (options_.progress) options_.progress(line);
}

std::vector<std::string> SourceMaker::shards() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<std::string> sorted = shards_;
  std::sort(sorted.begin(), sorted.end());
  return sorted;
}

absl::Status SourceMaker::MakeSource(
    const std::string& source, Split split, int64_t count,
    const std::function<absl::Status(int64_t, SampleBuilder*)>& make) {
  const std::string name = absl::StrCat(Name(split), "/", source);
  ShardSet shards(absl::StrCat(options_.folder, "/", name), source, kSamplesPerShard);
  for (int64_t index = 0; index < count; ++index) {
    SampleBuilder sample;
    OMNI_RETURN_IF_ERROR(Annotate(make(index, &sample), absl::StrCat(name, " ", index)));
    OMNI_RETURN_IF_ERROR(shards.Add(sample));
    if ((index + 1) % 2000 == 0 && index + 1 < count) {
      Progress(absl::StrCat(name, ": ", index + 1, " of ", count));
    }
  }
  OMNI_RETURN_IF_ERROR(shards.Finish());
  for (const std::string& path : shards.paths()) {
    std::vector<std::string> faults;
    OMNI_RETURN_IF_ERROR(dataloader::BuildTarIndex(path, options_.plugin.get(), &faults).status());
    if (!faults.empty()) return absl::InternalError(faults[0]);  // ours: it was just made
  }
  Progress(absl::StrCat(name, ": ", count, " samples"));
  const std::lock_guard<std::mutex> lock(mutex_);
  shards_.insert(shards_.end(), shards.paths().begin(), shards.paths().end());
  return absl::OkStatus();
}

absl::Status SourceMaker::MakeImages() {
  for (const Split split : {Split::kTrain, Split::kHeldout}) {
    OMNI_ASSIGN_OR_RETURN(const auto maker, ImageMaker::Create(options_.font_dir, split));
    const int64_t count =
        Count(split == Split::kTrain ? kTrainImages : kHeldoutImages, 2 * kNumbers);
    const Permutation order = Shuffle(options_.seed, "image", split, count);
    OMNI_RETURN_IF_ERROR(MakeSource(
        "image", split, count, [&](int64_t index, SampleBuilder* sample) -> absl::Status {
          CounterRng rng = SampleRng(options_.seed, "image", split, index);
          const auto item = static_cast<int64_t>(order(index));
          const bool is_word = item % 2 == 1;
          const std::string text = is_word ? std::string(kWords[item / 2 % kNumWords])
                                           : NumberText(static_cast<int>(item / 2 % kNumbers));
          OMNI_ASSIGN_OR_RETURN(Media picture, maker->Make(text, is_word, rng));
          const Question& question = is_word ? kWord : kNumber;
          sample->Show(std::move(picture)).Ask(question.text).Answer(text).Named(question.name);
          return absl::OkStatus();
        }));
  }
  return absl::OkStatus();
}

absl::Status SourceMaker::MakeClips() {
  constexpr int64_t kPairs = kNumDirections * kNumColours;
  for (const Split split : {Split::kTrain, Split::kHeldout}) {
    const bool train = split == Split::kTrain;
    const int64_t count = train ? Count(kTrainClips, kPairs) : Count(kHeldoutClips, 2 * kPairs);
    const Permutation order = Shuffle(options_.seed, "video", split, count);
    OMNI_RETURN_IF_ERROR(MakeSource(
        "video", split, count, [&](int64_t index, SampleBuilder* sample) -> absl::Status {
          CounterRng rng = SampleRng(options_.seed, "video", split, index);
          const auto item = static_cast<int64_t>(order(index));
          const int direction = static_cast<int>(item % kNumDirections);
          const int colour = static_cast<int>(item / kNumDirections % kNumColours);
          OMNI_ASSIGN_OR_RETURN(Media clip,
                                MakeClip(direction, colour, split, *options_.plugin, rng));
          sample->Show(std::move(clip));
          // Held-out asks one question a clip, each half of the time. Training asks both in one
          // conversation for most clips: two answers for one clip's encoding.
          const uint64_t dice = rng.NextBelow(20);
          const bool asks_both = train && dice < 12;
          const bool direction_first =
              train ? (asks_both ? dice % 2 == 0 : dice < 17) : item / kPairs % 2 == 0;
          const auto ask = [&](bool asks_direction) {
            const Question& question = asks_direction ? kDirection : kColour;
            sample->Ask(question.text)
                .Answer(asks_direction ? kDirections[direction] : kColours[colour]);
            if (!asks_both) sample->Named(question.name);
          };
          ask(direction_first);
          if (asks_both) ask(!direction_first);
          return absl::OkStatus();
        }));
  }
  return absl::OkStatus();
}

absl::Status SourceMaker::MakeText() {
  for (const Split split : {Split::kTrain, Split::kHeldout}) {
    const std::vector<Sum> sums = Sums(split);
    const std::vector<std::string> documents =
        split == Split::kTrain ? Documents() : std::vector<std::string>();
    const auto count = static_cast<int64_t>(sums.size() + documents.size());
    OMNI_RETURN_IF_ERROR(
        MakeSource("text", split, count, [&](int64_t index, SampleBuilder* sample) {
          if (index < static_cast<int64_t>(sums.size())) {
            const Sum& sum = sums[index];
            sample->Ask(sum.Text()).Answer(sum.AnswerText()).Named(kSumName);
          } else {
            sample->Document().Ask(documents[index - sums.size()]);
          }
          return absl::OkStatus();
        }));
  }
  return absl::OkStatus();
}

absl::Status SourceMaker::MakeSpeechAndMixed() {
  OMNI_ASSIGN_OR_RETURN(const auto speech, SpeechMaker::Create(options_.seed));
  for (const Split split : {Split::kTrain, Split::kHeldout}) {
    const int64_t count = Count(split == Split::kTrain ? kTrainSpeech : kHeldoutSpeech, kNumWords);
    const Permutation order = Shuffle(options_.seed, "audio", split, count);
    OMNI_RETURN_IF_ERROR(MakeSource(
        "audio", split, count, [&](int64_t index, SampleBuilder* sample) -> absl::Status {
          CounterRng rng = SampleRng(options_.seed, "audio", split, index);
          const absl::string_view word = kWords[order(index) % kNumWords];
          OMNI_ASSIGN_OR_RETURN(Media clip, speech->Make(word, split, rng));
          sample->Show(std::move(clip)).Ask(kSpoken.text).Answer(word).Named(kSpoken.name);
          return absl::OkStatus();
        }));
  }

  // Several media in one conversation. Training has two kinds that held-out, where every sample
  // has one question, has not: several turns, and a document with a picture in its text.
  for (const Split split : {Split::kTrain, Split::kHeldout}) {
    const bool train = split == Split::kTrain;
    OMNI_ASSIGN_OR_RETURN(const auto pictures, ImageMaker::Create(options_.font_dir, split));
    const int64_t kinds = train ? 7 : 4;
    const int64_t count =
        train ? Count(kTrainMixed, 20 * kinds) : Count(kHeldoutMixed, kNumbers * kinds);
    const Permutation order = Shuffle(options_.seed, "mixed", split, count);
    OMNI_RETURN_IF_ERROR(MakeSource(
        "mixed", split, count, [&](int64_t index, SampleBuilder* sample) -> absl::Status {
          CounterRng rng = SampleRng(options_.seed, "mixed", split, index);
          const auto item = static_cast<int64_t>(order(index));
          const int64_t kind = item % kinds;
          const std::string number = NumberText(static_cast<int>(item / kinds % kNumbers));
          const absl::string_view word = kWords[item / kinds % kNumWords];
          const absl::string_view spoken =
              kWords[kind == 3 ? item / kinds % kNumWords : rng.NextBelow(kNumWords)];
          Media number_picture, word_picture, speech_clip;
          if (kind != 5) {
            OMNI_ASSIGN_OR_RETURN(number_picture, pictures->Make(number, false, rng));
          }
          if (kind <= 1) {
            OMNI_ASSIGN_OR_RETURN(word_picture, pictures->Make(word, true, rng));
          } else if (kind <= 5) {
            OMNI_ASSIGN_OR_RETURN(speech_clip, speech->Make(spoken, split, rng));
          }
          switch (kind) {
            case 0:  // two pictures, one of a number and one of a word, in either order
            case 1: {
              if (rng.NextBelow(2) == 0) {
                sample->Show(std::move(number_picture)).Show(std::move(word_picture));
              } else {
                sample->Show(std::move(word_picture)).Show(std::move(number_picture));
              }
              const Question& question = kind == 0 ? kNumber : kWord;
              sample->Ask(question.text).Named(question.name);
              sample->Answer(kind == 0 ? absl::string_view(number) : word);
              break;
            }
            case 2:  // a picture and a sound, asked about either
            case 3: {
              sample->Show(std::move(number_picture)).Show(std::move(speech_clip));
              const Question& question = kind == 2 ? kNumber : kSpoken;
              sample->Ask(question.text).Named(question.name);
              sample->Answer(kind == 2 ? absl::string_view(number) : spoken);
              break;
            }
            case 4:  // two turns
              sample->Show(std::move(number_picture)).Ask(kNumber.text).Answer(number);
              sample->Show(std::move(speech_clip)).Ask(kSpoken.text).Answer(spoken);
              break;
            case 5: {  // sound, then a clip
              const int direction = static_cast<int>(rng.NextBelow(kNumDirections));
              const int colour = static_cast<int>(rng.NextBelow(kNumColours));
              OMNI_ASSIGN_OR_RETURN(Media clip,
                                    MakeClip(direction, colour, split, *options_.plugin, rng));
              sample->Show(std::move(speech_clip)).Ask(kSpoken.text).Answer(spoken);
              sample->Show(std::move(clip)).Ask(kDirection.text).Answer(kDirections[direction]);
              sample->Ask(kColour.text).Answer(kColours[colour]);
              break;
            }
            default:  // an interleaved document
              sample->Document().Ask("The picture ").Show(std::move(number_picture));
              sample->Ask(absl::StrCat(" shows the number ", number, "."));
          }
          return absl::OkStatus();
        }));
  }
  return absl::OkStatus();
}

}  // namespace omni::tools
