// The CUDA runtime behind the plugin's C functions.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <string>

#include "runtime/device/cuda/matmul.h"
#include "runtime/device/cuda/nccl.h"
#include "runtime/device/cuda/register.h"
#include "runtime/device/cuda_device/cuda_api.h"

namespace omni::cuda {
namespace {

int32_t Code(cudaError_t error) { return -static_cast<int32_t>(error); }
cudaStream_t Stream(void* stream) { return static_cast<cudaStream_t>(stream); }
cudaEvent_t Event(void* event) { return static_cast<cudaEvent_t>(event); }
cudaMemcpyKind Direction(int32_t to_device) {
  return to_device != 0 ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost;
}

const KernelRegistry& Kernels() {
  static const KernelRegistry* registry = [] {
    auto* made = new KernelRegistry;
    RegisterCudaKernels(*made);
    return made;
  }();
  return *registry;
}

const char* Describe(int32_t error) {
  if (-error >= kLibraryError) return "an error of cuBLASLt";
  return cudaGetErrorString(static_cast<cudaError_t>(-error));
}

void* Open(int32_t index, char* why, int64_t why_bytes) {
  const auto refuse = [&](const std::string& text) {
    std::snprintf(why, static_cast<size_t>(why_bytes), "%s", text.c_str());
    return nullptr;
  };
  int count = 0;
  cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorInsufficientDriver) {
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (driver == 0) return refuse("there is no NVIDIA driver on this machine");
    return refuse("the NVIDIA driver is for CUDA " + std::to_string(driver / 1000) + "." +
                  std::to_string(driver % 1000 / 10) + ", and this build wants " +
                  std::to_string(runtime / 1000) + "." + std::to_string(runtime % 1000 / 10) +
                  " or later");
  }
  if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0))
    return refuse("this machine has no GPU that CUDA sees (CUDA_VISIBLE_DEVICES?)");
  if (error == cudaSuccess) {
    index %= count;
    error = cudaSetDevice(index);
  }
  if (error != cudaSuccess)
    return refuse("GPU " + std::to_string(index) + " can't be used: " + cudaGetErrorString(error));
  std::string text;
  auto library = Library::Create(&text);
  return library == nullptr ? refuse(text) : library.release();
}

constexpr CudaApi Functions() {
  return {
      .abi = kCudaAbi,
      .kernels = nullptr,
      .num_kernels = 0,
      .describe = Describe,
      .open = Open,
      .close = [](void* library) { delete static_cast<Library*>(library); },
      .allocate =
          [](int64_t num_bytes, void** data) {
            return Code(cudaMalloc(data, static_cast<size_t>(num_bytes)));
          },
      .release = [](void* data) { cudaFree(data); },
      .allocate_host =
          [](int64_t num_bytes, void** data) {
            return Code(cudaMallocHost(data, static_cast<size_t>(num_bytes)));
          },
      .release_host = [](void* data) { cudaFreeHost(data); },
      .create_stream =
          [](void** stream) {
            return Code(cudaStreamCreateWithFlags(reinterpret_cast<cudaStream_t*>(stream),
                                                  cudaStreamNonBlocking));
          },
      .destroy_stream = [](void* stream) { cudaStreamDestroy(Stream(stream)); },
      .synchronize = [](void* stream) { return Code(cudaStreamSynchronize(Stream(stream))); },
      .create_event =
          [](void** event) {
            return Code(cudaEventCreateWithFlags(reinterpret_cast<cudaEvent_t*>(event),
                                                 cudaEventDisableTiming));
          },
      .destroy_event = [](void* event) { cudaEventDestroy(Event(event)); },
      .record = [](void* event,
                   void* stream) { return Code(cudaEventRecord(Event(event), Stream(stream))); },
      .wait =
          [](void* stream, void* event) {
            return Code(cudaStreamWaitEvent(Stream(stream), Event(event), 0));
          },
      .query =
          [](void* event) {
            const cudaError_t error = cudaEventQuery(Event(event));
            return error == cudaErrorNotReady ? kCudaNotReady : Code(error);
          },
      .copy =
          [](void* to, const void* from, int64_t num_bytes, int32_t to_device, void* stream) {
            return Code(cudaMemcpyAsync(to, from, static_cast<size_t>(num_bytes),
                                        Direction(to_device), Stream(stream)));
          },
      .copy_rows =
          [](void* to, int64_t to_stride, const void* from, int64_t from_stride, int64_t row_bytes,
             int64_t rows, int32_t to_device, void* stream) {
            return Code(cudaMemcpy2DAsync(to, static_cast<size_t>(to_stride), from,
                                          static_cast<size_t>(from_stride),
                                          static_cast<size_t>(row_bytes), static_cast<size_t>(rows),
                                          Direction(to_device), Stream(stream)));
          },
      .fill =
          [](void* data, int32_t byte, int64_t num_bytes, void* stream) {
            return Code(
                cudaMemsetAsync(data, byte, static_cast<size_t>(num_bytes), Stream(stream)));
          },
      .run_on_host =
          [](void (*body)(void*), void* arg, void* stream) {
            return Code(cudaLaunchHostFunc(Stream(stream), body, arg));
          },
      .nccl = nullptr,
  };
}

}  // namespace
}  // namespace omni::cuda

extern "C" __attribute__((visibility("default"))) const omni::CudaApi* omni_cuda_api() {
  static const omni::CudaApi api = [] {
    omni::CudaApi made = omni::cuda::Functions();
    const auto& entries = omni::cuda::Kernels().entries();
    made.kernels = entries.data();
    made.num_kernels = static_cast<int64_t>(entries.size());
#if OMNI_HAS_NCCL
    made.nccl = omni::cuda::Nccl();
#endif
    return made;
  }();
  return &api;
}
