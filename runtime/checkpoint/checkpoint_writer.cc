#include <algorithm>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "runtime/base/check.h"
#include "runtime/base/exists.h"
#include "runtime/base/file.h"
#include "runtime/base/status.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/layout.h"

namespace omni {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr int64_t kTogetherBytes = int64_t{1} << 20;

// File by file, under a name that no checkpoint has: what a crash leaves of it is removed later.
absl::Status RemoveFolder(fs::path path, const OnBlock& on_block) {
  std::error_code error;
  if (path.extension() != ".partial") {
    const fs::path old = path.string() + ".old.partial";
    fs::rename(path, old, error);
    if (!error) path = old;
  }
  const auto entries = EntriesOf(path.string(), Depth::kTree);
  for (const std::string& entry : entries.ok() ? *entries : std::vector<std::string>()) {
    if (fs::is_directory(entry, error)) continue;
    fs::remove(entry, error);
    if (on_block) OMNI_RETURN_IF_ERROR(on_block(entry, {}));
  }
  fs::remove_all(path, error);
  return absl::OkStatus();
}

// Entries are the ranges end to end. Columns of a matrix are a range a row: small ones go together.
absl::Status WriteRanges(Snapshot& snapshot, const std::string& path,
                         absl::Span<const SafetensorsWriter::Entry> entries,
                         const OnBlock& on_block) {
  OMNI_ASSIGN_OR_RETURN(SafetensorsWriter writer,
                        SafetensorsWriter::Create(path, entries, {}, on_block));
  std::vector<std::byte> small;
  small.reserve(kTogetherBytes);
  const auto flush = [&]() -> absl::Status {
    const absl::Status status = writer.Append(small.data(), static_cast<int64_t>(small.size()));
    small.clear();
    return status;
  };
  for (size_t i = 0; i < snapshot.ranges().size(); ++i) {
    const TensorView& view = snapshot.ranges()[i].data;
    const auto* data = static_cast<const std::byte*>(view.data);
    const int64_t num_bytes = view.num_bytes();
    if (static_cast<int64_t>(small.size()) + num_bytes > kTogetherBytes) {
      OMNI_RETURN_IF_ERROR(flush());
    }
    if (num_bytes > kTogetherBytes) {
      OMNI_RETURN_IF_ERROR(writer.Append(data, num_bytes));
    } else {
      small.insert(small.end(), data, data + num_bytes);
    }
    snapshot.ReleaseThrough(i);
  }
  OMNI_RETURN_IF_ERROR(flush());
  return writer.Commit();
}

}  // namespace

CheckpointWriter::CheckpointWriter(std::string folder, int32_t rank, int32_t num_ranks,
                                   int32_t keep, OnBlock on_block)
    : folder_(std::move(folder)),
      rank_(rank),
      num_ranks_(num_ranks),
      keep_(keep),
      on_block_(std::move(on_block)) {}

CheckpointWriter::~CheckpointWriter() = default;

void CheckpointWriter::Begin(int64_t step, absl::Span<const TensorRange> ranges,
                             const std::string& state, const CopyOut& copy_out) {
  OMNI_CHECK(progress() == Progress::kIdle);
  step_ = step;
  // The memory of a write that stalls is still in use; of two there is never more than that.
  if (abandoned_ != nullptr && !abandoned_->is_over()) {
    write_ = std::make_unique<SideWork>([](const OnBlock&) {
      return absl::UnavailableError("a write of an earlier checkpoint still does not end");
    });
    return;
  }
  abandoned_.reset();
  save_->folder = checkpoint_layout::PartialFolder(folder_, step_);
  save_->rank = rank_;
  save_->state = state;
  const absl::Status taken = save_->snapshot.Take(ranges, copy_out);
  write_ = std::make_unique<SideWork>(
      [save = save_, taken](const OnBlock& tick) {
        const absl::Status status = taken.ok() ? Write(*save, tick) : taken;
        save->snapshot.Release();
        return status;
      },
      on_block_);
}

CheckpointWriter::Progress CheckpointWriter::progress() const {
  if (write_ == nullptr) return Progress::kIdle;
  if (!given_up_.ok()) return Progress::kFailed;
  if (!write_->is_over()) return Progress::kWriting;
  return write_->status().ok() ? Progress::kWritten : Progress::kFailed;
}

void CheckpointWriter::WaitWritten() {
  if (write_ != nullptr && given_up_.ok()) (void)write_->Await(absl::InfiniteDuration());
}

void CheckpointWriter::Abandon(const absl::Status& why) {
  OMNI_CHECK(write_ != nullptr);
  write_->Stop();
  given_up_ = why;
}

absl::Status CheckpointWriter::Write(Save& save, const OnBlock& tick) {
  std::error_code error;
  fs::create_directories(save.folder, error);
  if (error) return absl::UnavailableError(absl::StrCat(save.folder, ": ", error.message()));
  const std::string file = checkpoint_layout::ShardName(save.rank);

  const std::vector<TensorRange>& ranges = save.snapshot.ranges();
  std::vector<SafetensorsWriter::Entry> entries;
  Json index = Json::array();
  for (size_t i = 0; i < ranges.size();) {
    const TensorRange& range = ranges[i];
    checkpoint_layout::Runs runs = {.begin = range.begin, .count = range.data.num_elements()};
    for (++i; i < ranges.size(); ++i) {
      const TensorRange& next = ranges[i];
      if (next.name != range.name || next.data.dtype != range.data.dtype) break;
      if (!runs.Extend(next.begin, next.data.num_elements())) break;
    }
    const std::string key = absl::StrCat(range.name, "@", range.begin);
    entries.push_back({key, range.data.dtype, {runs.num_elements()}});
    index.push_back({{"name", range.name},
                     {"shape", range.shape},
                     {"begin", runs.begin},
                     {"count", runs.count},
                     {"key", key}});
    if (runs.runs > 1) {
      index.back()["stride"] = runs.stride;
      index.back()["runs"] = runs.runs;
    }
  }
  const std::string path = absl::StrCat(save.folder, "/", file);
  checkpoint_layout::Checksummer sum;
  const auto add = [&](absl::string_view name, absl::string_view block) {
    sum.Add(block);
    return tick(name, block);
  };
  OMNI_RETURN_IF_ERROR(WriteRanges(save.snapshot, path, entries, add));
  if (save.rank == 0) {
    OMNI_RETURN_IF_ERROR(WriteFileAtomically(save.folder + "/state.json", save.state));
  }
  const checkpoint_layout::Checksum checksum = sum.Sum();
  const Json part = {
      {"file", file}, {"bytes", checksum.num_bytes}, {"xxh3", checksum.hex}, {"ranges", index}};
  return WriteFileAtomically(absl::StrCat(path, ".part.json"), part.dump());
}

