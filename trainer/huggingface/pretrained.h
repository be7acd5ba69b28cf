// A published model opened for use: its family, and its weights as our parameters read them.
//
//   OMNI_ASSIGN_OR_RETURN(auto model, PretrainedModel::Open(dir));
//   model->family().model_yaml                     the recipe's `model`
//   storage values <- model->Read({path, ...})     any part of any parameter
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/parameter.h"
#include "runtime/checkpoint/tensor_source.h"
#include "trainer/huggingface/family.h"
#include "trainer/huggingface/folder.h"

namespace omni::trainer {

class PretrainedModel : public TensorSource {
 public:
  // Errors as HuggingFaceFolder::Open and ReadFamily; and, naming tensor, file and both shapes,
  // a tensor the family needs that is missing or has another shape.
  static absl::StatusOr<std::unique_ptr<PretrainedModel>> Open(const std::string& path);

  const HuggingFaceFolder& folder() const { return *folder_; }
  const FamilyModel& family() const { return family_; }
  // Tensors of the files that are not read, sorted, with those the family leaves out as one entry
  // per prefix: "talker.* (386 tensors)".
  std::vector<std::string> UnusedTensors() const;

  // `range.name` is a path of ours. Reads only the bytes asked for (of a transposed tensor, whole
  // matrices).
  absl::Status Read(const TensorRange& range) const override;

 private:
  PretrainedModel() = default;
  absl::Status CheckTensors() const;

  std::unique_ptr<HuggingFaceFolder> folder_;
  FamilyModel family_;
  std::map<std::string, std::vector<const MappedTensor*>> by_path_;
};

// The family of the configurations in `path`; weights need not be there.
absl::StatusOr<FamilyModel> ReadFamilyFolder(
    const std::string& path, std::function<bool(const std::string& name)> has_tensor);

}  // namespace omni::trainer
