#include "dataloader/formats/tar_index.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
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

// Either owned or mapped.
struct TarIndex::Bytes {
  ~Bytes() {
    if (mapped != nullptr) munmap(mapped, mapped_size);
  }
  absl::string_view all() const {
    return mapped == nullptr ? absl::string_view(owned)
                             : absl::string_view(static_cast<const char*>(mapped), mapped_size);
  }

  std::string path;  // for messages
  std::string owned;
  void* mapped = nullptr;
  size_t mapped_size = 0;
  uint64_t num_samples = 0;
  absl::string_view body;
};

TarIndex::TarIndex(std::unique_ptr<Bytes> bytes) : bytes_(std::move(bytes)) {}
TarIndex::~TarIndex() = default;

std::string IndexPath(const std::string& tar_path) { return tar_path + ".index"; }

absl::StatusOr<uint64_t> TarFingerprint(const std::string& tar_path) {
  OMNI_ASSIGN_OR_RETURN(const FileReader file, FileReader::Open(tar_path));
  return Fingerprint(file);
}

absl::StatusOr<int64_t> BuildTarIndex(const std::string& tar_path, const VideoPlugin* video,
                                      std::vector<std::string>* faults) {
  OMNI_ASSIGN_OR_RETURN(const std::vector<IndexedSample> samples, ScanTar(tar_path, video, faults));
  OMNI_ASSIGN_OR_RETURN(const FileReader tar, FileReader::Open(tar_path));
  OMNI_ASSIGN_OR_RETURN(const uint64_t fingerprint, Fingerprint(tar));
  OMNI_RETURN_IF_ERROR(
      WriteFileAtomically(IndexPath(tar_path), Serialise(samples, tar.size(), fingerprint)));
  return static_cast<int64_t>(samples.size());
}

absl::StatusOr<std::unique_ptr<TarIndex>> TarIndex::FromSamples(
    const std::string& tar_path, const std::vector<IndexedSample>& samples) {
  auto bytes = std::make_unique<Bytes>();
  bytes->path = absl::StrCat("index of ", tar_path);
  bytes->owned = Serialise(samples, 0, 0);
  bytes->num_samples = samples.size();
  bytes->body = absl::string_view(bytes->owned).substr(sizeof(Header));
  return std::unique_ptr<TarIndex>(new TarIndex(std::move(bytes)));
}

absl::StatusOr<std::unique_ptr<TarIndex>> TarIndex::Open(const std::string& tar_path) {
  const std::string path = IndexPath(tar_path);
  auto bytes = std::make_unique<Bytes>();
  bytes->path = path;
  {
    OMNI_ASSIGN_OR_RETURN(const FileReader file, FileReader::Open(path));
    if (file.size() < static_cast<int64_t>(sizeof(Header))) {
      return absl::DataLossError(absl::StrCat(path, ": torn, it has ", file.size(), " bytes"));
    }
    void* mapped = mmap(nullptr, file.size(), PROT_READ, MAP_PRIVATE, file.fd_at_start(), 0);
    if (mapped == MAP_FAILED) return absl::InternalError(absl::StrCat(path, ": can't be mapped"));
    bytes->mapped = mapped;
    bytes->mapped_size = file.size();
  }
  Header header;
  std::memcpy(&header, bytes->all().data(), sizeof header);
  bytes->body = bytes->all().substr(sizeof header);
  if (header.magic != kMagic) {
    return absl::DataLossError(absl::StrCat(path, ": not an index file"));
  }
  if (header.version != kVersion) {
    return absl::FailedPreconditionError(absl::StrCat(path, ": is of version ", header.version,
                                                      ", this program reads version ", kVersion));
  }
  if (header.header_hash != HashOf(header) || header.body_bytes != bytes->body.size() ||
      header.num_samples >= bytes->body.size() / sizeof(uint64_t) ||
      header.body_hash != XXH3_64bits_withSeed(bytes->body.data(), bytes->body.size(), kSeed)) {
    return absl::DataLossError(absl::StrCat(path, ": torn, its checksum does not fit"));
  }
  bytes->num_samples = header.num_samples;
  OMNI_ASSIGN_OR_RETURN(const FileReader tar, FileReader::Open(tar_path));
  OMNI_ASSIGN_OR_RETURN(const uint64_t fingerprint, Fingerprint(tar));
  if (header.tar_size != static_cast<uint64_t>(tar.size()) || header.fingerprint != fingerprint) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": is stale, ", tar_path, " has changed since it was made"));
  }
  return std::unique_ptr<TarIndex>(new TarIndex(std::move(bytes)));
}

int64_t TarIndex::num_samples() const { return static_cast<int64_t>(bytes_->num_samples); }

absl::StatusOr<IndexedSample> TarIndex::Get(int64_t index) const {
  const absl::string_view body = bytes_->body;
  uint64_t range[2];
  if (index < 0 || index >= num_samples()) {
    return absl::OutOfRangeError(
        absl::StrCat(bytes_->path, ": sample ", index, " of ", num_samples()));
  }
  std::memcpy(range, body.data() + index * sizeof(uint64_t), sizeof range);
  if (range[0] > range[1] || range[1] > body.size()) {
    return absl::DataLossError(absl::StrCat(bytes_->path, ": record ", index, " is broken"));
  }
  std::optional<IndexedSample> sample = ParseRecord(body.substr(range[0], range[1] - range[0]));
  if (!sample.has_value()) {
    return absl::DataLossError(absl::StrCat(bytes_->path, ": record ", index, " is broken"));
  }
  return *std::move(sample);
}

}  // namespace omni::dataloader
