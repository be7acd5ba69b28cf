// What a CUDA plugin exports (libomni_cuda.so; libomni_cuda_emulated.so, which runs the same
// kernels on the CPU): C functions and plain data, so that nothing of CUDA is needed where it is
// used.
//
//   extern "C" const omni::CudaApi* omni_cuda_api();
#pragma once

#include <cstdint>

#include "runtime/device/cuda_device/nccl_api.h"
#include "runtime/device/kernel_table.h"

namespace omni {

inline constexpr int32_t kCudaAbi = 1;
inline constexpr int32_t kCudaNotReady = 1;

// All functions that return an int32_t return 0, or what `describe` has words for: below 0.
struct CudaApi {
  int32_t abi;
  const KernelEntry* kernels;
  int64_t num_kernels;
  const char* (*describe)(int32_t error);

  // Takes device `index`, modulo how many there are, for this thread and gives what its kernels share (KernelContext::library);
  // null, with one sentence in `why`, if there is no such device or it can't be used.
  void* (*open)(int32_t index, char* why, int64_t why_bytes);
  void (*close)(void* library);  // once all streams are gone

  int32_t (*allocate)(int64_t num_bytes, void** data);
  void (*release)(void* data);
  int32_t (*allocate_host)(int64_t num_bytes, void** data);  // pinned
  void (*release_host)(void* data);

  int32_t (*create_stream)(void** stream);
  void (*destroy_stream)(void* stream);
  int32_t (*synchronize)(void* stream);
  int32_t (*create_event)(void** event);
  void (*destroy_event)(void* event);
  int32_t (*record)(void* event, void* stream);
  int32_t (*wait)(void* stream, void* event);
  int32_t (*query)(void* event);  // or kCudaNotReady

  // In the order of a stream.
  int32_t (*copy)(void* to, const void* from, int64_t num_bytes, int32_t to_device, void* stream);
  int32_t (*copy_rows)(void* to, int64_t to_stride, const void* from, int64_t from_stride,
                       int64_t row_bytes, int64_t rows, int32_t to_device, void* stream);
  int32_t (*fill)(void* data, int32_t byte, int64_t num_bytes, void* stream);
  int32_t (*run_on_host)(void (*body)(void* arg), void* arg, void* stream);

  const NcclApi* nccl;  // null: it was built without
};

}  // namespace omni
