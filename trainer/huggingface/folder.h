// A model as Hugging Face keeps it: config.json, model*.safetensors with or without an index,
// tokenizer and processor files beside them.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/base/config.h"
#include "runtime/checkpoint/safetensors.h"

namespace omni::trainer {

class HuggingFaceFolder {
 public:
  // One tensor and the bytes that hold it.
  struct Tensor {
    const std::string* file = nullptr;  // path
    int fd = -1;
    int64_t offset = 0;  // of its first byte in the file
    DType dtype = DType::kFloat32;
    std::vector<int64_t> shape;
  };

  // Reads config.json and the headers of the weight files. NotFound: no such folder, no
  // config.json, no weights, a file the index names. InvalidArgument, naming file and tensor:
  // a shard that is cut off or malformed, or lacks what the index says it has.
  static absl::StatusOr<std::unique_ptr<HuggingFaceFolder>> Open(const std::string& path);
  // config.json alone: enough to know the model.
  static absl::StatusOr<ConfigNode> ReadConfig(const std::string& path);
  ~HuggingFaceFolder();
  HuggingFaceFolder(const HuggingFaceFolder&) = delete;
  HuggingFaceFolder& operator=(const HuggingFaceFolder&) = delete;

  const std::string& path() const { return path_; }
  const ConfigNode& config() const { return config_; }
  const std::map<std::string, Tensor>& tensors() const { return tensors_; }
  // NotFound, naming the folder and the nearest name there is.
  absl::StatusOr<const Tensor*> Find(const std::string& name) const;

 private:
  HuggingFaceFolder() = default;
  absl::Status AddFile(const std::string& name);
  absl::Status CheckIndex(const std::map<std::string, std::string>& file_of);

  std::string path_;
  ConfigNode config_;
  std::map<std::string, int> files_;  // by path: descriptors
  std::map<std::string, Tensor> tensors_;
};

// Elements [begin, begin + count) of a tensor, converted; through pread, so that what is read
// does not count as this process's memory. DataLoss, naming file and tensor, if the file has
// become shorter; InvalidArgument if the types do not convert.
absl::Status ReadElements(const HuggingFaceFolder::Tensor& tensor, const std::string& name,
                          int64_t begin, int64_t count, DType dtype, void* to);

}  // namespace omni::trainer
