#include "runtime/checkpoint/shard_stream.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <utility>

#include "absl/time/clock.h"
#include "runtime/base/status.h"

namespace omni {
ShardStream::ShardStream(const Checkpoint& index, int32_t shard, std::string path, OnBlock on_block)
    : index_(index), shard_(shard), path_(std::move(path)), on_block_(std::move(on_block)) {}

absl::StatusOr<std::unique_ptr<ShardStream>> ShardStream::Open(const Checkpoint& index,
                                                               int32_t shard, OnBlock on_block) {
  const Checkpoint::Shard& what = index.shards()[shard];
  std::unique_ptr<ShardStream> stream(new ShardStream(
      index, shard, absl::StrCat(index.path(), "/", what.file), std::move(on_block)));
  const std::string& path = stream->path_;
  stream->fd_ = UniqueFd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!stream->fd_.valid()) {
    const absl::Status status = FileError(errno, path, "can't be opened");
    return absl::IsNotFound(status) ? absl::DataLossError(status.message()) : status;
  }
  struct stat info {};
  if (fstat(stream->fd_.get(), &info) != 0) return FileError(errno, path, "can't be looked at");
  if (info.st_size != what.sum.num_bytes) {
    return checkpoint_layout::Compare(path, {.num_bytes = info.st_size, .hex = ""}, what.sum);
  }
  (void)posix_fadvise(stream->fd_.get(), 0, 0, POSIX_FADV_SEQUENTIAL);
  return stream;
}

absl::Status ShardStream::Next(int64_t most_bytes, absl::Duration longest, const Give& give) {
  const absl::Time start = absl::Now();
  for (int64_t done = 0; done < most_bytes && absl::Now() - start < longest && !is_over_;) {
    const absl::Time begin = absl::Now();
    const size_t before = buffer_.size();
    buffer_.resize(before + block_size_.bytes());
    const ssize_t count = read(fd_.get(), buffer_.data() + before, block_size_.bytes());
    buffer_.resize(before + std::max<ssize_t>(count, 0));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return FileError(errno, path_, "reading failed");
    const absl::string_view block(buffer_.data() + before, count);
    is_over_ = count == 0;
    sum_.Add(block);
    if (on_block_) OMNI_RETURN_IF_ERROR(on_block_(path_, block));
    block_size_.Took(absl::Now() - begin);
    done += count;
    if (!has_header_) OMNI_RETURN_IF_ERROR(ParseHeader());
    if (has_header_ && static_cast<int64_t>(buffer_.size()) >= most_bytes / 4) {
      OMNI_RETURN_IF_ERROR(GiveData(give));
    }
  }
  if (has_header_) OMNI_RETURN_IF_ERROR(GiveData(give));
  if (!is_over_) return absl::OkStatus();
  OMNI_RETURN_IF_ERROR(checkpoint_layout::Compare(path_, sum_.Sum(), index_.shards()[shard_].sum));
  if (has_header_ && next_stored_ == stored_.size()) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(path_, ": ends before all its tensors have come"));
}

absl::Status ShardStream::ParseHeader() {
  uint64_t length = 0;
  if (buffer_.size() < kSafetensorsLengthBytes) return absl::OkStatus();
  std::memcpy(&length, buffer_.data(), kSafetensorsLengthBytes);
  const int64_t file_bytes = index_.shards()[shard_].sum.num_bytes;
  const bool is_likely = length <= static_cast<uint64_t>(file_bytes - kSafetensorsLengthBytes);
  if (is_likely && buffer_.size() < kSafetensorsLengthBytes + length) return absl::OkStatus();
  const auto header = ParseSafetensorsHeader({buffer_.data(), buffer_.size()}, file_bytes);
  if (!header.ok()) return absl::DataLossError(Annotate(header.status(), path_).message());
  std::map<std::string, std::pair<const std::string*, const Checkpoint::Piece*>> wanted;
  for (const auto& [name, tensor] : index_.tensors()) {
    for (const auto* pieces : {&tensor.pieces, &tensor.columns}) {
      for (const Checkpoint::Piece& piece : *pieces) {
        if (piece.shard == shard_) wanted[piece.key] = {&name, &piece};
      }
    }
  }
  for (const auto& [key, where] : wanted) {
    const auto entry = header->tensors.find(key);
    if (entry == header->tensors.end()) {
      return absl::DataLossError(absl::StrCat(path_, ": no tensor \"", key, "\""));
    }
    const auto& [dtype, shape, begin, end] = entry->second;
    const checkpoint_layout::Runs& runs = where.second->runs;
    if ((end - begin) / SizeOf(dtype) != runs.num_elements()) {
      return absl::DataLossError(
          absl::StrCat(path_, ": \"", key, "\" has ", (end - begin) / SizeOf(dtype),
                       " elements, the manifest says ", runs.num_elements()));
    }
    if (end > begin) stored_.push_back({begin, end, dtype, where.first, runs});
  }
  std::sort(stored_.begin(), stored_.end(),
            [](const Stored& a, const Stored& b) { return a.begin < b.begin; });
  buffer_.erase(buffer_.begin(), buffer_.begin() + header->data_offset);
  has_header_ = true;
  return absl::OkStatus();
}

absl::Status ShardStream::GiveData(const Give& give) {
  int64_t at = data_begin_;  // all before it has been given
  const int64_t end = data_begin_ + static_cast<int64_t>(buffer_.size());
  while (next_stored_ < stored_.size()) {
    const Stored& stored = stored_[next_stored_];
    const int64_t size = SizeOf(stored.dtype);
    at = std::max(at, stored.begin);
    if (at >= end) break;
    // Whole elements of this piece that are here; `at` is at one's beginning.
    int64_t element = (at - stored.begin) / size;
    const int64_t last = (std::min(end, stored.end) - stored.begin) / size;
    while (element < last) {
      const int64_t run = element / stored.runs.count, within = element % stored.runs.count;
      const int64_t count = std::min(stored.runs.count - within, last - element);
      const char* data = buffer_.data() + (stored.begin + element * size - data_begin_);
      OMNI_RETURN_IF_ERROR(give({.tensor = stored.tensor,
                                 .dtype = stored.dtype,
                                 .begin = stored.runs.begin + run * stored.runs.stride + within,
                                 .count = count,
                                 .data = reinterpret_cast<const std::byte*>(data)}));
      element += count;
    }
    at = stored.begin + element * size;
    if (at < stored.end) break;
    ++next_stored_;
  }
  // Without pieces to come nothing of the rest is of use.
  if (next_stored_ == stored_.size()) at = end;
  at = std::clamp(at, data_begin_, end);
  buffer_.erase(buffer_.begin(), buffer_.begin() + (at - data_begin_));
  data_begin_ = at;
  return absl::OkStatus();
}

}  // namespace omni
