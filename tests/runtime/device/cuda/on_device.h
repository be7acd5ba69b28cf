// A kernel's problem on a device: its tensors are copied there, and the views of its arguments with
// them, wherever they stand in the struct.
#pragma once

#include <cuda_runtime_api.h>

#include <cstring>
#include <vector>

#include "runtime/device/cuda/matmul.h"
#include "tests/runtime/ops/kernel_problem.h"

namespace omni::testing {

inline void CheckCuda(cudaError_t error) {
  OMNI_CHECK_EQ(static_cast<int>(error), static_cast<int>(cudaSuccess));
}

class DeviceStream {
 public:
  DeviceStream() { CheckCuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  ~DeviceStream() {
    ReleaseLibrary();
    CheckCuda(cudaStreamDestroy(stream_));
  }
  DeviceStream(const DeviceStream&) = delete;
  DeviceStream& operator=(const DeviceStream&) = delete;

  cudaStream_t get() const { return stream_; }
  cuda::Library* library() const {
    if (library_ == nullptr) {
      std::string error;
      library_ = cuda::Library::Create(&error);
    }
    return library_.get();
  }
  void ReleaseLibrary() { library_.reset(); }
  void Synchronize() const { CheckCuda(cudaStreamSynchronize(stream_)); }

 private:
  cudaStream_t stream_ = nullptr;
  mutable std::unique_ptr<cuda::Library> library_;
};

class DeviceBytes {
 public:
  explicit DeviceBytes(size_t bytes) : bytes_(bytes) { CheckCuda(cudaMalloc(&data_, bytes)); }
  ~DeviceBytes() { CheckCuda(cudaFree(data_)); }
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;

  std::byte* data() const { return static_cast<std::byte*>(data_); }
  void Upload(const void* host, const DeviceStream& stream) const {
    CheckCuda(cudaMemcpyAsync(data_, host, bytes_, cudaMemcpyHostToDevice, stream.get()));
    stream.Synchronize();
  }
  void Download(void* host, const DeviceStream& stream) const {
    CheckCuda(cudaMemcpyAsync(host, data_, bytes_, cudaMemcpyDeviceToHost, stream.get()));
    stream.Synchronize();
  }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

// Runs an entry on a copy of the problem's tensors and brings them back. Scratch is unset memory
// (NaN on the emulated GPU). Returns the code that was raised, or what `run` returned.
inline int32_t RunOnDevice(const KernelEntry& entry, KernelProblem& problem,
                           const DeviceStream& stream) {
  std::list<DeviceBytes> copies;
  for (const std::vector<std::byte>& block : problem.memory()) {
    copies.emplace_back(block.size());
    copies.back().Upload(block.data(), stream);
  }
  // Every word of the arguments that points into a tensor points into its copy.
  std::vector<std::byte> args = problem.arg_bytes();
  for (size_t at = 0; at + sizeof(void*) <= args.size(); at += sizeof(void*)) {
    const std::byte* pointer;
    std::memcpy(&pointer, args.data() + at, sizeof(pointer));
    auto copy = copies.begin();
    for (const std::vector<std::byte>& block : problem.memory()) {
      if (pointer >= block.data() && pointer < block.data() + block.size()) {
        const std::byte* moved = copy->data() + (pointer - block.data());
        std::memcpy(args.data() + at, &moved, sizeof(moved));
        break;
      }
      ++copy;
    }
  }
  const int64_t scratch_bytes =
      entry.scratch_bytes == nullptr ? 0 : entry.scratch_bytes(args.data());
  const DeviceBytes scratch(scratch_bytes + 1), flags(sizeof(int32_t));
  int32_t raised = 0;
  flags.Upload(&raised, stream);
  const KernelContext context{.stream = stream.get(),
                              .scratch = scratch.data(),
                              .scratch_bytes = scratch_bytes,
                              .pool = nullptr,
                              .parallel_for = nullptr,
                              .flags = reinterpret_cast<int32_t*>(flags.data()),
                              .library = stream.library()};
  const int32_t error = entry.run(args.data(), &context);
  stream.Synchronize();
  flags.Download(&raised, stream);
  auto copy = copies.begin();
  for (std::vector<std::byte>& block : problem.memory()) (copy++)->Download(block.data(), stream);
  return error != 0 ? error : raised;
}

}  // namespace omni::testing
