// Any bytes as a shard: indexing fails naming it, or every range lies inside and the index
// survives a round trip. Mutated headers get their checksums back, or nothing would be reached.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "dataloader/formats/index_record.h"
#include "dataloader/formats/tar_scan.h"
#include "runtime/base/check.h"

namespace omni::dataloader {

void FuzzTar(absl::string_view bytes) {
  const int fd = memfd_create("shard", MFD_CLOEXEC);
  OMNI_CHECK(fd >= 0);
  OMNI_CHECK(write(fd, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
  absl::StatusOr<FileReader> file = FileReader::FromDescriptor(UniqueFd(fd), "shard.tar");
  OMNI_CHECK_OK(file.status());
  const absl::StatusOr<std::vector<IndexedSample>> samples = ScanTarFile(*file, nullptr);
  if (!samples.ok()) {
    OMNI_CHECK(absl::StartsWith(samples.status().message(), "shard.tar"));
    return;
  }
  OMNI_CHECK(!samples->empty());
  for (const IndexedSample& sample : *samples) {
    OMNI_CHECK_EQ(sample.media.size(), sample.info.size());
    OMNI_CHECK_OK(file->Read(sample.json.offset, sample.json.size).status());
    for (const MemberRange& range : sample.media) {
      OMNI_CHECK_OK(file->Read(range.offset, range.size).status());
    }
    std::string record;
    AppendRecord(sample, &record);
    OMNI_CHECK(ParseRecord(record).has_value());
  }
  ParseRecord(bytes.substr(0, 4096));  // an index file's record may be anything
}

}  // namespace omni::dataloader

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  omni::dataloader::FuzzTar({reinterpret_cast<const char*>(data), size});
  return 0;
}

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned int seed) {
  size = LLVMFuzzerMutate(data, size, max_size);
  if (seed % 4 == 0) return size;
  if (seed % 4 != 1 && max_size >= 512) {  // whole blocks
    const size_t whole = std::min((size + 511) / 512 * 512, max_size / 512 * 512);
    if (whole > size) std::memset(data + size, 0, whole - size);
    size = whole;
  }
  for (size_t at = 0; at + 512 <= size; at += 512) {
    uint8_t* header = data + at;
    if (std::memcmp(header + 257, "ustar", 5) != 0) continue;
    std::memset(header + 148, ' ', 8);
    unsigned sum = 0;
    for (int i = 0; i < 512; ++i) sum += header[i];
    std::snprintf(reinterpret_cast<char*>(header + 148), 8, "%06o", sum);
    header[155] = ' ';
  }
  return size;
}

// libsndfile 1.2 forgets libvorbis' tables when it refuses a damaged file.
extern "C" const char* __lsan_default_suppressions() { return "leak:vorbis_info_init\n"; }
