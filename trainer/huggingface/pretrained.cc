#include "trainer/huggingface/pretrained.h"

#include <algorithm>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "runtime/base/exists.h"
#include "runtime/base/file.h"
#include "runtime/base/status.h"

namespace omni::trainer {
namespace {

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

// Elements [first, last) of `mapped` as ours are laid out, read matrix by matrix: [a, b] there
// is [b, a] here.
absl::Status ReadTransposed(const HuggingFaceFolder::Tensor& tensor, const MappedTensor& mapped,
                            int64_t first, int64_t last, DType dtype, char* to) {
  const int64_t a = mapped.shape[mapped.shape.size() - 2], b = mapped.shape.back();
  const int64_t size = SizeOf(dtype);
  std::vector<char> matrix(a * b * size);
  for (int64_t at = first; at < last;) {
    const int64_t begin = at / (a * b) * (a * b);
    OMNI_RETURN_IF_ERROR(ReadElements(tensor, mapped.name, begin, a * b, dtype, matrix.data()));
    for (; at < std::min(last, begin + a * b); ++at, to += size) {
      const int64_t row = (at - begin) / a, column = (at - begin) % a;  // in ours
      std::copy_n(matrix.data() + (column * b + row) * size, size, to);
    }
  }
  return absl::OkStatus();
}

// Whether the folder's chat template, where it has one, holds a text.
bool TemplateSays(const std::string& path, const char* text) {
  for (const char* name : {"chat_template.jinja", "tokenizer_config.json", "chat_template.json"}) {
    const auto found = ReadFile(absl::StrCat(path, "/", name));
    if (found.ok() && absl::StrContains(*found, text)) return true;
  }
  return false;
}

}  // namespace

absl::StatusOr<FamilyModel> ReadFamilyFolder(
    const std::string& path, std::function<bool(const std::string& name)> has_tensor) {
  FamilyInput input{
      .config = {}, .processor = {}, .video_processor = {}, .has_tensor = std::move(has_tensor)};
  OMNI_ASSIGN_OR_RETURN(input.config, HuggingFaceFolder::ReadConfig(path));
  for (const auto& [name, node] : {std::pair("preprocessor_config.json", &input.processor),
                                   {"video_preprocessor_config.json", &input.video_processor}}) {
    const std::string file = absl::StrCat(path, "/", name);
    if (!Exists(file)) continue;
    OMNI_ASSIGN_OR_RETURN(*node, ConfigNode::LoadFile(file));
  }
  OMNI_ASSIGN_OR_RETURN(FamilyModel family, ReadFamily(input));
  // Qwen2 and Qwen2.5 differ in nothing but what the assistant is told it is.
  if (family.chat_template == "qwen2" && TemplateSays(path, "created by Alibaba Cloud")) {
    family.chat_template = "qwen2_5";
  }
  return family;
}

absl::StatusOr<std::unique_ptr<PretrainedModel>> PretrainedModel::Open(const std::string& path) {
  std::unique_ptr<PretrainedModel> model(new PretrainedModel);
  OMNI_ASSIGN_OR_RETURN(model->folder_, HuggingFaceFolder::Open(path));
  const auto& tensors = model->folder_->tensors();
  OMNI_ASSIGN_OR_RETURN(model->family_, ReadFamilyFolder(path, [&](const std::string& name) {
                          return tensors.count(name) > 0;
                        }));
  OMNI_RETURN_IF_ERROR(model->CheckTensors());
  model->by_path_ = model->family_.tensors.ByPath();
  return model;
}

absl::Status PretrainedModel::CheckTensors() const {
  for (const MappedTensor& mapped : family_.tensors.tensors()) {
    OMNI_ASSIGN_OR_RETURN(const HuggingFaceFolder::Tensor* tensor, folder_->Find(mapped.name));
    if (tensor->shape != mapped.shape) {
      return absl::InvalidArgumentError(absl::StrCat(
          *tensor->file, ": tensor \"", mapped.name, "\" has shape ", ShapeText(tensor->shape),
          ", config.json makes it ", ShapeText(mapped.shape)));
    }
  }
  return absl::OkStatus();
}

std::vector<std::string> PretrainedModel::UnusedTensors() const {
  std::set<std::string> used;
  for (const MappedTensor& mapped : family_.tensors.tensors()) used.insert(mapped.name);
  std::vector<std::string> unused;
  std::map<std::string, int64_t> left_out;
  for (const auto& [name, tensor] : folder_->tensors()) {
    if (used.count(name) > 0) continue;
    const auto prefix =
        std::find_if(family_.left_out.begin(), family_.left_out.end(),
                     [&name = name](const std::string& p) { return absl::StartsWith(name, p); });
    if (prefix == family_.left_out.end()) {
      unused.push_back(name);
    } else {
      ++left_out[*prefix];
    }
  }
  for (const auto& [prefix, count] : left_out) {
    unused.push_back(absl::StrCat(prefix, "* (", count, count == 1 ? " tensor)" : " tensors)"));
  }
  return unused;
}

absl::Status PretrainedModel::Read(const TensorRange& range) const {
  OMNI_CHECK(range.data.is_dense());
  const auto found = by_path_.find(range.name);
  if (found == by_path_.end()) {
    return absl::NotFoundError(
        absl::StrCat(folder_->path(), ": family ", family_.family, " has no ", range.name));
  }
  const int64_t end = range.begin + range.data.num_elements();
  for (const MappedTensor* mapped : found->second) {
    const int64_t first = std::max(range.begin, mapped->begin);
    const int64_t last = std::min(end, mapped->begin + mapped->num_elements());
    if (first >= last) continue;
    const HuggingFaceFolder::Tensor& tensor = folder_->tensors().at(mapped->name);
    char* to =
        static_cast<char*>(range.data.data) + (first - range.begin) * SizeOf(range.data.dtype);
    const DType dtype = range.data.dtype;
    const int64_t begin = first - mapped->begin;
    OMNI_RETURN_IF_ERROR(
        mapped->transposed ? ReadTransposed(tensor, *mapped, begin, last - mapped->begin, dtype, to)
                           : ReadElements(tensor, mapped->name, begin, last - first, dtype, to));
  }
  return absl::OkStatus();
}

}  // namespace omni::trainer
