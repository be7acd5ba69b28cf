#include "trainer/huggingface/lora_export.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/strip.h"
#include "runtime/base/file.h"
#include "runtime/base/status.h"
#include "runtime/checkpoint/convert.h"
#include "runtime/checkpoint/safetensors.h"

namespace omni::trainer {
namespace {

// One matrix of an adapter, of the expert if it has them.
absl::StatusOr<std::vector<float>> ReadMatrix(const TensorSource& source,
                                              const parallel::ParameterSpec& spec, int64_t expert) {
  const int64_t count = spec.num_elements() / (spec.is_expert ? spec.shape[0] : 1);
  std::vector<float> values(count);
  OMNI_RETURN_IF_ERROR(source.Read(
      {.name = spec.path,
       .shape = spec.shape,
       .begin = expert * count,
       .data = TensorView::Dense(values.data(), DType::kFloat32, DeviceKind::kCpu, {count})}));
  return values;
}

// A stretch of rows of a weight with adapters, as one adapter: the parts' ranks side by side.
struct Adapter {
  int64_t rank = 0;
  std::vector<float> a;  // [rank, in]
  std::vector<float> b;  // [rows, rank]
};

// `row_begin`: within the expert's rows, if the weight is of experts.
absl::StatusOr<Adapter> Gather(const TensorSource& source, const parallel::LoraTarget& target,
                               int64_t rank, int64_t expert, int64_t row_begin, int64_t num_rows) {
  OMNI_ASSIGN_OR_RETURN(const std::vector<float> a, ReadMatrix(source, target.a, expert));
  OMNI_ASSIGN_OR_RETURN(const std::vector<float> b, ReadMatrix(source, target.b, expert));
  const int64_t in = target.a.shape.back();
  const auto is_inside = [&](const LoraAdapter::Part& part) {
    return part.row_begin >= row_begin && part.row_begin + part.num_rows <= row_begin + num_rows;
  };
  Adapter adapter;
  adapter.rank = rank * std::count_if(target.parts.begin(), target.parts.end(), is_inside);
  adapter.b.assign(num_rows * adapter.rank, 0.0f);
  int64_t b_row = 0, first = 0;  // of the part in B; its first rank in the adapter
  for (size_t i = 0; i < target.parts.size(); ++i) {
    const LoraAdapter::Part& part = target.parts[i];
    if (is_inside(part)) {
      const auto from = a.begin() + static_cast<int64_t>(i) * rank * in;
      adapter.a.insert(adapter.a.end(), from, from + rank * in);
      for (int64_t row = 0; row < part.num_rows; ++row) {
        std::copy_n(b.begin() + (b_row + row) * rank, rank,
                    adapter.b.begin() + (part.row_begin - row_begin + row) * adapter.rank + first);
      }
      first += rank;
    }
    b_row += part.num_rows;
  }
  return adapter;
}

// As the model's modules are called in memory, which for some families is not as in the files.
std::string ModuleName(const FamilyModel& family, absl::string_view tensor) {
  absl::ConsumeSuffix(&tensor, ".weight");
  for (const auto& [file_prefix, memory_prefix] : family.memory_prefixes) {
    if (absl::StartsWith(tensor, file_prefix)) {
      return absl::StrCat(memory_prefix, tensor.substr(file_prefix.size()));
    }
  }
  return std::string(tensor);
}

}  // namespace

MergedSource::MergedSource(const TensorSource& source, const MultimodalModel& model)
    : source_(source), scale_(model.lora().scale()), rank_(model.lora().rank) {
  for (const parallel::LoraTarget& target : model.lora_targets()) {
    targets_.emplace(target.path, target);
  }
}

absl::Status MergedSource::Read(const TensorRange& range) const {
  const auto target = targets_.find(range.name);
  if (target == targets_.end()) return source_.Read(range);
  const int64_t count = range.data.num_elements();
  std::vector<float> values(count);
  TensorRange wide = range;
  wide.data = TensorView::Dense(values.data(), DType::kFloat32, DeviceKind::kCpu, {count});
  OMNI_RETURN_IF_ERROR(source_.Read(wide));
  const int64_t out = range.shape[range.shape.size() - 2], in = range.shape.back();
  for (int64_t i = 0; i < count;) {  // matrix by matrix
    const int64_t expert = (range.begin + i) / (out * in);
    const int64_t end = std::min(count, (expert + 1) * out * in - range.begin);
    OMNI_ASSIGN_OR_RETURN(const Adapter adapter,
                          Gather(source_, target->second, rank_, expert, 0, out));
    for (; i < end; ++i) {
      const int64_t row = (range.begin + i) / in % out, column = (range.begin + i) % in;
      double sum = 0;
      for (int64_t r = 0; r < adapter.rank; ++r) {
        sum += static_cast<double>(adapter.b[row * adapter.rank + r]) * adapter.a[r * in + column];
      }
      values[i] = static_cast<float>(values[i] + scale_ * sum);
    }
  }
  OMNI_CHECK(
      ConvertElements(DType::kFloat32, values.data(), range.data.dtype, range.data.data, count));
  return absl::OkStatus();
}

namespace {

// Modules of theirs, which PEFT can adapt, not parameters that hold many maps.
absl::Status CheckAreModules(const MultimodalModel& model, const FamilyModel& family) {
  const auto by_path = family.tensors.ByPath();
  for (const parallel::LoraTarget& target : model.lora_targets()) {
    for (const MappedTensor* tensor : by_path.at(target.path)) {
      if (tensor->shape.size() == 2) continue;
      return absl::UnimplementedError(absl::StrCat(
          "PEFT's adapters hang on linear modules, but ", tensor->name, " of family ",
          family.family,
          " holds those of all experts: write the merged weights instead (leave out --adapter)"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ExportAdapter(const TensorSource& source, const MultimodalModel& model,
                           const FamilyModel& family, const std::string& base,
                           const std::string& folder) {
  OMNI_RETURN_IF_ERROR(CheckAreModules(model, family));
  const auto by_path = family.tensors.ByPath();
  const int32_t rank = model.lora().rank;
  std::map<std::string, std::pair<std::vector<int64_t>, std::vector<float>>> tensors;
  nlohmann::json modules = nlohmann::json::array();
  nlohmann::json ranks = nlohmann::json::object(), alphas = nlohmann::json::object();
  for (const parallel::LoraTarget& target : model.lora_targets()) {
    const int64_t in = target.a.shape.back();
    int64_t out = 0;  // rows of the weight, or of each of its experts
    for (const MappedTensor* tensor : by_path.at(target.path)) out += tensor->num_elements() / in;
    if (target.a.is_expert) out /= target.a.shape[0];
    for (const MappedTensor* tensor : by_path.at(target.path)) {
      const int64_t rows = tensor->num_elements() / in;
      const int64_t row = tensor->begin / in;
      OMNI_ASSIGN_OR_RETURN(Adapter adapter,
                            Gather(source, target, rank, row / out, row % out, rows));
      if (adapter.rank == 0) continue;
      const std::string name = ModuleName(family, tensor->name);
      modules.push_back(name);
      if (adapter.rank != rank) {  // the scale stays alpha / rank
        ranks[name] = adapter.rank;
        alphas[name] = model.lora().scale() * static_cast<double>(adapter.rank);
      }
      const std::string prefix = "base_model.model." + name;
      tensors[prefix + ".lora_A.weight"] = {{adapter.rank, in}, std::move(adapter.a)};
      tensors[prefix + ".lora_B.weight"] = {{rows, adapter.rank}, std::move(adapter.b)};
    }
  }
  std::vector<std::pair<std::string, TensorView>> views;
  for (auto& [name, tensor] : tensors) {
    views.emplace_back(name, TensorView::Dense(tensor.second.data(), DType::kFloat32,
                                               DeviceKind::kCpu, tensor.first));
  }
  OMNI_RETURN_IF_ERROR(
      WriteSafetensors(folder + "/adapter_model.safetensors", views, {{"format", "pt"}}));
  const nlohmann::json config = {{"peft_type", "LORA"},
                                 {"base_model_name_or_path", base},
                                 {"r", rank},
                                 {"lora_alpha", model.lora().alpha},
                                 {"lora_dropout", 0.0},
                                 {"bias", "none"},
                                 {"fan_in_fan_out", false},
                                 {"inference_mode", true},
                                 {"init_lora_weights", true},
                                 {"target_modules", modules},
                                 {"rank_pattern", ranks},
                                 {"alpha_pattern", alphas}};
  return WriteFileAtomically(folder + "/adapter_config.json", config.dump(2) + "\n");
}

}  // namespace omni::trainer
