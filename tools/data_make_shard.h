// Samples of the quickstart as conversations in tar shards.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "dataloader/formats/tar_writer.h"

namespace omni::tools {

// One encoded picture, sound or clip and where it came from.
struct Media {
  std::string type;       // "image", "audio" or "video"
  std::string extension;  // "jpg"
  std::string bytes;
  std::vector<std::pair<std::string, std::string>> made_with;  // {"font", "DejaVuSans.ttf"}
};

// Builds the JSON member and the media members of one sample.
class SampleBuilder {
 public:
  SampleBuilder();
  ~SampleBuilder();

  // Appends to the current turn; the first call, or one after Answer, starts a user turn.
  SampleBuilder& Show(Media media);
  SampleBuilder& Ask(absl::string_view text);
  SampleBuilder& Answer(absl::string_view text);  // an assistant turn
  SampleBuilder& Named(absl::string_view question);

  // A document instead of a conversation: text and media in order.
  SampleBuilder& Document();

  std::string Json() const;
  const std::vector<Media>& media() const { return media_; }
  std::string Suffix(int index) const;  // of a medium: "0.jpg"

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
  std::vector<Media> media_;
};

// Writes the samples of one source: folder/<source>-00000.tar and so on, keys 000000, 000001 ...
// through all shards.
class ShardSet {
 public:
  ShardSet(std::string folder, std::string source, int64_t samples_per_shard);
  absl::Status Add(const SampleBuilder& sample);
  absl::Status Finish();

  int64_t num_samples() const { return num_samples_; }
  const std::vector<std::string>& paths() const { return paths_; }

 private:
  std::string folder_, source_;
  int64_t samples_per_shard_;
  int64_t num_samples_ = 0;
  std::unique_ptr<dataloader::TarWriter> writer_;
  std::vector<std::string> paths_;
};

}  // namespace omni::tools
