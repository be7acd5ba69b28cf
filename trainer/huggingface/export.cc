#include "trainer/huggingface/export.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "runtime/base/status.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/file.h"
#include "runtime/checkpoint/safetensors.h"
#include "trainer/assemble.h"
#include "trainer/huggingface/describe.h"

namespace omni::trainer {
namespace {

namespace fs = std::filesystem;

constexpr char kNames[] = "tensor_names.txt";
constexpr const char* kModelFiles[] = {
    "config.json",     "generation_config.json", "preprocessor_config.json",
    "tokenizer.json",  "tokenizer_config.json",  "video_preprocessor_config.json",
    "vocab.json",      "processor_config.json",  "special_tokens_map.json",
    "merges.txt",      "added_tokens.json",      "chat_template.json",
    "tokenizer.model", "chat_template.jinja"};

absl::Status CopyFiles(const std::string& from, const std::string& to) {
  std::error_code error;
  fs::create_directories(to, error);
  for (const char* name : kModelFiles) {
    if (!fs::exists(absl::StrCat(from, "/", name))) continue;
    fs::copy_file(absl::StrCat(from, "/", name), absl::StrCat(to, "/", name),
                  fs::copy_options::overwrite_existing, error);
    if (error) {
      return absl::InvalidArgumentError(absl::StrCat(to, "/", name, ": ", error.message()));
    }
  }
  return absl::OkStatus();
}

// Consecutive tensors of at most `shard_bytes`, at least one each.
std::vector<absl::Span<const MappedTensor>> CutIntoShards(absl::Span<const MappedTensor> tensors,
                                                          const ExportOptions& options) {
  std::vector<absl::Span<const MappedTensor>> shards;
  size_t begin = 0;
  int64_t bytes = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const int64_t more = tensors[i].num_elements() * SizeOf(options.dtype);
    if (i > begin && bytes + more > options.shard_bytes) {
      shards.push_back(tensors.subspan(begin, i - begin));
      begin = i;
      bytes = 0;
    }
    bytes += more;
  }
  shards.push_back(tensors.subspan(begin));
  return shards;
}

absl::Status WriteShard(const TensorSource& source,
                        const std::map<std::string, std::vector<int64_t>>& shapes,
                        absl::Span<const MappedTensor> tensors, DType dtype,
                        const std::string& path) {
  std::vector<SafetensorsWriter::Entry> entries;
  for (const MappedTensor& tensor : tensors) entries.push_back({tensor.name, dtype, tensor.shape});
  OMNI_ASSIGN_OR_RETURN(SafetensorsWriter writer,
                        SafetensorsWriter::Create(path, entries, {{"format", "pt"}}));
  std::vector<char> values, theirs;
  for (const MappedTensor& tensor : tensors) {
    values.resize(tensor.num_elements() * SizeOf(dtype));
    OMNI_RETURN_IF_ERROR(
        source.Read({.name = tensor.path,
                     .shape = shapes.at(tensor.path),
                     .begin = tensor.begin,
                     .data = TensorView::Dense(values.data(), dtype, DeviceKind::kCpu,
                                               {tensor.num_elements()})}));
    if (tensor.transposed) {
      theirs.resize(values.size());
      ToTheirLayout(tensor, SizeOf(dtype), values.data(), theirs.data());
      values.swap(theirs);
    }
    OMNI_RETURN_IF_ERROR(writer.Append(values.data(), static_cast<int64_t>(values.size())));
  }
  return writer.Commit();
}

}  // namespace

absl::Status ExportWeights(const TensorSource& source,
                           absl::Span<const parallel::ParameterSpec> specs, const TensorMap& map,
                           const ExportOptions& options, const std::string& folder) {
  std::map<std::string, std::vector<int64_t>> shapes;
  for (const parallel::ParameterSpec& spec : specs) shapes[spec.path] = spec.shape;
  const auto shards = CutIntoShards(map.tensors(), options);
  nlohmann::json weight_map;
  int64_t total_bytes = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name = shards.size() == 1
                                 ? "model.safetensors"
                                 : absl::StrFormat("model-%05d-of-%05d.safetensors", i + 1,
                                                   static_cast<int>(shards.size()));
    OMNI_RETURN_IF_ERROR(
        WriteShard(source, shapes, shards[i], options.dtype, absl::StrCat(folder, "/", name)));
    for (const MappedTensor& tensor : shards[i]) {
      weight_map[tensor.name] = name;
      total_bytes += tensor.num_elements() * SizeOf(options.dtype);
    }
  }
  if (shards.size() == 1) return absl::OkStatus();
  const nlohmann::json index = {{"metadata", {{"total_size", total_bytes}}},
                                {"weight_map", std::move(weight_map)}};
  return WriteFileAtomically(folder + "/model.safetensors.index.json", index.dump(2) + "\n");
}

absl::Status KeepModelFiles(const PretrainedModel& pretrained, const std::string& run_dir) {
  const std::string to = run_dir + "/huggingface";
  OMNI_RETURN_IF_ERROR(CopyFiles(pretrained.folder().path(), to));
  std::vector<std::string> names;
  for (const auto& [name, tensor] : pretrained.folder().tensors()) names.push_back(name);
  return WriteFileAtomically(absl::StrCat(to, "/", kNames), absl::StrJoin(names, "\n") + "\n");
}

absl::Status ExportCheckpoint(const Recipe& recipe, const std::string& run_dir,
                              const std::string& checkpoint_path, const std::string& folder,
                              std::optional<DType> dtype) {
  std::error_code error;
  if (fs::exists(folder) && !fs::is_empty(folder, error)) {
    return absl::FailedPreconditionError(
        absl::StrCat(folder, ": exists and is not empty, expected a new folder"));
  }
  OMNI_ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(checkpoint_path));
  encoders::EncoderRegistry registry;
  encoders::RegisterEncoders(registry);
  OMNI_ASSIGN_OR_RETURN(const auto model, MultimodalModel::Create(recipe.model, registry));
  fs::create_directories(folder, error);
  if (recipe.pretrained.empty()) {
    OMNI_RETURN_IF_ERROR(DescribeModel(recipe, folder));
  } else {
    OMNI_RETURN_IF_ERROR(CopyFiles(run_dir + "/huggingface", folder));
  }
  std::set<std::string> names;
  if (const auto text = ReadFile(absl::StrCat(run_dir, "/huggingface/", kNames)); text.ok()) {
    for (const absl::string_view name : absl::StrSplit(*text, '\n')) names.emplace(name);
  }
  OMNI_ASSIGN_OR_RETURN(
      const FamilyModel family,
      ReadFamilyFolder(folder, [&](const std::string& name) { return names.count(name) > 0; }));
  const std::vector<parallel::ParameterSpec> specs = model->Parameters();
  OMNI_ASSIGN_OR_RETURN(const auto without, family.tensors.Match(specs));
  if (!without.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("family ", family.family, " has no tensor for ",
                                                   absl::StrJoin(without, ", ")));
  }
  return ExportWeights(*checkpoint, specs, family.tensors, {.dtype = dtype.value_or(family.dtype)},
                       folder);
}

}  // namespace omni::trainer
