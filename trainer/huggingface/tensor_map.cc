#include "trainer/huggingface/tensor_map.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace omni::trainer {

void ToTheirLayout(const MappedTensor& tensor, int64_t element_bytes, const void* ours,
                   void* theirs) {
  const auto* from = static_cast<const char*>(ours);
  auto* to = static_cast<char*>(theirs);
  if (!tensor.transposed) {
    std::copy_n(from, tensor.num_elements() * element_bytes, to);
    return;
  }
  const int64_t a = tensor.shape[tensor.shape.size() - 2], b = tensor.shape.back();
  for (int64_t i = 0; i < tensor.num_elements(); ++i, to += element_bytes) {
    const int64_t matrix = i / (a * b), row = i % (a * b) / b, column = i % b;
    std::copy_n(from + (matrix * a * b + column * a + row) * element_bytes, element_bytes, to);
  }
}

void TensorMap::AddStack(const std::vector<std::pair<std::string, std::vector<int64_t>>>& parts,
                         const std::string& path) {
  int64_t begin = 0;
  for (const auto& [name, shape] : parts) {
    Add({.name = name, .shape = shape, .path = path, .begin = begin});
    begin += tensors_.back().num_elements();
  }
}

std::map<std::string, std::vector<const MappedTensor*>> TensorMap::ByPath() const {
  std::map<std::string, std::vector<const MappedTensor*>> by_path;
  for (const MappedTensor& tensor : tensors_) by_path[tensor.path].push_back(&tensor);
  for (auto& [path, tensors] : by_path) {
    std::sort(tensors.begin(), tensors.end(),
              [](const auto* a, const auto* b) { return a->begin < b->begin; });
  }
  return by_path;
}

absl::StatusOr<std::vector<std::string>> TensorMap::Match(
    absl::Span<const parallel::ParameterSpec> specs) const {
  auto by_path = ByPath();
  std::vector<std::string> without;
  for (const parallel::ParameterSpec& spec : specs) {
    const auto found = by_path.find(spec.path);
    if (found == by_path.end()) {
      without.push_back(spec.path);
      continue;
    }
    int64_t next = 0;
    for (const MappedTensor* tensor : found->second) {
      OMNI_CHECK_EQ(tensor->begin, next);  // a family's table has no holes
      next += tensor->num_elements();
    }
    if (next != spec.num_elements()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "parameter ", spec.path, " has ", spec.num_elements(), " elements in the recipe, ",
          found->second.front()->name, " of the checkpoint gives it ", next));
    }
    by_path.erase(found);
  }
  if (!by_path.empty()) {
    const MappedTensor& extra = *by_path.begin()->second.front();
    return absl::InvalidArgumentError(absl::StrCat("the recipe's model has no parameter ",
                                                   extra.path, " for ", extra.name,
                                                   " of the checkpoint"));
  }
  return without;
}

}  // namespace omni::trainer
