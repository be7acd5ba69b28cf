// Adapters on their way out: added to the weights, or as a folder that PEFT loads.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "runtime/checkpoint/tensor_source.h"
#include "trainer/assemble.h"
#include "trainer/huggingface/family.h"

namespace omni::trainer {

// The weights of `source` with W + s B A in place of W where there is an adapter, added in fp32 and
// rounded once. Both must outlive it.
class MergedSource : public TensorSource {
 public:
  MergedSource(const TensorSource& source, const MultimodalModel& model);
  absl::Status Read(const TensorRange& range) const override;

 private:
  const TensorSource& source_;
  const double scale_;
  const int32_t rank_;
  std::map<std::string, parallel::LoraTarget> targets_;  // by path
};

// adapter_model.safetensors (fp32) and adapter_config.json in `folder`, which exists: PEFT's names
// under the family's. Where a linear map of theirs is several of ours (a fused attn.qkv) their
// adapter has the ranks of all, B block by block. `base`: recorded as the base model.
absl::Status ExportAdapter(const TensorSource& source, const MultimodalModel& model,
                           const FamilyModel& family, const std::string& base,
                           const std::string& folder);

}  // namespace omni::trainer
