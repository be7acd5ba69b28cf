#include "trainer/report/metrics_log.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "absl/time/clock.h"
#include "runtime/base/file.h"
#include "runtime/base/status.h"

namespace omni::trainer {
namespace {

absl::Status WriteFailed(const std::string& path) {
  const int error = errno;
  const std::string message = absl::StrCat(path, ": writing failed: ", std::strerror(error));
  return error == ENOSPC ? absl::ResourceExhaustedError(message) : absl::UnavailableError(message);
}

// Opens without a buffer of stdio's: what a write could not put into the file must neither come
// later nor hold up the end of the process.
std::FILE* OpenUnbuffered(const std::string& path, const char* mode) {
  std::FILE* file = std::fopen(path.c_str(), mode);
  if (file != nullptr) std::setvbuf(file, nullptr, _IONBF, 0);
  return file;
}

// Appends all of `text`, or nothing: it may be tried again.
absl::Status Append(std::FILE* file, const std::string& path, const std::string& text) {
  struct stat before {};
  if (fstat(fileno(file), &before) != 0) return WriteFailed(path);
  std::clearerr(file);
  if (std::fwrite(text.data(), 1, text.size(), file) == text.size()) return absl::OkStatus();
  const absl::Status status = WriteFailed(path);
  if (ftruncate(fileno(file), before.st_size) == 0) std::fseek(file, 0, SEEK_END);
  return status;
}

// CRC-32C (Castagnoli), as TFRecord files use it.
uint32_t Crc32c(const std::string& data) {
  static constexpr auto kTable = [] {
    std::array<uint32_t, 256> table{};
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t crc = i;
      for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? 0x82f63b78u : 0u);
      table[i] = crc;
    }
    return table;
  }();
  uint32_t crc = 0xffffffffu;
  for (const char c : data) crc = kTable[(crc ^ static_cast<uint8_t>(c)) & 0xff] ^ (crc >> 8);
  return crc ^ 0xffffffffu;
}

uint32_t Masked(uint32_t crc) { return ((crc >> 15) | (crc << 17)) + 0xa282ead8u; }

template <typename T>
std::string Bytes(T value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof(value));
}

// Field numbers of event.proto and summary.proto.
std::string Encode(const std::function<void(google::protobuf::io::CodedOutputStream&)>& body) {
  std::string out;
  {
    google::protobuf::io::StringOutputStream stream(&out);
    google::protobuf::io::CodedOutputStream coded(&stream);
    body(coded);
  }
  return out;
}

constexpr uint32_t kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5;
constexpr uint32_t Tag(uint32_t field, uint32_t wire_type) { return field << 3 | wire_type; }

void PutBytes(google::protobuf::io::CodedOutputStream& out, uint32_t field, const std::string& s) {
  out.WriteTag(Tag(field, kBytes));
  out.WriteVarint32(static_cast<uint32_t>(s.size()));
  out.WriteString(s);
}

void PutWallTime(google::protobuf::io::CodedOutputStream& out) {
  out.WriteTag(Tag(1, kFixed64));
  uint64_t bits;
  const double seconds = absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch());
  std::memcpy(&bits, &seconds, sizeof(bits));
  out.WriteLittleEndian64(bits);
}

}  // namespace

absl::StatusOr<std::unique_ptr<MetricsLog>> MetricsLog::Open(const std::string& path) {
  std::unique_ptr<MetricsLog> log(new MetricsLog(path));
  OMNI_RETURN_IF_ERROR(log->Reopen());
  return log;
}

absl::Status MetricsLog::Reopen() {
  if (file_ != nullptr) std::fclose(file_);
  file_ = OpenUnbuffered(path_, "ae");
  return file_ == nullptr ? WriteFailed(path_) : absl::OkStatus();
}

MetricsLog::~MetricsLog() {
  if (file_ != nullptr) std::fclose(file_);
}

