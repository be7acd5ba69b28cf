// What the loader's tests share: a tokenizer, a store in memory, small corpora.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "dataloader/data_config.h"
#include "dataloader/formats/sample_store.h"
#include "dataloader/media/encode.h"
#include "dataloader/sample_planner.h"
#include "dataloader/tokenizer.h"
#include "runtime/base/check.h"
#include "tests/dataloader/test_tokenizer.h"

namespace omni::dataloader {

inline std::vector<std::string> DefaultSymbols() {
  const SpecialTokenNames names;
  return {names.im_start,  names.im_end,      names.vision_start, names.vision_end, names.image_pad,
          names.video_pad, names.audio_start, names.audio_end,    names.audio_pad};
}

inline const std::string& TestModel() {
  static const std::string model = TrainTestModel(DefaultSymbols());
  return model;
}

inline std::shared_ptr<const Tokenizer> TestTokenizer() {
  auto tokenizer = Tokenizer::FromModel(TestModel(), "test");
  OMNI_CHECK_OK(tokenizer.status());
  return *std::move(tokenizer);
}

inline Part Text(std::string text) { return {.kind = PartKind::kText, .text = std::move(text)}; }

// A sample in memory.
struct FakeSample {
  Conversation conversation;
  std::vector<MediaInfo> media_info;
  std::vector<std::string> media;
  absl::Status conversation_error, media_error;
};

class FakeStore : public SampleStore {
 public:
  explicit FakeStore(std::vector<FakeSample> samples, std::string name = "fake.tar")
      : samples_(std::move(samples)), name_(std::move(name)) {
    for (size_t i = 0; i < samples_.size(); ++i) {
      samples_[i].conversation.sample_id = sample_id(static_cast<int64_t>(i));
      int32_t media_index = 0;
      for (Message& message : samples_[i].conversation.messages) {
        for (Part& part : message.parts) {
          if (part.kind != PartKind::kText) part.media_index = media_index++;
        }
      }
    }
  }

  int64_t num_samples() const override { return static_cast<int64_t>(samples_.size()); }
  std::string sample_id(int64_t index) const override { return absl::StrCat(name_, ":", index); }
  absl::StatusOr<SampleMetadata> Metadata(int64_t index) const override {
    return SampleMetadata{.sample_id = sample_id(index), .media = samples_[index].media_info};
  }
  absl::StatusOr<Conversation> LoadConversation(int64_t index) const override {
    if (!samples_[index].conversation_error.ok()) return samples_[index].conversation_error;
    return samples_[index].conversation;
  }
  absl::StatusOr<std::string> LoadMedia(int64_t index, int32_t media_index) const override {
    if (!samples_[index].media_error.ok()) return samples_[index].media_error;
    return samples_[index].media[media_index];
  }

 private:
  std::vector<FakeSample> samples_;
  const std::string name_;
};

inline FakeSample Question(const std::string& question, const std::string& answer) {
  FakeSample sample;
  sample.conversation.messages = {{Role::kUser, {Text(question)}},
                                  {Role::kAssistant, {Text(answer)}}};
  sample.conversation.question = sample.conversation.group = question;
  return sample;
}

// A picture whose grid is one merged row per 28 x 28 pixels; `shade` tells it from others.
inline FakeSample Picture(int32_t height, int32_t width, int32_t shade,
                          const std::string& question = "What?",
                          const std::string& answer = "red") {
  FakeSample sample = Question(question, answer);
  sample.conversation.messages[0].parts.insert(sample.conversation.messages[0].parts.begin(),
                                               {.kind = PartKind::kImage});
  Image image{.size = {height, width}};
  image.rgb.assign(int64_t{3} * height * width, static_cast<uint8_t>(shade));
  sample.media.push_back(EncodePng(image).value());
  sample.media_info.push_back(ProbeMedia(MediaKind::kImage, sample.media.back()).value());
  return sample;
}

inline FakeSample Sound(int64_t num_samples, float level, const std::string& question = "Word?",
                        const std::string& answer = "blue") {
  FakeSample sample = Question(question, answer);
  sample.conversation.messages[0].parts.insert(sample.conversation.messages[0].parts.begin(),
                                               {.kind = PartKind::kAudio});
  std::vector<float> wave(num_samples);
  for (int64_t i = 0; i < num_samples; ++i)
    wave[i] = level * static_cast<float>((i % 40) - 20) / 20;
  sample.media.push_back(EncodeAudio(wave, 16000).value());
  sample.media_info.push_back(ProbeMedia(MediaKind::kAudio, sample.media.back()).value());
  return sample;
}

inline DataConfig TestConfig(std::vector<std::pair<std::string, double>> sources) {
  DataConfig config;
  config.lanes = 4;
  config.sequence_length = 96;
  config.window = 16;
  config.image.min_pixels = config.video.min_pixels = 28 * 28;
  config.loader.threads = 0;
  for (const auto& [name, weight] : sources) {
    config.sources.push_back({.name = name, .path = name, .weight = weight});
  }
  return config;
}

inline std::shared_ptr<const SamplePlanner> MakePlanner(
    const DataConfig& config,
    const std::map<std::string, std::shared_ptr<const SampleStore>>& stores) {
  std::vector<OpenedSource> sources;
  for (const SourceConfig& source : config.sources) {
    sources.push_back({source.name, stores.at(source.name)});
  }
  return std::make_shared<const SamplePlanner>(config, std::move(sources), TestTokenizer());
}

}  // namespace omni::dataloader
