#include "runtime/checkpoint/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>

#include "absl/strings/str_join.h"
#include "runtime/base/check.h"
#include "runtime/base/config.h"
#include "runtime/base/file.h"
#include "runtime/base/status.h"

namespace omni {
namespace {

using OrderedJson = nlohmann::ordered_json;

constexpr int64_t kMaxHeaderBytes = 100'000'000;  // as the reference implementation
constexpr int64_t kAlignment = 64;

struct DTypeName {
  DType dtype;
  const char* name;
};
constexpr DTypeName kDTypeNames[] = {{DType::kFloat64, "F64"},   {DType::kFloat32, "F32"},
                                     {DType::kBFloat16, "BF16"}, {DType::kInt32, "I32"},
                                     {DType::kInt64, "I64"},     {DType::kUInt8, "U8"}};

const char* SafetensorsName(DType dtype) {
  for (const auto& entry : kDTypeNames) {
    if (entry.dtype == dtype) return entry.name;
  }
  CheckFailed(__FILE__, __LINE__, "dtype without a safetensors name");
}

std::optional<DType> DTypeFromName(const std::string& name) {
  for (const auto& entry : kDTypeNames) {
    if (name == entry.name) return entry.dtype;
  }
  return std::nullopt;
}

absl::Status Bad(absl::string_view tensor, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("tensor \"", tensor, "\": ", what));
}

absl::StatusOr<std::vector<int64_t>> NonNegativeList(const OrderedJson& json) {
  if (!json.is_array()) return absl::InvalidArgumentError("expected a list of integers");
  std::vector<int64_t> list;
  for (const OrderedJson& item : json) {
    if (!item.is_number_unsigned() || item.get<uint64_t>() > uint64_t{1} << 62) {
      return absl::InvalidArgumentError("expected a list of non-negative integers");
    }
    list.push_back(static_cast<int64_t>(item.get<uint64_t>()));
  }
  return list;
}

absl::StatusOr<SafetensorsEntry> ParseEntry(const std::string& name, const OrderedJson& json) {
  if (!json.is_object() || !json.contains("dtype") || !json["dtype"].is_string() ||
      !json.contains("shape") || !json.contains("data_offsets")) {
    return Bad(name, "expected dtype, shape and data_offsets");
  }
  SafetensorsEntry entry;
  const auto dtype = DTypeFromName(json["dtype"].get<std::string>());
  if (!dtype) {
    return Bad(name, absl::StrCat("dtype ", json["dtype"].get<std::string>(),
                                  " is not one of F64, F32, BF16, I64, I32, U8"));
  }
  entry.dtype = *dtype;
  auto shape = NonNegativeList(json["shape"]);
  if (!shape.ok()) return Bad(name, absl::StrCat("shape: ", shape.status().message()));
  if (shape->size() > static_cast<size_t>(kMaxDims)) {
    return Bad(name, absl::StrCat("has ", shape->size(), " dims, at most ", kMaxDims, " are read"));
  }
  auto offsets = NonNegativeList(json["data_offsets"]);
  if (!offsets.ok() || offsets->size() != 2 || (*offsets)[0] > (*offsets)[1]) {
    return Bad(name, "data_offsets must be [begin, end] with begin <= end");
  }
  entry.shape = *std::move(shape);
  entry.begin = (*offsets)[0];
  entry.end = (*offsets)[1];
  int64_t num_bytes = SizeOf(entry.dtype);
  for (const int64_t size : entry.shape) {
    if (__builtin_mul_overflow(num_bytes, size, &num_bytes)) return Bad(name, "shape overflows");
  }
  if (num_bytes != entry.end - entry.begin) {
    return Bad(name, absl::StrCat("shape [", absl::StrJoin(entry.shape, ", "), "] of ",
                                  SafetensorsName(entry.dtype), " takes ", num_bytes,
                                  " bytes, data_offsets hold ", entry.end - entry.begin));
  }
  return entry;
}

// Every byte of the data belongs to exactly one tensor.
absl::Status CheckTiling(const SafetensorsHeader& header, int64_t data_bytes) {
  std::vector<std::pair<int64_t, const std::string*>> order;
  for (const auto& [name, entry] : header.tensors) order.emplace_back(entry.begin, &name);
  std::stable_sort(order.begin(), order.end(), [&](const auto& a, const auto& b) {
    return std::pair(a.first, header.tensors.at(*a.second).end) <
           std::pair(b.first, header.tensors.at(*b.second).end);
  });
  int64_t expected = 0;
  for (const auto& [begin, name] : order) {
    if (begin != expected) {
      return Bad(*name, absl::StrCat("starts at byte ", begin, " of the data, expected ", expected,
                                     " (a hole or an overlap)"));
    }
    expected = header.tensors.at(*name).end;
  }
  if (expected != data_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("tensors take ", expected,
                                                   " bytes, the file holds ", data_bytes,
                                                   expected > data_bytes ? " (truncated)" : ""));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(absl::string_view prefix,
                                                         int64_t file_bytes) {
  if (file_bytes < kSafetensorsLengthBytes ||
      static_cast<int64_t>(prefix.size()) < kSafetensorsLengthBytes) {
    return absl::InvalidArgumentError(absl::StrCat("not a safetensors file: ", file_bytes,
                                                   " bytes, shorter than its length field"));
  }
  uint64_t length = 0;
  std::memcpy(&length, prefix.data(), sizeof(length));
  if (length > static_cast<uint64_t>(kMaxHeaderBytes) ||
      static_cast<int64_t>(length) > file_bytes - kSafetensorsLengthBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("not a safetensors file, or truncated: header of ", length,
                     " bytes in a file of ", file_bytes));
  }
  if (prefix.size() < kSafetensorsLengthBytes + length) {
    return absl::InvalidArgumentError("the header was not read whole");
  }
  const absl::string_view text = prefix.substr(kSafetensorsLengthBytes, length);
  const OrderedJson json =
      OrderedJson::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return absl::InvalidArgumentError("the header is not a JSON object");
  SafetensorsHeader header;
  header.data_offset = kSafetensorsLengthBytes + static_cast<int64_t>(length);
  for (const auto& [name, value] : json.items()) {
    if (name == "__metadata__") {
      if (!value.is_object()) return absl::InvalidArgumentError("__metadata__ is not an object");
      for (const auto& [key, text_value] : value.items()) {
        if (!text_value.is_string())
          return absl::InvalidArgumentError("__metadata__ holds more than text");
        header.metadata[key] = text_value.get<std::string>();
      }
      continue;
    }
    OMNI_ASSIGN_OR_RETURN(SafetensorsEntry entry, ParseEntry(name, value));
    if (!header.tensors.emplace(name, std::move(entry)).second) return Bad(name, "is listed twice");
  }
  OMNI_RETURN_IF_ERROR(CheckTiling(header, file_bytes - header.data_offset));
  return header;
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return FileError(errno, path, "can't be opened");
  struct stat info {};
  if (fstat(fd.get(), &info) != 0 || !S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": is not a file"));
  }
  auto file = std::unique_ptr<SafetensorsFile>(new SafetensorsFile());
  file->path_ = path;
  file->mapping_bytes_ = info.st_size;
  if (info.st_size == 0) return absl::InvalidArgumentError(absl::StrCat(path, ": is empty"));
  void* mapping = mmap(nullptr, info.st_size, PROT_READ, MAP_SHARED, fd.get(), 0);
  if (mapping == MAP_FAILED) return FileError(errno, path, "can't be mapped");
  file->mapping_ = mapping;
  auto header = ParseSafetensorsHeader(
      absl::string_view(static_cast<const char*>(mapping), info.st_size), info.st_size);
  if (!header.ok()) return Annotate(header.status(), path);
  file->header_ = *std::move(header);
  return file;
}