absl::Status MetricsLog::TruncateFrom(int64_t step) {
  struct stat now {};
  if (stat(path_.c_str(), &now) == 0 && now.st_size == 0) return absl::OkStatus();
  std::ifstream file(path_);
  std::string kept, line;
  bool dropped = false;
  while (std::getline(file, line)) {
    const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    // A line torn by a crash goes too.
    const bool keep = json.is_object() && json.contains("step") &&
                      json["step"].is_number_integer() && json["step"].get<int64_t>() < step;
    if (keep) absl::StrAppend(&kept, line, "\n");
    dropped |= !keep;
  }
  if (!dropped) return absl::OkStatus();
  OMNI_RETURN_IF_ERROR(WriteFileAtomically(path_, kept));
  return Reopen();
}

absl::Status MetricsLog::Write(int64_t step, const std::map<std::string, double>& values) {
  nlohmann::ordered_json line;
  line["step"] = step;
  for (const auto& [name, value] : values) {
    if (std::isfinite(value))
      line[name] = value;
    else
      line[name] = nullptr;
  }
  if (file_ == nullptr) OMNI_RETURN_IF_ERROR(Reopen());
  // A name may come from data: what is no UTF-8 in it would throw.
  const std::string text =
      line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
  return Append(file_, path_, text);
}

absl::StatusOr<std::unique_ptr<TensorBoardWriter>> TensorBoardWriter::Create(
    const std::string& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  std::unique_ptr<TensorBoardWriter> writer(new TensorBoardWriter());
  writer->path_ = absl::StrCat(folder, "/events.out.tfevents.", absl::ToUnixSeconds(absl::Now()),
                               ".omnitrain.", getpid());
  writer->file_ = OpenUnbuffered(writer->path_, "we");
  if (writer->file_ == nullptr) return WriteFailed(writer->path_);
  OMNI_RETURN_IF_ERROR(writer->WriteRecord(Encode([](auto& out) {
    PutWallTime(out);
    PutBytes(out, 3, "brain.Event:2");  // file_version
  })));
  return writer;
}

TensorBoardWriter::~TensorBoardWriter() {
  if (file_ != nullptr) std::fclose(file_);
}

absl::Status TensorBoardWriter::WriteRecord(const std::string& event) {
  const std::string length = Bytes(static_cast<uint64_t>(event.size()));
  const std::string record =
      absl::StrCat(length, Bytes(Masked(Crc32c(length))), event, Bytes(Masked(Crc32c(event))));
  return Append(file_, path_, record);
}

absl::Status TensorBoardWriter::Start(int64_t step) {
  return WriteRecord(Encode([&](auto& out) {
    PutWallTime(out);
    out.WriteTag(Tag(2, kVarint));  // step
    out.WriteVarint64(static_cast<uint64_t>(step));
    PutBytes(out, 7, Encode([](auto& log) {    // session_log
               log.WriteTag(Tag(1, kVarint));  // status
               log.WriteVarint32(1);           // START
             }));
  }));
}

absl::Status TensorBoardWriter::Write(int64_t step, const std::map<std::string, double>& values) {
  const std::string summary = Encode([&](auto& out) {
    for (const auto& [name, value] : values) {
      if (std::isnan(value)) continue;  // there is none; what is wrong has a value of its own
      const float scalar = static_cast<float>(value);
      PutBytes(out, 1, Encode([&](auto& entry) {    // Summary.value
                 PutBytes(entry, 1, name);          // tag
                 entry.WriteTag(Tag(2, kFixed32));  // simple_value
                 uint32_t bits;
                 std::memcpy(&bits, &scalar, sizeof(bits));
                 entry.WriteLittleEndian32(bits);
               }));
    }
  });
  return WriteRecord(Encode([&](auto& out) {
    PutWallTime(out);
    out.WriteTag(Tag(2, kVarint));  // step
    out.WriteVarint64(static_cast<uint64_t>(step));
    PutBytes(out, 5, summary);
  }));
}

}  // namespace omni::trainer
