#include "dataloader/formats/tar_index.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <utility>

#define XXH_INLINE_ALL  // no library to link
#include <xxhash.h>

#include "absl/strings/str_cat.h"
#include "dataloader/formats/file_reader.h"
#include "dataloader/formats/index_record.h"
#include "runtime/base/file.h"
#include "runtime/base/status.h"

namespace omni::dataloader {
namespace {

constexpr uint64_t kMagic = 0x58444954494e4d4fu;  // "OMNITIDX"
constexpr uint64_t kVersion = 1;
constexpr uint64_t kSeed = 0;
constexpr int64_t kInMemory = int64_t{64} << 10;  // bytes of an index that is kept
constexpr int64_t kIndexReadBytes = int64_t{1} << 20;

struct Header {
  uint64_t magic, version, tar_size, fingerprint, num_samples, body_bytes, body_hash, header_hash;
};
static_assert(sizeof(Header) == 64);

uint64_t HashOf(const Header& header) {
  return XXH3_64bits_withSeed(&header, offsetof(Header, header_hash), kSeed);
}

std::string Serialise(const std::vector<IndexedSample>& samples, uint64_t tar_size,
                      uint64_t fingerprint) {
  std::string offsets, records;
  const uint64_t table_bytes = (samples.size() + 1) * sizeof(uint64_t);
  for (size_t i = 0; i <= samples.size(); ++i) {
    const uint64_t offset = table_bytes + records.size();
    offsets.append(reinterpret_cast<const char*>(&offset), sizeof offset);
    if (i < samples.size()) AppendRecord(samples[i], &records);
  }
  const std::string body = offsets + records;
  Header header{.magic = kMagic,
                .version = kVersion,
                .tar_size = tar_size,
                .fingerprint = fingerprint,
                .num_samples = samples.size(),
                .body_bytes = body.size(),
                .body_hash = XXH3_64bits_withSeed(body.data(), body.size(), kSeed),
                .header_hash = 0};
  header.header_hash = HashOf(header);
  return std::string(reinterpret_cast<const char*>(&header), sizeof header) + body;
}

absl::StatusOr<uint64_t> Fingerprint(const FileReader& file) {
  constexpr int64_t kWhole = 1 << 20, kPiece = 1 << 12, kPieces = 16;
  const int64_t size = file.size();
  const int64_t piece = size <= kWhole ? size : kPiece;
  const int64_t pieces = size <= kWhole ? 1 : kPieces;
  uint64_t hash = static_cast<uint64_t>(size);
  for (int64_t i = 0; i < pieces; ++i) {
    const int64_t at = pieces == 1 ? 0 : (size - piece) / (pieces - 1) * i;
    OMNI_ASSIGN_OR_RETURN(const std::string bytes, file.Read(at, piece));
    hash = XXH3_64bits_withSeed(bytes.data(), bytes.size(), hash);
  }
  return hash;
}

}  // namespace

struct TarIndex::State {
  std::string path;  // for messages
  std::shared_ptr<Storage> storage;
  std::string body;  // all of it, or empty: in the file
  int64_t body_bytes = 0;
  int64_t num_samples = 0;
  int64_t tar_size = 0;

