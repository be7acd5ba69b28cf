#include "runtime/device/kernel_table.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/base/check.h"

namespace omni {
namespace {

constexpr const char* kOpNames[] = {"linear_forward",
                                    "linear_backward_input",
                                    "linear_backward_weight",
                                    "embedding_forward",
                                    "embedding_backward",
                                    "gather_rows",
                                    "scatter_rows",
                                    "scatter_add_rows",
                                    "interpolate_rows_forward",
                                    "interpolate_rows_backward",
                                    "rms_norm_forward",
                                    "rms_norm_backward",
                                    "layer_norm_forward",
                                    "layer_norm_backward",
                                    "swiglu_forward",
                                    "swiglu_backward",
                                    "gelu_forward",
                                    "gelu_backward",
                                    "rope_forward",
                                    "rope_backward",
                                    "attention_forward",
                                    "attention_backward",
                                    "attention_partial_forward",
                                    "attention_partial_backward",
                                    "attention_cached",
                                    "conv1d_forward",
                                    "conv1d_backward",
                                    "patch_normalize",
                                    "avg_pool1d_forward",
                                    "avg_pool1d_backward",
                                    "cross_entropy_forward",
                                    "cross_entropy_backward",
                                    "softmax_parts",
                                    "softmax_join",
                                    "moe_route_forward",
                                    "moe_route_backward",
                                    "moe_sort",
                                    "moe_combine_forward",
                                    "moe_combine_backward",
                                    "grouped_linear_forward",
                                    "grouped_linear_backward_input",
                                    "grouped_linear_backward_weight",
                                    "sigmoid_gate_forward",
                                    "sigmoid_gate_backward",
                                    "balance_statistics",
                                    "balance_loss_forward",
                                    "balance_loss_backward",
                                    "z_loss_forward",
                                    "z_loss_backward",
                                    "fill",
                                    "copy_cast",
                                    "add",
                                    "axpy",
                                    "scale",
                                    "adamw",
                                    "sum_of_squares",
                                    "muon_momentum",
                                    "newton_schulz",
                                    "muon_apply"};
static_assert(std::size(kOpNames) == static_cast<size_t>(OpId::kNumOps));

// The test devices run the kernels of those they stand for.
DeviceKind TableDevice(DeviceKind kind) {
  return IsHostMemory(kind) ? DeviceKind::kCpu : DeviceKind::kCuda;
}

}  // namespace

const char* DeviceName(DeviceKind kind) {
  switch (kind) {
    case DeviceKind::kCpu:
      return "cpu";
    case DeviceKind::kCpuAsync:
      return "cpu_async";
    case DeviceKind::kCuda:
      return "cuda";
    case DeviceKind::kCudaEmulated:
      return "cuda_emulated";
  }
  return "?";
}

const char* OpName(OpId op) {
  const auto index = static_cast<size_t>(op);
  return index < std::size(kOpNames) ? kOpNames[index] : "?";
}

void KernelRegistry::Register(const KernelEntry& entry) {
  OMNI_CHECK(entry.run != nullptr);
  entries_.push_back(entry);
  by_op_[static_cast<size_t>(entry.op)].push_back(entries_.size() - 1);
}

const KernelEntry* KernelRegistry::Find(OpId op, DeviceKind device, DType dtype,
                                        const void* args) const {
  const KernelEntry* best = nullptr;
  for (const size_t index : by_op_[static_cast<size_t>(op)]) {
    const KernelEntry& entry = entries_[index];
    if (entry.device != TableDevice(device) || entry.dtype != dtype) continue;
    if (best != nullptr && entry.priority <= best->priority) continue;
    if (entry.supports == nullptr || entry.supports(args)) best = &entry;
  }
  return best;
}

std::string KernelRegistry::Explain(OpId op, DeviceKind device, DType dtype) const {
  std::vector<std::string> tried;
  for (const size_t index : by_op_[static_cast<size_t>(op)]) tried.push_back(entries_[index].name);
  const absl::string_view dtype_name = Name(dtype);
  return absl::StrCat("no kernel for ", OpName(op), " on ", DeviceName(device), " in ", dtype_name,
                      tried.empty() ? "; none is registered"
                                    : absl::StrCat("; registered: ", absl::StrJoin(tried, ", ")));
}

}  // namespace omni
