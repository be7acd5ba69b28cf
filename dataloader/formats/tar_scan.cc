// Reading a whole shard to make its index. libarchive knows the dialects of tar; it is asked
// where each member's data begins, and the answer is checked against the header before it.
#include "dataloader/formats/tar_scan.h"

#include <archive.h>
#include <archive_entry.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "dataloader/formats/conversation.h"
#include "dataloader/formats/file_reader.h"
#include "dataloader/formats/tar_index.h"
#include "runtime/base/status.h"

namespace omni::dataloader {
namespace {

constexpr int64_t kBlock = 512;
constexpr int64_t kReadBytes = int64_t{1} << 16;
constexpr int64_t kMaxJsonBytes = int64_t{64} << 20;

// As Read, tried again while the storage fails.
absl::StatusOr<std::string> ReadRange(const FileReader& file, int64_t offset, int64_t count) {
  return file.storage()->Retry([&](int32_t) { return file.Read(offset, count); });
}

struct FreeArchive {
  void operator()(archive* p) const { archive_read_free(p); }
};

// One sample's members while the shard is read.
struct Members {
  std::string key;
  bool has_json = false;
  MemberRange json;
  std::map<std::string, MemberRange> others;  // by suffix
};

// Gives libarchive the shard piece by piece. What it can't read stays in `status`: libarchive would
// call it a torn tar.
struct ShardReader {
  const FileReader& file;
  int64_t at = 0;
  std::string piece;
  absl::Status status = absl::OkStatus();

