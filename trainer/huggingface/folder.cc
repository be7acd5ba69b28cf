#include "trainer/huggingface/folder.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/match.h"
#include "runtime/base/exists.h"
#include "runtime/base/file.h"
#include "runtime/base/status.h"
#include "runtime/checkpoint/convert.h"

namespace omni::trainer {
namespace {

constexpr char kSingle[] = "model.safetensors";
constexpr char kIndex[] = "model.safetensors.index.json";
constexpr int64_t kScratchBytes = int64_t{1} << 18;  // of a thread, where types differ: in its L2

absl::Status ReadBytes(const HuggingFaceFolder::Tensor& tensor, const std::string& name,
                       int64_t offset, int64_t num_bytes, char* to) {
  offset += tensor.offset;
  while (num_bytes > 0) {
    const ssize_t got = pread(tensor.fd, to, num_bytes, offset);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      return absl::DataLossError(absl::StrCat(
          *tensor.file, ": tensor \"", name,
          "\": ", got == 0 ? "the file ends before it does (truncated)" : std::strerror(errno)));
    }
    to += got;
    offset += got;
    num_bytes -= got;
  }
  return absl::OkStatus();
}

// Tensor -> file. Not through ConfigNode: a large mixture of experts has 10^5 tensors.
absl::StatusOr<std::map<std::string, std::string>> ReadIndex(const std::string& path) {
  OMNI_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  const auto weight_map = json.is_object() ? json.find("weight_map") : json.end();
  if (json.is_discarded() || weight_map == json.end() || !weight_map->is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": expected JSON with \"weight_map\", from tensors to files"));
  }
  std::map<std::string, std::string> file_of;
  for (const auto& [tensor, file] : weight_map->items()) {
    if (!file.is_string() || absl::StrContains(file.get<std::string>(), '/')) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": weight_map: tensor \"", tensor,
                                                     "\": expected the name of a file beside it"));
    }
    file_of[tensor] = file.get<std::string>();
  }
  return file_of;
}

}  // namespace

absl::Status ReadElements(const HuggingFaceFolder::Tensor& tensor, const std::string& name,
                          int64_t begin, int64_t count, DType dtype, void* to) {
  const int64_t stored_bytes = SizeOf(tensor.dtype), wanted_bytes = SizeOf(dtype);
  if (tensor.dtype == dtype) {
    return ReadBytes(tensor, name, begin * stored_bytes, count * stored_bytes,
                     static_cast<char*>(to));
  }
  std::vector<char> scratch(std::min(count * stored_bytes, kScratchBytes));
  const int64_t at_once = kScratchBytes / stored_bytes;
  for (int64_t done = 0; done < count; done += at_once) {
    const int64_t now = std::min(at_once, count - done);
    OMNI_RETURN_IF_ERROR(
        ReadBytes(tensor, name, (begin + done) * stored_bytes, now * stored_bytes, scratch.data()));
    if (!ConvertElements(tensor.dtype, scratch.data(), dtype,
                         static_cast<char*>(to) + done * wanted_bytes, now)) {
      return absl::InvalidArgumentError(absl::StrCat(*tensor.file, ": tensor \"", name,
                                                     "\" is stored as ", Name(tensor.dtype),
                                                     ", which does not convert to ", Name(dtype)));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ConfigNode> HuggingFaceFolder::ReadConfig(const std::string& path) {
  if (!IsFolder(path)) {
    return absl::NotFoundError(absl::StrCat(path,
                                            ": no such folder, expected a Hugging Face "
                                            "model (config.json and *.safetensors)"));
  }
  return ConfigNode::LoadFile(path + "/config.json");
}

absl::StatusOr<std::unique_ptr<HuggingFaceFolder>> HuggingFaceFolder::Open(
    const std::string& path) {
  std::unique_ptr<HuggingFaceFolder> folder(new HuggingFaceFolder);
  folder->path_ = path;
  OMNI_ASSIGN_OR_RETURN(folder->config_, ReadConfig(path));
  if (Exists(path + "/" + kIndex)) {
    OMNI_ASSIGN_OR_RETURN(const auto file_of, ReadIndex(path + "/" + kIndex));
    std::set<std::string> names;
    for (const auto& [tensor, file] : file_of) names.insert(file);
    for (const std::string& name : names) OMNI_RETURN_IF_ERROR(folder->AddFile(name));
    OMNI_RETURN_IF_ERROR(folder->CheckIndex(file_of));
    return folder;
  }
  if (!Exists(path + "/" + kSingle)) {
    return absl::NotFoundError(
        absl::StrCat(path, ": no weights, expected ", kSingle, " or ", kIndex));
  }
  OMNI_RETURN_IF_ERROR(folder->AddFile(kSingle));
  return folder;
}

absl::Status HuggingFaceFolder::AddFile(const std::string& name) {
  const std::string path = path_ + "/" + name;
  OMNI_ASSIGN_OR_RETURN(const auto file, SafetensorsFile::Open(path));
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return absl::NotFoundError(absl::StrCat(path, ": ", std::strerror(errno)));
  const auto owned = files_.emplace(path, fd).first;
  for (const auto& [tensor, entry] : file->header().tensors) {
    const auto [at, is_new] =
        tensors_.emplace(tensor, Tensor{.file = &owned->first,
                                        .fd = fd,
                                        .offset = file->header().data_offset + entry.begin,
                                        .dtype = entry.dtype,
                                        .shape = entry.shape});
    if (!is_new) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": tensor \"", tensor, "\" is also in ", *at->second.file));
    }
  }
  return absl::OkStatus();
}

absl::Status HuggingFaceFolder::CheckIndex(const std::map<std::string, std::string>& file_of) {
  for (const auto& [name, file] : file_of) {
    const auto found = tensors_.find(name);
    const std::string expected = path_ + "/" + file;
    if (found == tensors_.end() || *found->second.file != expected) {
      return absl::InvalidArgumentError(
          absl::StrCat(expected, ": no tensor \"", name, "\", which ", kIndex, " says it holds"));
    }
  }
  return absl::OkStatus();
}

HuggingFaceFolder::~HuggingFaceFolder() {
  for (const auto& [path, fd] : files_) close(fd);
}

absl::StatusOr<const HuggingFaceFolder::Tensor*> HuggingFaceFolder::Find(
    const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found != tensors_.end()) return &found->second;
  std::vector<std::string> names;
  for (const auto& [other, tensor] : tensors_) names.push_back(other);
  const std::string nearest = NearestName(name, names);
  return absl::NotFoundError(
      absl::StrCat(path_, ": no tensor \"", name, "\" in its *.safetensors",
                   nearest.empty() ? "" : absl::StrCat("; the nearest is \"", nearest, "\"")));
}

}  // namespace omni::trainer
