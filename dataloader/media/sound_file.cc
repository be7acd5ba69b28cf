#include "dataloader/media/sound_file.h"

#include <sndfile.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "dataloader/media/media_info.h"
#include "runtime/base/status.h"

namespace omni::dataloader {
namespace {

constexpr int64_t kChunkFrames = 4096;

struct MemoryFile {
  absl::string_view bytes;
  sf_count_t position = 0;
};

sf_count_t Length(void* user) {
  return static_cast<sf_count_t>(static_cast<MemoryFile*>(user)->bytes.size());
}

sf_count_t Seek(sf_count_t offset, int whence, void* user) {
  auto* file = static_cast<MemoryFile*>(user);
  const sf_count_t base = whence == SEEK_SET   ? 0
                          : whence == SEEK_CUR ? file->position
                                               : Length(user);
  file->position = std::clamp<sf_count_t>(base + offset, 0, Length(user));
  return file->position;
}

sf_count_t Read(void* out, sf_count_t count, void* user) {
  auto* file = static_cast<MemoryFile*>(user);
  count = std::clamp<sf_count_t>(count, 0, Length(user) - file->position);
  std::memcpy(out, file->bytes.data() + file->position, count);
  file->position += count;
  return count;
}

sf_count_t Write(const void*, sf_count_t, void*) { return 0; }
sf_count_t Tell(void* user) { return static_cast<MemoryFile*>(user)->position; }

uint32_t LittleEndian32(absl::string_view bytes, size_t at) {
  uint32_t value = 0;
  std::memcpy(&value, bytes.data() + at, 4);
  return value;
}

// libsndfile takes a cut-off WAV for a shorter one; its chunk sizes tell. Writers that could not
// seek back leave 0 or nearly 2^32 there, which says nothing.
absl::Status CheckWavIsWhole(absl::string_view bytes) {
  size_t at = 12;
  while (at + 8 <= bytes.size()) {
    const uint32_t size = LittleEndian32(bytes, at + 4);
    if (bytes.substr(at, 4) == "data") {
      const size_t left = bytes.size() - at - 8;
      if (size > left && size < 0x7ffff000u) {
        return absl::DataLossError(absl::StrCat("WAV is torn: its header promises ", size,
                                                " bytes of samples, the file has ", left));
      }
      return absl::OkStatus();
    }
    at += 8 + size_t{size} + (size & 1);
  }
  return absl::DataLossError("WAV has no samples (no data chunk)");
}

}  // namespace

struct SoundFile::Impl {
  ~Impl() {
    if (file != nullptr) sf_close(file);
  }
  MemoryFile memory;
  SF_INFO info{};
  SNDFILE* file = nullptr;
};

SoundFile::SoundFile(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
SoundFile::~SoundFile() = default;
SoundFile::SoundFile(SoundFile&&) noexcept = default;
SoundFile& SoundFile::operator=(SoundFile&&) noexcept = default;

absl::StatusOr<SoundFile> SoundFile::Open(absl::string_view bytes) {
  const MediaFormat format = SniffFormat(bytes);
  if (KindOf(format) != MediaKind::kAudio) {
    return absl::DataLossError(absl::StrCat("found ", DescribeContent(bytes),
                                            ", expected a sound (WAV, FLAC, OGG or MP3)"));
  }
  if (format == MediaFormat::kWav && absl::string_view(bytes.data(), 4) == "RIFF") {
    OMNI_RETURN_IF_ERROR(CheckWavIsWhole(bytes));
  }
  auto impl = std::make_unique<Impl>();
  impl->memory.bytes = bytes;
  SF_VIRTUAL_IO io{.get_filelen = Length, .seek = Seek, .read = Read, .write = Write, .tell = Tell};
  impl->file = sf_open_virtual(&io, SFM_READ, &impl->info, &impl->memory);
  if (impl->file == nullptr) {
    return absl::DataLossError(absl::StrCat("corrupt ", Name(format), ": ", sf_strerror(nullptr)));
  }
  const SF_INFO& info = impl->info;
  if (info.frames <= 0) {
    return absl::DataLossError(absl::StrCat(Name(format), " has no samples"));
  }
  if (info.samplerate < 1000 || info.samplerate > 384000 || info.channels < 1 ||
      info.channels > 64 || info.frames / info.samplerate > 86400) {
    return absl::DataLossError(absl::StrCat(Name(format), " header is absurd: ", info.channels,
                                            " channels of ", info.frames, " samples at ",
                                            info.samplerate, " Hz"));
  }
  return SoundFile(std::move(impl));
}

int64_t SoundFile::num_samples() const { return impl_->info.frames; }
int32_t SoundFile::sample_rate() const { return impl_->info.samplerate; }
int32_t SoundFile::num_channels() const { return impl_->info.channels; }

absl::StatusOr<std::vector<float>> SoundFile::ReadMono() {
  const int64_t n = num_samples();
  const int32_t channels = num_channels();
  // A header may lie about the length: memory grows with what is really read.
  std::vector<float> mono;
  std::vector<float> chunk(kChunkFrames * channels);
  mono.reserve(std::min<int64_t>(n, int64_t{1} << 24));
  while (static_cast<int64_t>(mono.size()) < n) {
    const int64_t want = std::min<int64_t>(kChunkFrames, n - mono.size());
    const int64_t got = sf_readf_float(impl_->file, chunk.data(), want);
    for (int64_t i = 0; i < got; ++i) {
      float sum = 0;
      for (int32_t c = 0; c < channels; ++c) sum += chunk[i * channels + c];
      mono.push_back(channels == 1 ? sum : sum / static_cast<float>(channels));
    }
    if (got < want) break;
  }
  if (static_cast<int64_t>(mono.size()) < n) {
    return absl::DataLossError(
        absl::StrCat("sound is torn: ", n, " samples expected, ", mono.size(), " could be read"));
  }
  return mono;
}

}  // namespace omni::dataloader
