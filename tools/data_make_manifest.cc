#include "tools/data_make_manifest.h"

#include <ft2build.h>
#include FT_FREETYPE_H
#include <xxhash.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "dataloader/formats/tar_index.h"
#include "runtime/base/file.h"
#include "runtime/base/status.h"
#include "tools/data_make_audio.h"
#include "tools/data_make_image.h"
#include "tools/data_make_tasks.h"
#include "tools/data_make_text.h"
#include "tools/data_make_video.h"

namespace omni::tools {

using nlohmann::ordered_json;

namespace {

// Raise it when the program makes other data from the same options.
constexpr const char* kFormat = "omnitrain quickstart 2";

ordered_json Voices(const VoiceSet& voices) {
  return {{"accents", voices.accents},
          {"variants", voices.variants},
          {"words_per_minute", voices.words_per_minute},
          {"pitches", voices.pitches}};
}

ordered_json Motions(const MotionSet& motions) {
  ordered_json shapes = ordered_json::array();
  for (const absl::string_view shape : motions.shapes) shapes.push_back(std::string(shape));
  return {{"shapes", shapes}, {"pixels_per_frame", motions.speeds}};
}

template <typename Names>
ordered_json Strings(const Names& names) {
  ordered_json strings = ordered_json::array();
  for (const absl::string_view name : names) strings.push_back(std::string(name));
  return strings;
}

std::string FreeTypeVersion() {
  FT_Library library = nullptr;
  if (FT_Init_FreeType(&library) != 0) return "unknown";
  FT_Int major = 0, minor = 0, patch = 0;
  FT_Library_Version(library, &major, &minor, &patch);
  FT_Done_FreeType(library);
  return absl::StrCat(major, ".", minor, ".", patch);
}

}  // namespace

struct Manifest::Json {
  ordered_json value;
};

absl::StatusOr<Manifest> Manifest::For(const DataMakeOptions& options,
                                       const dataloader::VideoPlugin& plugin) {
  OMNI_ASSIGN_OR_RETURN(const std::string espeak_version, SpeechMaker::Version());
  ordered_json made_from;
  made_from["seed"] = options.seed;
  made_from["scale"] = options.scale;
  made_from["versions"] = {
      {"espeak-ng", espeak_version}, {"ffmpeg", plugin.version()}, {"freetype", FreeTypeVersion()}};
  for (const Split split : {Split::kTrain, Split::kHeldout}) {
    made_from[Name(split)] = {{"fonts", FontFiles(split)},
                              {"speech", Voices(tools::Voices(split))},
                              {"clips", Motions(tools::Motions(split))}};
  }
  ordered_json questions = ordered_json::array();
  const auto add = [&](const Question& question, ordered_json answers) {
    questions.push_back({{"question", std::string(question.name)},
                         {"text", std::string(question.text)},
                         {"answers", std::move(answers)}});
  };
  std::vector<std::string> numbers, sums;
  for (int number = 0; number < kNumbers; ++number) numbers.push_back(NumberText(number));
  for (int sum = 0; sum <= 20; ++sum) sums.push_back(absl::StrCat(sum));
  add(kNumber, Strings(numbers));
  add(kWord, Strings(kWords));
  add(kSpoken, Strings(kWords));
  add(kDirection, Strings(kDirections));
  add(kColour, Strings(kColours));
  add({kSumName, "What is A plus B?"}, Strings(sums));
  made_from["questions"] = std::move(questions);
  made_from["special_tokens"] = SpecialTokens();

  Manifest manifest;
  manifest.json_ = std::make_shared<const Json>(
      Json{{{"format", kFormat}, {"made_from", std::move(made_from)}}});
  return manifest;
}

absl::StatusOr<Manifest> Manifest::Load(const std::string& folder) {
  const std::string path = folder + "/manifest.json";
  OMNI_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  auto value = ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!value.is_object() || !value.contains("format") || !value["format"].is_string() ||
      !absl::StartsWith(value["format"].get<std::string>(), "omnitrain quickstart")) {
    return absl::DataLossError(absl::StrCat(path, " is not the manifest of a data set made here"));
  }
  Manifest manifest;
  manifest.json_ = std::make_shared<const Json>(Json{std::move(value)});
  return manifest;
}

bool Manifest::IsSameRecipe(const Manifest& other) const {
  const ordered_json& mine = json_->value;
  return mine["format"] == other.json_->value["format"] && mine.contains("made_from") &&
         mine["made_from"] == other.json_->value["made_from"];
}

bool Manifest::IsComplete(const std::string& folder) const {
  const ordered_json& value = json_->value;
  if (!value.contains("files") || !value["files"].is_array() || value["files"].empty()) {
    return false;
  }
  for (const ordered_json& file : value["files"]) {
    if (!file.is_object() || !file.contains("path") || !file["path"].is_string() ||
        !file.contains("bytes") || !file["bytes"].is_number_unsigned()) {
      return false;
    }
    std::error_code error;
    const auto size =
        std::filesystem::file_size(folder + "/" + file["path"].get<std::string>(), error);
    if (error || size != file["bytes"].get<uint64_t>()) return false;
  }
  return true;
}

absl::Status Manifest::Write(const std::string& folder,
                             const std::vector<std::string>& shards) const {
  std::vector<std::string> paths = {folder + "/tokenizer.model"};
  for (const std::string& shard : shards) {
    paths.push_back(shard);
    paths.push_back(dataloader::IndexPath(shard));
  }
  ordered_json value = json_->value;
  value["files"] = ordered_json::array();
  uint64_t total_bytes = 0;
  for (const std::string& path : paths) {
    OMNI_ASSIGN_OR_RETURN(const std::string bytes, ReadFile(path));
    ordered_json file = {
        {"path", std::filesystem::path(path).lexically_relative(folder).generic_string()},
        {"bytes", static_cast<uint64_t>(bytes.size())},
        {"xxh3", absl::StrFormat("%016x", XXH3_64bits(bytes.data(), bytes.size()))}};
    if (absl::EndsWith(path, ".tar")) {
      OMNI_ASSIGN_OR_RETURN(const auto index, dataloader::TarIndex::Open(path));
      file["samples"] = index->num_samples();
    }
    total_bytes += bytes.size();
    value["files"].push_back(std::move(file));
  }
  value["bytes"] = total_bytes;
  return WriteFileAtomically(folder + "/manifest.json", value.dump(2) + "\n");
}

}  // namespace omni::tools
