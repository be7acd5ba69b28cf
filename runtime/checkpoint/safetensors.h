// safetensors files: named tensors in one file, as Hugging Face writes them.
//
// Layout: 8 bytes little-endian header length, a JSON header
// {"name": {"dtype": "F32", "shape": [..], "data_offsets": [begin, end]}, "__metadata__": {..}},
// then the data. The reader checks everything the header claims before it believes any of it:
// offsets must tile the data without overlap or hole, sizes must match shapes.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/base/file.h"
#include "runtime/tensor/view.h"

namespace omni {

struct SafetensorsEntry {
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape;
  int64_t begin = 0, end = 0;  // bytes, from the start of the data
};

// A file begins with the length of its header.
inline constexpr int64_t kSafetensorsLengthBytes = 8;

struct SafetensorsHeader {
  std::map<std::string, SafetensorsEntry> tensors;
  std::map<std::string, std::string> metadata;
  int64_t data_offset = 0;  // of the data in the file
};

// Parses the first bytes of a file of `file_bytes`; `prefix` must hold the whole header.
// InvalidArgument, naming the tensor, for anything malformed.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(absl::string_view prefix,
                                                         int64_t file_bytes);

// A file mapped read-only; views into it live as long as the object.
class SafetensorsFile {
 public:
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const std::string& path() const { return path_; }
  const SafetensorsHeader& header() const { return header_; }
  std::vector<std::string> names() const;
  bool Has(const std::string& name) const { return header_.tensors.count(name) > 0; }
  // NotFound, naming file and tensor (and the nearest name there is).
  absl::StatusOr<TensorView> Get(const std::string& name) const;

 private:
  SafetensorsFile() = default;
  std::string path_;
  SafetensorsHeader header_;
  void* mapping_ = nullptr;
  int64_t mapping_bytes_ = 0;
};

// Writes a file tensor by tensor, so that only one need be in memory. Goes to a partial file
// first, is synced, then renamed, so `path` never holds half a file. A full disk is
// ResourceExhausted.
class SafetensorsWriter {
 public:
  struct Entry {
    std::string name;
    DType dtype = DType::kFloat32;
    std::vector<int64_t> shape;
  };
  static absl::StatusOr<SafetensorsWriter> Create(
      const std::string& path, absl::Span<const Entry> entries,
      const std::map<std::string, std::string>& metadata = {}, OnBlock on_block = {});
  SafetensorsWriter(SafetensorsWriter&&) noexcept;
  ~SafetensorsWriter();

  // The next bytes of the data: the entries' elements, dense, one after the other.
  absl::Status Append(const void* data, int64_t num_bytes);
  // CHECK-fails unless every entry has been appended whole.
  absl::Status Commit();

 private:
  struct Impl;
  explicit SafetensorsWriter(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// The same for dense host tensors that are all there.
absl::Status WriteSafetensors(const std::string& path,
                              absl::Span<const std::pair<std::string, TensorView>> tensors,
                              const std::map<std::string, std::string>& metadata = {},
                              OnBlock on_block = {});

}  // namespace omni