  std::mutex mutex;  // of the record asked for last: a sample is looked up several times in a row
  int64_t last_index = -1;
  std::string last_record;
};

TarIndex::TarIndex(std::unique_ptr<State> state) : state_(std::move(state)) {}
TarIndex::~TarIndex() = default;

std::string IndexPath(const std::string& tar_path) { return tar_path + ".index"; }

absl::StatusOr<uint64_t> TarFingerprint(const std::string& tar_path) {
  OMNI_ASSIGN_OR_RETURN(const FileReader file, FileReader::Open(tar_path));
  return Fingerprint(file);
}

absl::StatusOr<int64_t> BuildTarIndex(const std::string& tar_path, const VideoPlugin* video,
                                      std::vector<std::string>* faults,
                                      std::shared_ptr<Storage> storage) {
  OMNI_ASSIGN_OR_RETURN(const std::vector<IndexedSample> samples,
                        ScanTar(tar_path, video, faults, storage));
  OMNI_ASSIGN_OR_RETURN(const FileReader tar, FileReader::Open(tar_path, storage));
  OMNI_ASSIGN_OR_RETURN(const uint64_t fingerprint, Fingerprint(tar));
  OMNI_RETURN_IF_ERROR(
      WriteFileAtomically(IndexPath(tar_path), Serialise(samples, tar.size(), fingerprint)));
  return static_cast<int64_t>(samples.size());
}

absl::StatusOr<std::unique_ptr<TarIndex>> TarIndex::FromSamples(
    const std::string& tar_path, const std::vector<IndexedSample>& samples) {
  auto state = std::make_unique<State>();
  state->path = absl::StrCat("index of ", tar_path);
  state->body = Serialise(samples, 0, 0).substr(sizeof(Header));
  state->body_bytes = static_cast<int64_t>(state->body.size());
  state->num_samples = static_cast<int64_t>(samples.size());
  return std::unique_ptr<TarIndex>(new TarIndex(std::move(state)));
}

absl::StatusOr<std::unique_ptr<TarIndex>> TarIndex::Open(const std::string& tar_path,
                                                         std::shared_ptr<Storage> storage) {
  const std::string path = IndexPath(tar_path);
  OMNI_ASSIGN_OR_RETURN(const FileReader file, FileReader::Open(path, std::move(storage)));
  Header header;
  const int64_t body_bytes = file.size() - static_cast<int64_t>(sizeof header);
  if (body_bytes < 0) {
    return absl::DataLossError(absl::StrCat(path, ": torn, it has ", file.size(), " bytes"));
  }
  OMNI_ASSIGN_OR_RETURN(const std::string first, file.Read(0, sizeof header));
  std::memcpy(&header, first.data(), sizeof header);
  if (header.magic != kMagic) {
    return absl::DataLossError(absl::StrCat(path, ": not an index file"));
  }
  if (header.version != kVersion) {
    return absl::FailedPreconditionError(absl::StrCat(path, ": is of version ", header.version,
                                                      ", this program reads version ", kVersion));
  }
  auto state = std::make_unique<State>();
  const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> hash(XXH3_createState(),
                                                                             XXH3_freeState);
  XXH3_64bits_reset_withSeed(hash.get(), kSeed);
  for (int64_t at = 0; at < body_bytes; at += kIndexReadBytes) {
    OMNI_ASSIGN_OR_RETURN(std::string piece, file.Read(static_cast<int64_t>(sizeof header) + at,
                                                       std::min(kIndexReadBytes, body_bytes - at)));
    XXH3_64bits_update(hash.get(), piece.data(), piece.size());
    if (body_bytes <= kInMemory) state->body = std::move(piece);
  }
  if (header.header_hash != HashOf(header) ||
      header.body_bytes != static_cast<uint64_t>(body_bytes) ||
      header.num_samples >= static_cast<uint64_t>(body_bytes) / sizeof(uint64_t) ||
      header.body_hash != XXH3_64bits_digest(hash.get())) {
    return absl::DataLossError(absl::StrCat(path, ": torn, its checksum does not fit"));
  }
  OMNI_ASSIGN_OR_RETURN(const FileReader tar, FileReader::Open(tar_path, file.storage()));
  OMNI_ASSIGN_OR_RETURN(const uint64_t fingerprint, Fingerprint(tar));
  if (header.tar_size != static_cast<uint64_t>(tar.size()) || header.fingerprint != fingerprint) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": is stale, ", tar_path, " has changed since it was made"));
  }
  state->path = path;
  state->storage = file.storage();
  state->body_bytes = body_bytes;
  state->num_samples = static_cast<int64_t>(header.num_samples);
  state->tar_size = tar.size();
  return std::unique_ptr<TarIndex>(new TarIndex(std::move(state)));
}

int64_t TarIndex::num_samples() const { return state_->num_samples; }
int64_t TarIndex::tar_size() const { return state_->tar_size; }

absl::StatusOr<std::string> TarIndex::ReadRecord(int64_t index) const {
  const State& state = *state_;
  const auto read = [&](const FileReader* file, int64_t at,
                        int64_t count) -> absl::StatusOr<std::string> {
    if (file == nullptr) return state.body.substr(at, count);
    return file->Read(static_cast<int64_t>(sizeof(Header)) + at, count);
  };
  const auto attempt = [&](const FileReader* file) -> absl::StatusOr<std::string> {
    uint64_t range[2];
    OMNI_ASSIGN_OR_RETURN(const std::string offsets,
                          read(file, index * static_cast<int64_t>(sizeof(uint64_t)), sizeof range));
    std::memcpy(range, offsets.data(), sizeof range);
    if (range[0] > range[1] || range[1] > static_cast<uint64_t>(state.body_bytes)) {
      return absl::DataLossError(absl::StrCat(state.path, ": record ", index, " is broken"));
    }
    return read(file, static_cast<int64_t>(range[0]), static_cast<int64_t>(range[1] - range[0]));
  };
  if (!state.body.empty()) return attempt(nullptr);
  return state.storage->Retry([&](int32_t) -> absl::StatusOr<std::string> {
    absl::StatusOr<FileReader> file = FileReader::Open(state.path, state.storage);
    // It was there when the job began.
    if (!file.ok()) return absl::UnavailableError(file.status().message());
    if (file->size() != static_cast<int64_t>(sizeof(Header)) + state.body_bytes) {
      return absl::UnavailableError(
          absl::StrCat(state.path, ": has changed since it was opened: it has ", file->size(),
                       " bytes, it had ", static_cast<int64_t>(sizeof(Header)) + state.body_bytes));
    }
    return attempt(&*file);
  });
}

absl::StatusOr<IndexedSample> TarIndex::Get(int64_t index) const {
  State& state = *state_;
  if (index < 0 || index >= num_samples()) {
    return absl::OutOfRangeError(
        absl::StrCat(state.path, ": sample ", index, " of ", num_samples()));
  }
  std::string record;
  {
    const std::lock_guard lock(state.mutex);
    if (state.last_index == index) record = state.last_record;
  }
  if (record.empty()) {
    OMNI_ASSIGN_OR_RETURN(record, ReadRecord(index));
    const std::lock_guard lock(state.mutex);
    state.last_index = index;
    state.last_record = record;
  }
  std::optional<IndexedSample> sample = ParseRecord(record);
  if (!sample.has_value()) {
    return absl::DataLossError(absl::StrCat(state.path, ": record ", index, " is broken"));
  }
  return *std::move(sample);
}

}  // namespace omni::dataloader
