// The tiny models of tests/golden/families (see its README), and their cases as packs of ours.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tests/support/model_harness.h"
#include "trainer/huggingface/pretrained.h"

namespace omni::testing {

std::string FamilyFolder(const std::string& family);
std::unique_ptr<trainer::PretrainedModel> OpenFamily(const std::string& family);
// The model of the folder, with its weights; `overrides` as of `model`.
std::unique_ptr<ModelHarness> LoadFamily(const trainer::PretrainedModel& pretrained,
                                         const std::vector<std::string>& overrides = {});

struct FamilyCase {
  std::unique_ptr<SafetensorsFile> file;
  parallel::TokenPack tokens;
  trainer::MediaPacks media;
  double scale = 0;  // 1 / loss tokens

  bool Has(const std::string& name) const { return file->Has(name); }
  std::vector<double> Floats(const std::string& name) const;
  std::vector<int32_t> Ints(const std::string& name) const;
};
// `name`: of a case_NAME.safetensors, or "train20".
FamilyCase LoadFamilyCase(const std::string& family, const std::string& name,
                          const trainer::MultimodalModel& model, const ConfigNode& config);

// The packs of some of a case's samples, in this order.
struct Packs {
  parallel::TokenPack tokens;
  trainer::MediaPacks media;
};
Packs Select(const FamilyCase& golden, absl::Span<const int32_t> samples);

// Gradients by our paths under the names of the checkpoint.
std::map<std::string, std::vector<double>> ByTheirNames(
    const trainer::TensorMap& map, const std::map<std::string, std::vector<double>>& by_path);

}  // namespace omni::testing
