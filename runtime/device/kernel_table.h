// The table through which every numerical kernel is reached: {op, device, dtype} -> functions.
//
// It is the boundary of device plugins, so all of it is plain data: argument structs hold
// TensorViews and numbers (runtime/device/args/*.h), functions are C function pointers, and
// nothing from std, absl or protobuf crosses. CPU kernels register through the same table.
//
// Lookup takes, among the entries for the key that support the arguments, the one of highest
// priority. Registration is an explicit call (RegisterCpuKernels), never a static initialiser.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "runtime/tensor/view.h"

namespace omni {

enum class OpId : int32_t {
  // linear algebra and embeddings
  kLinearForward,
  kLinearBackwardInput,
  kLinearBackwardWeight,
  kEmbeddingForward,
  kEmbeddingBackward,
  kGatherRows,
  kScatterRows,
  kScatterAddRows,
  kInterpolateRowsForward,
  kInterpolateRowsBackward,
  // norms
  kRmsNormForward,
  kRmsNormBackward,
  kLayerNormForward,
  kLayerNormBackward,
  // activations
  kSwiGluForward,
  kSwiGluBackward,
  kGeluForward,
  kGeluBackward,
  // attention and positions
  kRopeForward,
  kRopeBackward,
  kAttentionForward,
  kAttentionBackward,
  kAttentionPartialForward,
  kAttentionPartialBackward,
  kAttentionCached,
  // stems and pooling
  kConv1dForward,
  kConv1dBackward,
  kPatchNormalize,
  kAvgPool1dForward,
  kAvgPool1dBackward,
  // loss
  kCrossEntropyForward,
  kCrossEntropyBackward,
  kSoftmaxParts,
  kSoftmaxJoin,
  // mixture of experts
  kMoeRouteForward,
  kMoeRouteBackward,
  kMoeSort,
  kMoeCombineForward,
  kMoeCombineBackward,
  kGroupedLinearForward,
  kGroupedLinearBackwardInput,
  kGroupedLinearBackwardWeight,
  kSigmoidGateForward,
  kSigmoidGateBackward,
  kBalanceStatistics,
  kBalanceLossForward,
  kBalanceLossBackward,
  kZLossForward,
  kZLossBackward,
  // element-wise
  kFill,
  kCopyCast,
  kAdd,
  kAxpy,
  kScale,
  // optimizer
  kAdamW,
  kSumOfSquares,
  kMuonMomentum,
  kNewtonSchulz,
  kMuonApply,
  kNumOps
};
const char* OpName(OpId op);
const char* DeviceName(DeviceKind kind);  // "cpu_async"

// What a kernel sees of its surroundings.
struct KernelContext {
  void* stream;   // the device's stream handle; null on CPU devices
  void* scratch;  // scratch_bytes(args) bytes, 64-byte aligned, contents undefined
  int64_t scratch_bytes;
  void* pool;  // first argument of parallel_for
  // Runs body(arg, task) for every task in [0, num_tasks), on some threads, and returns when
  // all are done. Work is cut into tasks by shape, never by thread count, so results do not
  // depend on how many threads there are.
  void (*parallel_for)(void* pool, int64_t num_tasks, void (*body)(void* arg, int64_t task),
                       void* arg);
  // Where a kernel of a device says that data are wrong (a number of a row that does not exist,
  // say): one number on the device, the largest code raised, looked at when the host reads. Null on
  // CPU devices, whose kernels return the code, and where nobody wants to know.
  int32_t* flags;
  void* library;  // what the device's kernels share (CUDA: cuda::Library); null on CPU devices
};

struct KernelEntry {
  OpId op;
  DeviceKind device;  // kCpu entries serve kCpuAsync too, kCuda entries kCudaEmulated
  DType dtype;        // of the activations
  const char* name;   // dtype_op_direction_backend_variant: "f32_linear_fwd_cpu_openblas"
  int32_t priority;   // the highest that supports the arguments wins
  int32_t (*run)(const void* args, const KernelContext* context);  // 0, or a device error code
  bool (*supports)(const void* args);                              // null: any arguments
  int64_t (*scratch_bytes)(const void* args);                      // null: none
};

class KernelRegistry {
 public:
  void Register(const KernelEntry& entry);

  // The best entry for these arguments, or null.
  const KernelEntry* Find(OpId op, DeviceKind device, DType dtype, const void* args) const;

  // "no kernel for linear_forward on cpu in fp32; tried: a, b": what to say when Find is null.
  std::string Explain(OpId op, DeviceKind device, DType dtype) const;

  const std::vector<KernelEntry>& entries() const { return entries_; }

 private:
  std::vector<KernelEntry> entries_;
  std::array<std::vector<size_t>, static_cast<size_t>(OpId::kNumOps)> by_op_;  // into entries_
};

// Adds the CPU kernels of every op: fp64, fp32 and bf16.
void RegisterCpuKernels(KernelRegistry& registry);

}  // namespace omni
