// The index of a tar shard: where each sample's members lie and how large its media are.
//
// A shard is a plain (uncompressed) tar as WebDataset has it: members whose base names agree up
// to the first dot are one sample, "000123.json" its conversation, which names the suffixes of
// its media ("0.jpg" is member "000123.0.jpg"). Members no conversation names are ignored.
// `shard.tar.index` lies beside it, made once; it holds a fingerprint of the tar (its size and a
// hash of blocks spread over it), so a shard written anew is noticed, and a copy is not.
//
// Index file, little endian: 64 bytes of header (magic "OMNITIDX", version, tar size, tar
// fingerprint, number of samples, body bytes, hash of the body, hash of the header), then the
// body: num_samples + 1 record offsets (uint64, relative to the body), then the records.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "dataloader/formats/storage.h"
#include "dataloader/media/media_info.h"
#include "dataloader/media/video.h"

namespace omni::dataloader {

struct MemberRange {
  int64_t offset = 0;  // of the member's data in the tar, bytes
  int64_t size = 0;
  bool operator==(const MemberRange&) const = default;
};

struct IndexedSample {
  std::string key;
  MemberRange json;
  std::vector<MemberRange> media;  // in order of appearance in the conversation
  std::vector<MediaInfo> info;     // one per media

  bool operator==(const IndexedSample&) const = default;
};

std::string IndexPath(const std::string& tar_path);  // "<tar_path>.index"

// Reads the whole shard and measures every medium. NotFound if there is no such file, Unavailable
// if it can't be read (`storage`: null for the system's own); DataLoss,
// naming shard and member, if it is torn, compressed, not a tar, has members outside of itself
// ("../x", links, devices), a sample without JSON, or lacks a medium that a conversation names.
// A sample that is only broken in itself keeps its place: one whose JSON does not read has no
// media here, a medium that can't be measured is of kUnknown format. `faults`, if given, gets a
// line for each, naming shard and member.
absl::StatusOr<std::vector<IndexedSample>> ScanTar(const std::string& tar_path,
                                                   const VideoPlugin* video = nullptr,
                                                   std::vector<std::string>* faults = nullptr,
                                                   std::shared_ptr<Storage> storage = nullptr);

// ScanTar, then writes IndexPath(tar_path) atomically. Returns the number of samples.
absl::StatusOr<int64_t> BuildTarIndex(const std::string& tar_path,
                                      const VideoPlugin* video = nullptr,
                                      std::vector<std::string>* faults = nullptr,
                                      std::shared_ptr<Storage> storage = nullptr);

// A hash of the size and of 16 blocks of 4 KiB spread over the file (all of it up to 1 MiB).
absl::StatusOr<uint64_t> TarFingerprint(const std::string& tar_path);

// A small index is in memory. Of a large one each record is read when it is asked for: a mapping
// would end the process by SIGBUS when its storage fails. Threads may share one.
class TarIndex {
 public:
  // NotFound: no index file. FailedPrecondition: of another version, or the tar has changed
  // since. DataLoss: torn. Unavailable: can't be read. All name the file.
  static absl::StatusOr<std::unique_ptr<TarIndex>> Open(const std::string& tar_path,
                                                        std::shared_ptr<Storage> storage = nullptr);
  // From ScanTar's result, without a file.
  static absl::StatusOr<std::unique_ptr<TarIndex>> FromSamples(
      const std::string& tar_path, const std::vector<IndexedSample>& samples);
  ~TarIndex();

  int64_t num_samples() const;
  int64_t tar_size() const;  // when it was made; 0 if FromSamples made it
  // DataLoss if the record is broken, Unavailable if it can't be read.
  absl::StatusOr<IndexedSample> Get(int64_t index) const;

 private:
  struct State;
  explicit TarIndex(std::unique_ptr<State> state);
  absl::StatusOr<std::string> ReadRecord(int64_t index) const;
  std::unique_ptr<State> state_;
};

}  // namespace omni::dataloader
