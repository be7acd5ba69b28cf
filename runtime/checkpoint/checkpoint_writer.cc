#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "runtime/base/check.h"
#include "runtime/base/file.h"
#include "runtime/base/status.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/layout.h"

namespace omni {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr int64_t kTogetherBytes = int64_t{1} << 20;

}  // namespace

CheckpointWriter::CheckpointWriter(std::string folder, int32_t rank, int32_t num_ranks,
                                   int32_t keep)
    : folder_(std::move(folder)), rank_(rank), num_ranks_(num_ranks), keep_(keep) {}

CheckpointWriter::~CheckpointWriter() {
  if (thread_.joinable()) thread_.join();
}

void CheckpointWriter::Begin(int64_t step, absl::Span<const TensorRange> ranges,
                             const std::string& state) {
  OMNI_CHECK(progress() == Progress::kIdle);
  if (thread_.joinable()) thread_.join();
  step_ = step;
  state_ = state;
  if (status_ = snapshot_.Take(ranges); !status_.ok()) {
    progress_.store(Progress::kFailed, std::memory_order_release);
    return;
  }
  progress_.store(Progress::kWriting, std::memory_order_release);
  thread_ = std::thread([this] {
    status_ = WriteShard();
    snapshot_.Release();
    progress_.store(status_.ok() ? Progress::kWritten : Progress::kFailed,
                    std::memory_order_release);
  });
}

void CheckpointWriter::WaitWritten() {
  if (thread_.joinable()) thread_.join();
}

absl::Status CheckpointWriter::WriteShard() {
  const std::string folder = checkpoint_layout::PartialFolder(folder_, step_);
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) return absl::UnavailableError(absl::StrCat(folder, ": ", error.message()));
  const std::string file = checkpoint_layout::ShardName(rank_);

  const std::vector<TensorRange>& ranges = snapshot_.ranges();
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
  const std::string path = absl::StrCat(folder, "/", file);
  OMNI_RETURN_IF_ERROR(WriteRanges(path, entries));
  OMNI_ASSIGN_OR_RETURN(const checkpoint_layout::Checksum checksum,
                        checkpoint_layout::ChecksumOf(path));
  if (rank_ == 0) OMNI_RETURN_IF_ERROR(WriteFileAtomically(folder + "/state.json", state_));
  const Json part = {
      {"file", file}, {"bytes", checksum.num_bytes}, {"xxh3", checksum.hex}, {"ranges", index}};
  return WriteFileAtomically(absl::StrCat(path, ".part.json"), part.dump());
}

// Entries are the ranges end to end. Columns of a matrix are a range a row: small ones go together.
absl::Status CheckpointWriter::WriteRanges(const std::string& path,
                                           absl::Span<const SafetensorsWriter::Entry> entries) {
  OMNI_ASSIGN_OR_RETURN(SafetensorsWriter writer, SafetensorsWriter::Create(path, entries));
  std::vector<std::byte> small;
  small.reserve(kTogetherBytes);
  const auto flush = [&]() -> absl::Status {
    const absl::Status status = writer.Append(small.data(), static_cast<int64_t>(small.size()));
    small.clear();
    return status;
  };
  for (size_t i = 0; i < snapshot_.ranges().size(); ++i) {
    const TensorView& view = snapshot_.ranges()[i].data;
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
    snapshot_.ReleaseThrough(i);
  }
  OMNI_RETURN_IF_ERROR(flush());
  return writer.Commit();
}

absl::Status CheckpointWriter::Commit() {
  OMNI_CHECK_EQ(rank_, 0);
  const std::string partial = checkpoint_layout::PartialFolder(folder_, step_);
  Json manifest = {{"version", checkpoint_layout::kVersion},
                   {"step", step_},
                   {"num_ranks", num_ranks_},
                   {"shards", Json::array()}};
  for (int32_t rank = 0; rank < num_ranks_; ++rank) {
    const std::string part =
        absl::StrCat(partial, "/", checkpoint_layout::ShardName(rank), ".part.json");
    OMNI_ASSIGN_OR_RETURN(const std::string text, ReadFile(part));
    manifest["shards"].push_back(Json::parse(text));
    for (const Json& range : manifest["shards"].back()["ranges"]) {
      if (range.contains("runs")) manifest["version"] = checkpoint_layout::kVersionWithRuns;
    }
  }
  OMNI_ASSIGN_OR_RETURN(const checkpoint_layout::Checksum state,
                        checkpoint_layout::ChecksumOf(partial + "/state.json"));
  manifest["state"] = {{"bytes", state.num_bytes}, {"xxh3", state.hex}};
  OMNI_RETURN_IF_ERROR(WriteFileAtomically(partial + "/manifest.json", manifest.dump(1)));
  std::error_code error;
  for (int32_t rank = 0; rank < num_ranks_; ++rank) {
    fs::remove(absl::StrCat(partial, "/", checkpoint_layout::ShardName(rank), ".part.json"), error);
  }
  const std::string path = checkpoint_layout::Folder(folder_, step_);
  fs::remove_all(path, error);  // a checkpoint of the same step from before a resume
  fs::rename(partial, path, error);
  if (error) return absl::UnavailableError(absl::StrCat(path, ": ", error.message()));
  OMNI_RETURN_IF_ERROR(SyncFolder(folder_));

  if (keep_ > 0) {
    auto all = ListCheckpoints(folder_);
    while (!all.empty() && all.back().first > step_) all.pop_back();
    for (size_t i = 0; i + keep_ < all.size(); ++i) fs::remove_all(all[i].second, error);
  }
  return absl::OkStatus();
}

absl::Status CheckpointWriter::Finish() {
  WaitWritten();
  progress_.store(Progress::kIdle, std::memory_order_release);
  return std::exchange(status_, absl::OkStatus());
}

std::vector<std::pair<int64_t, std::string>> ListCheckpoints(const std::string& folder) {
  std::vector<std::pair<int64_t, std::string>> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const auto step = checkpoint_layout::StepOfFolder(entry.path().filename().string());
    if (step) found.emplace_back(*step, entry.path().string());
  }
  std::sort(found.begin(), found.end());
  return found;
}

void RemovePartialCheckpoints(const std::string& folder) {
  std::error_code error;
  std::vector<fs::path> partial;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    if (entry.path().extension() == ".partial") partial.push_back(entry.path());
  }
  for (const fs::path& path : partial) fs::remove_all(path, error);
}

}  // namespace omni
