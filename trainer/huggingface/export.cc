#include "trainer/huggingface/export.h"

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "runtime/base/exists.h"
#include "runtime/base/file.h"
#include "runtime/base/status.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/safetensors.h"
#include "trainer/assemble.h"
#include "trainer/huggingface/describe.h"
#include "trainer/huggingface/lora_export.h"

namespace omni::trainer {
namespace {

namespace fs = std::filesystem;

constexpr char kNames[] = "tensor_names.txt";
constexpr const char* kModelFiles[] = {
    "config.json",     "generation_config.json", "preprocessor_config.json",
    "tokenizer.json",  "tokenizer_config.json",  "video_preprocessor_config.json",
    "vocab.json",      "processor_config.json",  "special_tokens_map.json",
    "merges.txt",      "added_tokens.json",      "chat_template.json",
    "tokenizer.model", "chat_template.jinja",    kDataOptionsFile};

absl::Status CopyFiles(const std::string& from, const std::string& to) {
  std::error_code error;
  fs::create_directories(to, error);
  for (const char* name : kModelFiles) {
    if (!Exists(absl::StrCat(from, "/", name))) continue;
    fs::copy_file(absl::StrCat(from, "/", name), absl::StrCat(to, "/", name),
                  fs::copy_options::overwrite_existing, error);
    if (error) {
      return absl::InvalidArgumentError(absl::StrCat(to, "/", name, ": ", error.message()));
    }
  }
  return absl::OkStatus();
}

// One tensor to be written, and how its bytes are had.
struct Item {
  SafetensorsWriter::Entry entry;
  int64_t num_bytes = 0;
  std::function<absl::Status(char* to)> read;
};

Item MakeItem(std::string name, DType dtype, std::vector<int64_t> shape,
              std::function<absl::Status(char*)> read) {
  Item item{{std::move(name), dtype, std::move(shape)}, SizeOf(dtype), std::move(read)};
  for (const int64_t size : item.entry.shape) item.num_bytes *= size;
  return item;
}

Item TrainedItem(const TensorSource& source, const MappedTensor& tensor,
                 const std::vector<int64_t>& our_shape, DType dtype) {
  return MakeItem(tensor.name, dtype, tensor.shape, [&source, &tensor, our_shape, dtype](char* to) {
    const int64_t count = tensor.num_elements();
    std::vector<char> ours(tensor.transposed ? count * SizeOf(dtype) : 0);
    char* const into = tensor.transposed ? ours.data() : to;
    OMNI_RETURN_IF_ERROR(
        source.Read({.name = tensor.path,
                     .shape = our_shape,
                     .begin = tensor.begin,
                     .data = TensorView::Dense(into, dtype, DeviceKind::kCpu, {count})}));
    if (tensor.transposed) ToTheirLayout(tensor, SizeOf(dtype), ours.data(), to);
    return absl::OkStatus();
  });
}

// What the files hold besides: copied, or zeros.
std::vector<Item> OtherItems(const FamilyModel& family, const HuggingFaceFolder* original,
                             DType dtype) {
  std::vector<Item> items;
  if (original == nullptr) {
    for (const auto& [name, shape] : family.unread) {
      items.push_back(MakeItem(name, dtype, shape, nullptr));
      items.back().read = [bytes = items.back().num_bytes](char* to) {
        std::fill_n(to, bytes, 0);
        return absl::OkStatus();
      };
    }
    return items;
  }
  std::set<std::string> trained;
  for (const MappedTensor& tensor : family.tensors.tensors()) trained.insert(tensor.name);
  for (const auto& [name, tensor] : original->tensors()) {
    if (trained.count(name) > 0) continue;
    items.push_back(MakeItem(name, tensor.dtype, tensor.shape, nullptr));
    const int64_t count = items.back().num_bytes / SizeOf(tensor.dtype);
    items.back().read = [&tensor = tensor, name = name, count](char* to) {
      return ReadElements(tensor, name, 0, count, tensor.dtype, to);
    };
  }
  return items;
}

// Consecutive tensors of at most `shard_bytes`, at least one each.
std::vector<absl::Span<const Item>> CutIntoShards(absl::Span<const Item> items,
                                                  int64_t shard_bytes) {
  std::vector<absl::Span<const Item>> shards;
  size_t begin = 0;
  int64_t bytes = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > begin && bytes + items[i].num_bytes > shard_bytes) {
      shards.push_back(items.subspan(begin, i - begin));
      begin = i;
      bytes = 0;
    }
    bytes += items[i].num_bytes;
  }
  shards.push_back(items.subspan(begin));
  return shards;
}

absl::Status WriteShard(absl::Span<const Item> items, const std::string& path,
                        const OnBlock& on_block) {
  std::vector<SafetensorsWriter::Entry> entries;
  for (const Item& item : items) entries.push_back(item.entry);
  OMNI_ASSIGN_OR_RETURN(SafetensorsWriter writer,
                        SafetensorsWriter::Create(path, entries, {{"format", "pt"}}, on_block));
  std::vector<char> values;
  for (const Item& item : items) {
    values.resize(item.num_bytes);
    OMNI_RETURN_IF_ERROR(item.read(values.data()));
    OMNI_RETURN_IF_ERROR(writer.Append(values.data(), item.num_bytes));
  }
  return writer.Commit();
}

}  // namespace

