// Families of published models: each reads its config.json into a `model` section of ours and
// lists which of its tensors is which of our parameters. Nothing else in omnitrain knows a name
// that Hugging Face gave.
//
// A new family is a function in one of the family_*.cc, a line in family.cc, and golden models in
// tests/golden/families.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/base/config.h"
#include "runtime/tensor/dtype.h"
#include "trainer/huggingface/tensor_map.h"

namespace omni::trainer {

// What a family's function is given.
struct FamilyInput {
  ConfigNode config;  // config.json
  // preprocessor_config.json and video_preprocessor_config.json; null where there is none.
  ConfigNode processor, video_processor;
  // Whether the checkpoint has a tensor: versions of transformers wrote other prefixes.
  std::function<bool(const std::string& name)> has_tensor;
};

struct FamilyModel {
  std::string family;             // "qwen2_5_vl"
  std::string model_yaml;         // the recipe's `model`: decoder, encoders
  std::string data_yaml;          // defaults of the recipe's `data`, an empty mapping at least
  std::string chat_template;      // data.template
  DType dtype = DType::kFloat32;  // of the stored weights
  TensorMap tensors;
  // Tensors of parts that are not trained here begin with one of these ("talker.").
  std::vector<std::string> left_out;
  // How prefixes of tensors differ in transformers' memory from those in the files: (file, memory).
  std::vector<std::pair<std::string, std::string>> memory_prefixes;
  // Tensors of the family's files that no forward pass reads, with their shapes.
  std::vector<std::pair<std::string, std::vector<int64_t>>> unread;
};

// By architectures[0], else by model_type. InvalidArgument with file, line and key: an unknown
// family (with the nearest and the list), a missing size, a feature that is not built.
absl::StatusOr<FamilyModel> ReadFamily(const FamilyInput& input);

// Overrides of a recipe (--set) with which its loss is the one transformers computes from the same
// config.json: a mixture of experts is balanced there over all layers at once, and only if
// output_router_logits says so.
std::vector<std::string> ReferenceLossOverrides(const ConfigNode& config);

}  // namespace omni::trainer