absl::Status CommitCheckpoint(const std::string& folder, int64_t step, int32_t num_ranks,
                              const OnBlock& on_block) {
  const auto tick = [&](const std::string& path) {
    return on_block ? on_block(path, {}) : absl::OkStatus();
  };
  const std::string partial = checkpoint_layout::PartialFolder(folder, step);
  Json manifest = {{"version", checkpoint_layout::kVersion},
                   {"step", step},
                   {"num_ranks", num_ranks},
                   {"shards", Json::array()}};
  for (int32_t rank = 0; rank < num_ranks; ++rank) {
    const std::string part =
        absl::StrCat(partial, "/", checkpoint_layout::ShardName(rank), ".part.json");
    OMNI_ASSIGN_OR_RETURN(const std::string text, ReadFile(part, on_block));
    Json shard = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!shard.is_object() || !shard.contains("ranges")) {
      return absl::DataLossError(absl::StrCat(part, ": is torn: ", text.size(),
                                              " bytes, expected what its rank has written"));
    }
    for (const Json& range : shard["ranges"]) {
      if (range.contains("runs")) manifest["version"] = checkpoint_layout::kVersionWithRuns;
    }
    manifest["shards"].push_back(std::move(shard));
  }
  OMNI_ASSIGN_OR_RETURN(const checkpoint_layout::Checksum state,
                        checkpoint_layout::ChecksumOf(partial + "/state.json", on_block));
  manifest["state"] = {{"bytes", state.num_bytes}, {"xxh3", state.hex}};
  OMNI_RETURN_IF_ERROR(WriteFileAtomically(partial + "/manifest.json", manifest.dump(1)));
  std::error_code error;
  for (int32_t rank = 0; rank < num_ranks; ++rank) {
    fs::remove(absl::StrCat(partial, "/", checkpoint_layout::ShardName(rank), ".part.json"), error);
  }
  const std::string path = checkpoint_layout::Folder(folder, step);
  // A checkpoint of the same step from before a resume.
  OMNI_RETURN_IF_ERROR(RemoveFolder(path, on_block));
  fs::rename(partial, path, error);
  if (error) return absl::UnavailableError(absl::StrCat(path, ": ", error.message()));
  OMNI_RETURN_IF_ERROR(tick(path));
  return SyncFolder(folder);
}

absl::Status PruneCheckpoints(const std::string& folder, int64_t step, int32_t keep,
                              const OnBlock& on_block,
                              const std::function<bool(int64_t)>& may_remove) {
  if (keep == 0) return absl::OkStatus();
  OMNI_ASSIGN_OR_RETURN(auto all, ListCheckpoints(folder));
  while (!all.empty() && all.back().first > step) all.pop_back();
  for (size_t i = 0; i + keep < all.size(); ++i) {
    if (may_remove && !may_remove(all[i].first)) continue;
    OMNI_RETURN_IF_ERROR(RemoveFolder(all[i].second, on_block));
  }
  return absl::OkStatus();
}

absl::Status CheckpointWriter::Commit() {
  OMNI_CHECK_EQ(rank_, 0);
  OMNI_RETURN_IF_ERROR(CommitCheckpoint(folder_, step_, num_ranks_, on_block_));
  return PruneCheckpoints(folder_, step_, keep_, on_block_);
}

absl::Status CheckpointWriter::Finish() {
  WaitWritten();
  if (write_ == nullptr) return absl::OkStatus();
  if (!given_up_.ok()) {
    abandoned_ = std::move(write_);
    save_ = std::make_shared<Save>();
    return std::exchange(given_up_, absl::OkStatus());
  }
  const absl::Status status = write_->status();
  write_.reset();
  return status;
}

absl::StatusOr<std::vector<std::pair<int64_t, std::string>>> ListCheckpoints(
    const std::string& folder) {
  std::vector<std::pair<int64_t, std::string>> found;
  const auto entries = EntriesOf(folder);
  if (absl::IsNotFound(entries.status())) return found;
  OMNI_RETURN_IF_ERROR(entries.status());
  for (const std::string& entry : *entries) {
    const auto step = checkpoint_layout::StepOfFolder(fs::path(entry).filename().string());
    if (step) found.emplace_back(*step, entry);
  }
  std::sort(found.begin(), found.end());
  return found;
}

void RemovePartialCheckpoints(const std::string& folder, const OnBlock& on_block) {
  const auto entries = EntriesOf(folder);
  if (!entries.ok()) return;  // who lists the checkpoints says so
  for (const fs::path path : *entries) {
    if (path.extension() == ".partial") (void)RemoveFolder(path, on_block);
  }
}

}  // namespace omni