SafetensorsFile::~SafetensorsFile() {
  if (mapping_ != nullptr) munmap(mapping_, mapping_bytes_);
}

std::vector<std::string> SafetensorsFile::names() const {
  std::vector<std::string> names;
  for (const auto& [name, entry] : header_.tensors) names.push_back(name);
  return names;
}

absl::StatusOr<TensorView> SafetensorsFile::Get(const std::string& name) const {
  const auto it = header_.tensors.find(name);
  if (it == header_.tensors.end()) {
    const std::string nearest = NearestName(name, names());
    return absl::NotFoundError(
        absl::StrCat(path_, ": no tensor \"", name, "\"",
                     nearest.empty() ? "" : absl::StrCat("; the nearest is \"", nearest, "\"")));
  }
  std::byte* data = static_cast<std::byte*>(mapping_) + header_.data_offset + it->second.begin;
  return TensorView::Dense(data, it->second.dtype, DeviceKind::kCpu, it->second.shape);
}

struct SafetensorsWriter::Impl {
  AtomicFile file;
  int64_t bytes_left;
};

SafetensorsWriter::SafetensorsWriter(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
SafetensorsWriter::SafetensorsWriter(SafetensorsWriter&&) noexcept = default;
SafetensorsWriter::~SafetensorsWriter() = default;

absl::StatusOr<SafetensorsWriter> SafetensorsWriter::Create(
    const std::string& path, absl::Span<const Entry> entries,
    const std::map<std::string, std::string>& metadata, OnBlock on_block) {
  OrderedJson header = OrderedJson::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  int64_t offset = 0;
  for (const Entry& entry : entries) {
    OMNI_CHECK(!header.contains(entry.name));
    int64_t end = SizeOf(entry.dtype);
    for (const int64_t size : entry.shape) end *= size;
    end += offset;
    header[entry.name] = {{"dtype", SafetensorsName(entry.dtype)},
                          {"shape", entry.shape},
                          {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
  // Spaces after the JSON keep the data aligned, as the format allows.
  text.resize((text.size() + kSafetensorsLengthBytes + kAlignment - 1) / kAlignment * kAlignment -
                  kSafetensorsLengthBytes,
              ' ');
  OMNI_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::Create(path, std::move(on_block)));
  const uint64_t length = text.size();
  OMNI_RETURN_IF_ERROR(file.Write(&length, sizeof(length)));
  OMNI_RETURN_IF_ERROR(file.Write(text.data(), static_cast<int64_t>(text.size())));
  return SafetensorsWriter(std::make_unique<Impl>(Impl{std::move(file), offset}));
}

absl::Status SafetensorsWriter::Append(const void* data, int64_t num_bytes) {
  impl_->bytes_left -= num_bytes;
  OMNI_CHECK_GE(impl_->bytes_left, 0);
  return impl_->file.Write(data, num_bytes);
}

absl::Status SafetensorsWriter::Commit() {
  OMNI_CHECK_EQ(impl_->bytes_left, 0);
  return impl_->file.Commit();
}

absl::Status WriteSafetensors(const std::string& path,
                              absl::Span<const std::pair<std::string, TensorView>> tensors,
                              const std::map<std::string, std::string>& metadata,
                              OnBlock on_block) {
  std::vector<SafetensorsWriter::Entry> entries;
  for (const auto& [name, view] : tensors) {
    OMNI_CHECK(view.is_dense());
    entries.push_back({name, view.dtype, {view.shape().begin(), view.shape().end()}});
  }
  OMNI_ASSIGN_OR_RETURN(SafetensorsWriter writer,
                        SafetensorsWriter::Create(path, entries, metadata, std::move(on_block)));
  for (const auto& [name, view] : tensors) {
    OMNI_RETURN_IF_ERROR(writer.Append(view.data, view.num_bytes()));
  }
  return writer.Commit();
}

}  // namespace omni
