// Which tensor of a foreign checkpoint is which stretch of which parameter of ours.
//
// Ours are fused where one product does (QKV, gate and up, experts one above the other); theirs
// are not always. A mapping is a list of entries, each a whole foreign tensor at a place in one
// of our parameters:
//
//   model.layers.3.self_attn.k_proj.weight [kv, H] -> decoder.layers.3.attention.qkv.weight,
//                                                     elements from q * H on
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "parallel/parameter.h"

namespace omni::trainer {

struct MappedTensor {
  std::string name;            // theirs
  std::vector<int64_t> shape;  // theirs
  std::string path;            // ours
  int64_t begin = 0;           // its first element in ours
  // Theirs is [..., a, b] where ours is [..., b, a].
  bool transposed = false;

  int64_t num_elements() const {
    int64_t n = 1;
    for (const int64_t size : shape) n *= size;
    return n;
  }
};

// `ours`: the elements from tensor.begin on, of `element_bytes` each; `theirs`: as many, laid out
// as in the checkpoint. They must not overlap.
void ToTheirLayout(const MappedTensor& tensor, int64_t element_bytes, const void* ours,
                   void* theirs);

class TensorMap {
 public:
  void Add(MappedTensor tensor) { tensors_.push_back(std::move(tensor)); }
  // The same tensor under the same shape.
  void Add(std::string name, std::vector<int64_t> shape, std::string path) {
    Add({.name = std::move(name), .shape = std::move(shape), .path = std::move(path)});
  }
  // Several of theirs one above the other in ours, in order: (name, shape).
  void AddStack(const std::vector<std::pair<std::string, std::vector<int64_t>>>& parts,
                const std::string& path);

  const std::vector<MappedTensor>& tensors() const { return tensors_; }
  // Those of one parameter, by their place in it.
  std::map<std::string, std::vector<const MappedTensor*>> ByPath() const;

  // Holds the entries against a model. InvalidArgument, naming the parameter and both counts, if
  // they cover one of its parameters other than exactly once, or name one it does not have: the
  // recipe changed what the checkpoint says. Parameters no entry names are returned: they start
  // with initial values.
  absl::StatusOr<std::vector<std::string>> Match(
      absl::Span<const parallel::ParameterSpec> specs) const;

 private:
  std::vector<MappedTensor> tensors_;
};

}  // namespace omni::trainer
