// Writing a model as Hugging Face keeps it, so that transformers loads it unchanged.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "parallel/parameter.h"
#include "runtime/checkpoint/tensor_source.h"
#include "trainer/huggingface/pretrained.h"
#include "trainer/recipe.h"

namespace omni::trainer {

struct ExportOptions {
  DType dtype = DType::kFloat32;
  int64_t shard_bytes = 5'000'000'000;  // most of one file, but for a larger tensor
  OnBlock on_block = {};                // of each block written
};

// model.safetensors, or model-00001-of-0000N.safetensors and their index, in `folder`, which
// exists: the family's tensors in options.dtype, and those of its files that are not read here. The
// latter are copied as they are from `original`; without one those that nothing ever reads are
// zeros and other parts of a larger model are left out. One tensor at a time is in memory.
absl::Status ExportWeights(const TensorSource& source,
                           absl::Span<const parallel::ParameterSpec> specs,
                           const FamilyModel& family, const HuggingFaceFolder* original,
                           const ExportOptions& options, const std::string& folder);

// What a run keeps of the folder it started from, in RUN/huggingface: configurations, tokenizer
// and processors, and the names of the tensors. Enough to export without the folder.
absl::Status KeepModelFiles(const PretrainedModel& pretrained, const std::string& run_dir);

// The checkpoint at `checkpoint_path` of the run as a folder that transformers loads.
// Parts of the folder the run started from that are not trained here are copied from it, if it is
// still there. FailedPrecondition if `folder` exists and is not empty; InvalidArgument, naming the
// key, if the model is of no family.
// A model with adapters (model.lora) is written with them merged into its weights, or with
// `adapter_only` as PEFT's adapter alone. `on_block` is told of each block read and written.
absl::Status ExportCheckpoint(const Recipe& recipe, const std::string& run_dir,
                              const std::string& checkpoint_path, const std::string& folder,
                              std::optional<DType> dtype, bool adapter_only = false,
                              const OnBlock& on_block = {});

}  // namespace omni::trainer
