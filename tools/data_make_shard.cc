#include "tools/data_make_shard.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "runtime/base/status.h"

namespace omni::tools {

using nlohmann::ordered_json;

struct SampleBuilder::Impl {
  bool is_document = false;
  bool in_user_turn = false;
  std::string question;
  ordered_json messages = ordered_json::array();
  ordered_json content = ordered_json::array();  // of a document
  ordered_json made_with = ordered_json::array();

  ordered_json& Parts() {
    if (is_document) return content;
    if (!in_user_turn) {
      messages.push_back({{"role", "user"}, {"content", ordered_json::array()}});
      in_user_turn = true;
    }
    return messages.back()["content"];
  }
};

SampleBuilder::SampleBuilder() : impl_(std::make_unique<Impl>()) {}
SampleBuilder::~SampleBuilder() = default;

SampleBuilder& SampleBuilder::Show(Media media) {
  ordered_json source = ordered_json::object();
  for (const auto& [key, value] : media.made_with) source[key] = value;
  impl_->made_with.push_back(std::move(source));
  const std::string type = media.type;
  media_.push_back(std::move(media));
  impl_->Parts().push_back({{"type", type}, {type, Suffix(static_cast<int>(media_.size()) - 1)}});
  return *this;
}

SampleBuilder& SampleBuilder::Ask(absl::string_view text) {
  impl_->Parts().push_back({{"type", "text"}, {"text", std::string(text)}});
  return *this;
}

SampleBuilder& SampleBuilder::Answer(absl::string_view text) {
  impl_->messages.push_back(
      {{"role", "assistant"},
       {"content", ordered_json::array({{{"type", "text"}, {"text", std::string(text)}}})}});
  impl_->in_user_turn = false;
  return *this;
}

SampleBuilder& SampleBuilder::Named(absl::string_view question) {
  impl_->question = std::string(question);
  return *this;
}

SampleBuilder& SampleBuilder::Document() {
  impl_->is_document = true;
  return *this;
}

std::string SampleBuilder::Json() const {
  ordered_json sample;
  if (impl_->is_document) {
    if (media_.empty() && impl_->content.size() == 1) {
      sample["text"] = impl_->content[0]["text"];
    } else {
      sample["content"] = impl_->content;
    }
  } else {
    sample["messages"] = impl_->messages;
  }
  if (!impl_->question.empty()) sample["question"] = impl_->question;
  if (!media_.empty()) sample["made_with"] = impl_->made_with;
  return sample.dump();
}

std::string SampleBuilder::Suffix(int index) const {
  return absl::StrCat(index, ".", media_[index].extension);
}

ShardSet::ShardSet(std::string folder, std::string source, int64_t samples_per_shard)
    : folder_(std::move(folder)),
      source_(std::move(source)),
      samples_per_shard_(samples_per_shard) {}

absl::Status ShardSet::Add(const SampleBuilder& sample) {
  if (num_samples_ % samples_per_shard_ == 0) {
    OMNI_RETURN_IF_ERROR(Finish());
    std::error_code error;
    std::filesystem::create_directories(folder_, error);
    if (error) {
      return absl::PermissionDeniedError(
          absl::StrCat("can't make folder ", folder_, ": ", error.message()));
    }
    paths_.push_back(absl::StrFormat("%s/%s-%05d.tar", folder_, source_, paths_.size()));
    OMNI_ASSIGN_OR_RETURN(writer_, dataloader::TarWriter::Create(paths_.back()));
  }
  const std::string key = absl::StrFormat("%06d", num_samples_);
  OMNI_RETURN_IF_ERROR(writer_->Add(key + ".json", sample.Json()));
  for (size_t i = 0; i < sample.media().size(); ++i) {
    OMNI_RETURN_IF_ERROR(writer_->Add(absl::StrCat(key, ".", sample.Suffix(static_cast<int>(i))),
                                      sample.media()[i].bytes));
  }
  ++num_samples_;
  return absl::OkStatus();
}

absl::Status ShardSet::Finish() {
  if (writer_ == nullptr) return absl::OkStatus();
  OMNI_RETURN_IF_ERROR(writer_->Finish());
  writer_ = nullptr;
  return absl::OkStatus();
}

}  // namespace omni::tools