absl::Status ExportWeights(const TensorSource& source,
                           absl::Span<const parallel::ParameterSpec> specs,
                           const FamilyModel& family, const HuggingFaceFolder* original,
                           const ExportOptions& options, const std::string& folder) {
  std::map<std::string, std::vector<int64_t>> shapes;
  for (const parallel::ParameterSpec& spec : specs) shapes[spec.path] = spec.shape;
  std::vector<Item> items;
  for (const MappedTensor& tensor : family.tensors.tensors()) {
    items.push_back(TrainedItem(source, tensor, shapes.at(tensor.path), options.dtype));
  }
  for (Item& item : OtherItems(family, original, options.dtype)) items.push_back(std::move(item));

  const auto shards = CutIntoShards(items, options.shard_bytes);
  nlohmann::json weight_map;
  int64_t total_bytes = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name = shards.size() == 1
                                 ? "model.safetensors"
                                 : absl::StrFormat("model-%05d-of-%05d.safetensors", i + 1,
                                                   static_cast<int>(shards.size()));
    OMNI_RETURN_IF_ERROR(WriteShard(shards[i], absl::StrCat(folder, "/", name), options.on_block));
    for (const Item& item : shards[i]) {
      weight_map[item.entry.name] = name;
      total_bytes += item.num_bytes;
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
  return WriteFileAtomically(absl::StrCat(to, "/", kNames), nlohmann::json(names).dump(1) + "\n");
}

absl::Status ExportCheckpoint(const Recipe& recipe, const std::string& run_dir,
                              const std::string& checkpoint_path, const std::string& folder,
                              std::optional<DType> dtype, bool adapter_only,
                              const OnBlock& on_block) {
  std::error_code error;
  if (Exists(folder) && !fs::is_empty(folder, error)) {
    return absl::FailedPreconditionError(
        absl::StrCat(folder, ": exists and is not empty, expected a new folder"));
  }
  OMNI_ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(checkpoint_path, on_block));
  encoders::EncoderRegistry registry;
  encoders::RegisterEncoders(registry);
  OMNI_ASSIGN_OR_RETURN(const auto model, MultimodalModel::Create(recipe.model, registry));
  if (model->decoder().config().moe.bias_update_rate > 0) {
    return recipe.model.Get("decoder")
        .Get("moe")
        .Get("bias_update_rate")
        .Error(
            "the bias it trains can't be exported: no family has one, and without it experts are "
            "chosen "
            "otherwise");
  }
  fs::create_directories(folder, error);
  if (recipe.pretrained.empty()) {
    OMNI_RETURN_IF_ERROR(DescribeModel(recipe, folder));
  } else {
    OMNI_RETURN_IF_ERROR(CopyFiles(run_dir + "/huggingface", folder));
  }
  std::set<std::string> names;
  if (const auto text = ReadFile(absl::StrCat(run_dir, "/huggingface/", kNames)); text.ok()) {
    const auto json = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
    for (const nlohmann::json& name : json.is_array() ? json : nlohmann::json::array()) {
      if (name.is_string()) names.insert(name.get<std::string>());
    }
    // Runs of before had a name a line.
    if (!json.is_array()) {
      for (const absl::string_view name : absl::StrSplit(*text, '\n')) names.emplace(name);
    }
  }
  OMNI_ASSIGN_OR_RETURN(
      const FamilyModel family,
      ReadFamilyFolder(folder, [&](const std::string& name) { return names.count(name) > 0; }));
  const std::vector<parallel::ParameterSpec> specs = model->BaseParameters();
  OMNI_ASSIGN_OR_RETURN(const auto without, family.tensors.Match(specs));
  if (!without.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("family ", family.family, " has no tensor for ",
                                                   absl::StrJoin(without, ", ")));
  }
  if (adapter_only) {
    if (model->lora_targets().empty()) {
      return recipe.model.Error("has no lora section, so there is no adapter to write");
    }
    return ExportAdapter(*checkpoint, *model, family, recipe.pretrained, folder);
  }
  std::unique_ptr<HuggingFaceFolder> original;
  if (!recipe.pretrained.empty()) {
    auto opened = HuggingFaceFolder::Open(recipe.pretrained);
    if (opened.ok()) original = *std::move(opened);
  }
  const ExportOptions options{.dtype = dtype.value_or(family.dtype), .on_block = on_block};
  if (model->lora_targets().empty()) {
    return ExportWeights(*checkpoint, specs, family, original.get(), options, folder);
  }
  return ExportWeights(MergedSource(*checkpoint, *model), specs, family, original.get(), options,
                       folder);
}

}  // namespace omni::trainer
