// Where samples come from: tar shards with their index, or JSON and JSONL files.
//
// A store is random access: sizes of a sample's media without decoding anything, its text
// without its media, its media's bytes. Opening is cheap: shards are looked into when first
// used. All methods may be called from several threads at once.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "dataloader/formats/conversation.h"
#include "dataloader/formats/storage.h"
#include "dataloader/media/media_info.h"
#include "dataloader/media/video.h"

namespace omni::dataloader {

struct SampleMetadata {
  std::string sample_id;
  int64_t text_bytes = 0;        // of the JSON: an upper estimate of the text
  std::vector<MediaInfo> media;  // in order of appearance
};

struct Sample {
  Conversation conversation;
  std::vector<MediaInfo> media_info;  // in order of appearance, as Metadata
  std::vector<std::string> media;     // the files' bytes, in the same order
};

// Errors of all methods but num_samples and sample_id start with the sample's id. DataLoss or
// InvalidArgument: the sample is wrong in itself; it is left out and counted. Unavailable, naming
// file and errno: its storage failed, and has been tried again (storage.h); this is no fault of the
// sample, and the step can't be made. FailedPrecondition: a plugin is missing.
class SampleStore {
 public:
  virtual ~SampleStore() = default;

  virtual int64_t num_samples() const = 0;
  // "shard.tar:key" or "file.jsonl:line", for messages; `index` in [0, num_samples).
  virtual std::string sample_id(int64_t index) const = 0;

  // Measured sizes: no media is read from a tar; from a JSON file's neighbours on first use.
  virtual absl::StatusOr<SampleMetadata> Metadata(int64_t index) const = 0;
  virtual absl::StatusOr<Conversation> LoadConversation(int64_t index) const = 0;
  // The bytes of one medium, `media_index` as in Part.
  virtual absl::StatusOr<std::string> LoadMedia(int64_t index, int32_t media_index) const = 0;

  // Memory its tables take by now, about: where samples lie, sizes measured. From any thread.
  virtual int64_t held_bytes() const { return 0; }
  virtual int64_t max_held_bytes() const { return held_bytes(); }  // ever

  // Text and all media at once.
  virtual absl::StatusOr<Sample> Load(int64_t index) const;
};

struct OpenOptions {
  // Build a tar's index if it is absent or does not fit the tar. If false that is an error which
  // says the command that builds it.
  bool build_missing_index = true;
  // For measuring clips; null: looked for when the first clip is met.
  std::shared_ptr<const VideoPlugin> video;
  // Of EvalConfig::group_by; "": none.
  std::string group_key = {};
  // Through which all is read; null: the system's own, nothing tried again.
  std::shared_ptr<Storage> storage;
};

// `path`: a .tar, .json or .jsonl file, a folder (its .tar files if it has any, else its .json
// and .jsonl files), or a glob pattern of such files; always in the order of their names.
// NotFound if nothing matches, InvalidArgument if the file is of another sort, DataLoss naming
// shard and member for a shard that can't be indexed, FailedPrecondition for a missing index,
// Unavailable for what is there and can't be read.
absl::StatusOr<std::unique_ptr<SampleStore>> OpenSource(const std::string& path,
                                                        const OpenOptions& options = {});
// Bytes of the files that OpenSource would open; 0 if one can't be looked at. Media beside a JSON
// file are not counted.
int64_t SourceBytes(const std::string& path, const Storage* storage = nullptr);

}  // namespace omni::dataloader