  static la_ssize_t Read(archive*, void* self, const void** bytes) {
    auto& reader = *static_cast<ShardReader*>(self);
    const int64_t count = std::min(kReadBytes, reader.file.size() - reader.at);
    absl::StatusOr<std::string> piece = ReadRange(reader.file, reader.at, count);
    if (!piece.ok()) {
      reader.status = piece.status();
      return -1;
    }
    reader.piece = *std::move(piece);
    reader.at += count;
    *bytes = reader.piece.data();
    return static_cast<la_ssize_t>(count);
  }
  static la_int64_t Skip(archive*, void* self, la_int64_t count) {
    auto& reader = *static_cast<ShardReader*>(self);
    const int64_t skipped = std::min<int64_t>(count, reader.file.size() - reader.at);
    reader.at += skipped;
    return skipped;
  }
};

absl::Status CheckName(absl::string_view name) {
  if (name.empty()) return absl::DataLossError("member without a name");
  if (name[0] == '/') return absl::DataLossError("absolute path");
  for (const absl::string_view part : absl::StrSplit(name, '/')) {
    if (part == "..") return absl::DataLossError("path leads out of the shard");
  }
  return absl::OkStatus();
}

// "a/000123.0.jpg" -> {"a/000123", "0.jpg"}
std::pair<std::string, std::string> SplitName(absl::string_view name) {
  if (absl::StartsWith(name, "./")) name.remove_prefix(2);
  const size_t slash = name.rfind('/');
  const size_t base = slash == absl::string_view::npos ? 0 : slash + 1;
  const size_t dot = name.find('.', base);
  if (dot == absl::string_view::npos) return {std::string(name), ""};
  return {std::string(name.substr(0, dot)), std::string(name.substr(dot + 1))};
}

// The header right before the data must be a tar header with this size, whatever extension
// headers lie further up.
absl::Status CheckHeader(const FileReader& file, const MemberRange& range) {
  if (range.offset < kBlock || range.offset + range.size > file.size()) {
    return absl::DataLossError(absl::StrCat("shard is cut off: the member ends at byte ",
                                            range.offset + range.size, ", the file at ",
                                            file.size()));
  }
  OMNI_ASSIGN_OR_RETURN(const std::string header, ReadRange(file, range.offset - kBlock, kBlock));
  int64_t stored = 0, sum = 0;
  for (int i = 148; i < 156; ++i) {
    if (header[i] >= '0' && header[i] <= '7') stored = stored * 8 + (header[i] - '0');
  }
  for (int i = 0; i < kBlock; ++i) {
    sum += i >= 148 && i < 156 ? ' ' : static_cast<uint8_t>(header[i]);
  }
  if (sum != stored) return absl::DataLossError("its data can't be found in the shard");
  return absl::OkStatus();
}

// A tar ends in two blocks of zeros; one cut off between members has none.
absl::Status CheckEndMark(const FileReader& file, int64_t end_of_data) {
  const int64_t at = (end_of_data + kBlock - 1) / kBlock * kBlock;
  absl::StatusOr<std::string> mark = ReadRange(file, at, std::min(kBlock, file.size() - at));
  if (absl::IsUnavailable(mark.status())) return mark.status();
  if (at + kBlock > file.size() || !mark.ok() ||
      mark->find_first_not_of('\0') != std::string::npos) {
    return absl::DataLossError(
        absl::StrCat("shard is cut off: it has no end mark after byte ", end_of_data));
  }
  return absl::OkStatus();
}

// A fault of the sample alone goes to `faults`, one of the shard is returned.
absl::StatusOr<IndexedSample> Measure(const FileReader& file, const std::string& shard,
                                      const Members& members, const VideoPlugin* video,
                                      std::vector<std::string>* faults) {
  const std::string id = absl::StrCat(shard, ":", members.key);
  IndexedSample sample;
  sample.key = members.key;
  sample.json = members.json;
  if (members.json.size > kMaxJsonBytes) {
    return absl::DataLossError(absl::StrCat(id, ": .json member of ", members.json.size,
                                            " bytes, the limit is ", kMaxJsonBytes));
  }
  OMNI_ASSIGN_OR_RETURN(const std::string json,
                        ReadRange(file, members.json.offset, members.json.size));
  const absl::StatusOr<Conversation> conversation = ParseConversation(json, id);
  if (!conversation.ok()) {
    faults->emplace_back(conversation.status().message());
    return sample;
  }
  for (const Part* part : conversation->media()) {
    auto it = members.others.find(part->text);
    if (it == members.others.end()) {  // the whole member name is understood too
      const auto [key, suffix] = SplitName(part->text);
      if (key == members.key) it = members.others.find(suffix);
    }
    if (it == members.others.end()) {
      std::string present;
      for (const auto& [suffix, range] : members.others) absl::StrAppend(&present, " ", suffix);
      return absl::DataLossError(absl::StrCat(id, ": the conversation names \"",
                                              part->text.substr(0, 80),
                                              "\", the shard has no such member; this sample has",
                                              present.empty() ? " none" : present.substr(0, 200)));
    }
    OMNI_ASSIGN_OR_RETURN(const std::string bytes,
                          ReadRange(file, it->second.offset, it->second.size));
    absl::StatusOr<MediaInfo> info = ProbeMedia(MediaKindOf(part->kind), bytes, video);
    if (!info.ok()) {
      const absl::Status status =
          Annotate(info.status(), absl::StrCat(shard, ":", members.key, ".", it->first));
      if (!absl::IsDataLoss(status)) return status;
      faults->emplace_back(status.message());
      info = MediaInfo{.kind = MediaKindOf(part->kind)};
    }
    sample.media.push_back(it->second);
    sample.info.push_back(*info);
  }
  return sample;
}

}  // namespace

absl::StatusOr<std::vector<IndexedSample>> ScanTarFile(const FileReader& file,
                                                       const VideoPlugin* video,
                                                       std::vector<std::string>* faults) {
  std::vector<std::string> ignored;
  if (faults == nullptr) faults = &ignored;
  const std::string& shard = file.path();
  const auto fail = [&](absl::string_view member, const absl::Status& status) {
    return Annotate(status, member.empty() ? shard : absl::StrCat(shard, ":", member));
  };
  OMNI_ASSIGN_OR_RETURN(const std::string start, ReadRange(file, 0, std::min(kBlock, file.size())));
  if (file.size() == 0) return fail("", absl::DataLossError("empty file, expected a tar"));
  if (file.size() % kBlock != 0 || file.size() < 2 * kBlock) {
    // Any tar is whole blocks; what isn't is compressed, torn or something else.
    const bool looks_like_tar = start.size() == kBlock && start.substr(257, 5) == "ustar";
    return fail("", absl::DataLossError(
                        looks_like_tar ? absl::StrCat("shard is cut off: ", file.size(),
                                                      " bytes are not whole blocks of 512")
                                       : absl::StrCat("found ", DescribeContent(start),
                                                      ", expected a plain (uncompressed) tar")));
  }

  std::unique_ptr<archive, FreeArchive> tar(archive_read_new());
  archive_read_support_format_tar(tar.get());
  ShardReader reader{file};
  if (archive_read_open2(tar.get(), &reader, nullptr, ShardReader::Read, ShardReader::Skip,
                         nullptr) != ARCHIVE_OK) {
    OMNI_RETURN_IF_ERROR(reader.status);
    return fail("", absl::DataLossError(absl::StrCat("found ", DescribeContent(start),
                                                     ", expected a plain (uncompressed) tar")));
  }
  std::vector<Members> samples;
  std::map<std::string, size_t> sample_of_key;
  int64_t end_of_data = 0;
  std::string last = "the start";
  while (true) {
    archive_entry* entry = nullptr;
    const int code = archive_read_next_header(tar.get(), &entry);
    if (code == ARCHIVE_EOF) break;
    if (code != ARCHIVE_OK && code != ARCHIVE_WARN) {
      OMNI_RETURN_IF_ERROR(reader.status);
      const char* reason = archive_error_string(tar.get());
      const bool first = last == "the start";
      return fail("",
                  absl::DataLossError(first ? absl::StrCat("found ", DescribeContent(start),
                                                           ", expected a plain (uncompressed) tar")
                                            : absl::StrCat("torn after ", last, ": ",
                                                           reason == nullptr ? "?" : reason)));
    }
    const char* raw_name = archive_entry_pathname(entry);
    const std::string name = raw_name == nullptr ? "" : raw_name;
    if (absl::Status status = CheckName(name); !status.ok()) return fail(name, status);
    const auto type = archive_entry_filetype(entry);
    if (archive_entry_hardlink(entry) != nullptr || type == AE_IFLNK) {
      return fail(name, absl::DataLossError("is a link, expected a file"));
    }
    const MemberRange range{archive_filter_bytes(tar.get(), 0), archive_entry_size(entry)};
    last = name;
    if (type == AE_IFDIR) {
      end_of_data = std::max(end_of_data, range.offset);
      continue;
    }
    if (type != AE_IFREG) {
      return fail(name, absl::DataLossError("is a device or pipe, expected a file"));
    }
    if (archive_entry_sparse_count(entry) > 0) {
      return fail(name, absl::DataLossError("is stored sparse, expected a plain file"));
    }
    if (absl::Status status = CheckHeader(file, range); !status.ok()) return fail(name, status);
    end_of_data = range.offset + range.size;

    const auto [key, suffix] = SplitName(name);
    if (suffix.empty()) return fail(name, absl::DataLossError("member has no suffix"));
    const auto [it, is_new] = sample_of_key.try_emplace(key, samples.size());
    if (is_new) samples.push_back({.key = key});
    Members& members = samples[it->second];
    if (suffix == "json" ? members.has_json : members.others.contains(suffix)) {
      return fail(name, absl::DataLossError("member appears twice"));
    }
    if (suffix == "json") {
      members.has_json = true;
      members.json = range;
    } else {
      members.others[suffix] = range;
    }
  }
  if (absl::Status status = CheckEndMark(file, end_of_data); !status.ok()) return fail("", status);
  if (samples.empty()) return fail("", absl::DataLossError("the tar has no samples in it"));

  std::vector<IndexedSample> indexed;
  for (const Members& members : samples) {
    if (!members.has_json) {
      return fail(absl::StrCat(members.key, ".", members.others.begin()->first),
                  absl::DataLossError(absl::StrCat("there is no ", members.key,
                                                   ".json beside it: a sample is a .json member "
                                                   "with the media it names")));
    }
    OMNI_ASSIGN_OR_RETURN(IndexedSample sample, Measure(file, shard, members, video, faults));
    indexed.push_back(std::move(sample));
  }
  return indexed;
}

absl::StatusOr<std::vector<IndexedSample>> ScanTar(const std::string& tar_path,
                                                   const VideoPlugin* video,
                                                   std::vector<std::string>* faults,
                                                   std::shared_ptr<Storage> storage) {
  OMNI_ASSIGN_OR_RETURN(const FileReader file, FileReader::Open(tar_path, std::move(storage)));
  return ScanTarFile(file, video, faults);
}

}  // namespace omni::dataloader
