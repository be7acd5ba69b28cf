// Any bytes as a recipe: an error that names the file and fits one line, or values within bounds.
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "runtime/base/check.h"
#include "runtime/base/config.h"

namespace omni {
namespace {

enum class Kind { kAdamW, kMuon };

// One key of every type a recipe may have.
struct Section {
  bool flag = false;
  std::string name;
  int32_t small = 1;
  int64_t large = 1;
  uint64_t seed = 0;
  float rate = 0;
  double fraction = 0;
  std::vector<int32_t> layers;
  std::vector<double> betas;
  std::vector<std::string> names;
  Kind kind = Kind::kAdamW;
};

struct Document {
  Section section;
  std::vector<Section> list;
  std::vector<std::pair<std::string, Section>> map;
};

absl::Status Read(const ConfigNode& node, Section* out) {
  ConfigReader reader(node);
  reader.Read("flag", &out->flag);
  reader.Read("name", &out->name);
  reader.Read("small", &out->small, AtLeast(1));
  reader.Read("large", &out->large, Positive());
  reader.Read("seed", &out->seed);
  reader.Read("rate", &out->rate, NonNegative());
  reader.Read("fraction", &out->fraction, Between(0, 1));
  reader.Read("layers", &out->layers, NonNegative());
  reader.Read("betas", &out->betas, Between(0, 1));
  reader.Read("names", &out->names);
  reader.ReadEnum("kind", &out->kind, {{"adamw", Kind::kAdamW}, {"muon", Kind::kMuon}});
  return reader.Finish();
}

absl::Status Read(const ConfigNode& node, Document* out) {
  ConfigReader reader(node);
  reader.ReadStruct("section", &out->section);
  reader.ReadList("list", &out->list);
  reader.ReadMap("map", &out->map);
  return reader.Finish();
}

void CheckSection(const Section& section) {
  OMNI_CHECK(section.small >= 1 && section.large >= 1 && section.rate >= 0);
  OMNI_CHECK(section.fraction >= 0 && section.fraction <= 1);
  for (const int32_t layer : section.layers) OMNI_CHECK(layer >= 0);
  for (const double beta : section.betas) OMNI_CHECK(beta >= 0 && beta <= 1);
}

void CheckError(const absl::Status& status) {
  OMNI_CHECK(absl::IsInvalidArgument(status));
  OMNI_CHECK(absl::StartsWith(status.message(), "recipe.yaml"));
}

}  // namespace

// The first line also serves as a --set override.
void FuzzRecipe(const std::string& text) {
  absl::StatusOr<ConfigNode> node = ConfigNode::Parse(text, "recipe.yaml");
  if (!node.ok()) return CheckError(node.status());
  Document document;
  if (const absl::Status read = Read(*node, &document); !read.ok()) {
    CheckError(read);
  } else {
    CheckSection(document.section);
    for (const Section& section : document.list) CheckSection(section);
    for (const auto& [name, section] : document.map) CheckSection(section);
  }
  (void)node->ApplyOverrides(std::vector<std::string>{text.substr(0, text.find('\n'))});
  (void)node->DumpYaml();
}

}  // namespace omni

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  omni::FuzzRecipe(std::string(reinterpret_cast<const char*>(data), size));
  return 0;
}
