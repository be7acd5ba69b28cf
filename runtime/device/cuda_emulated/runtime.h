// What the emulated CUDA runtime tells its tests and races.cc, beside the C functions of
// cuda_runtime_api.h that runtime.cc defines.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace omni::emulated {

// When something ran: which piece of work, and how many of each stream's pieces it knows ended.
struct Work {
  uint32_t number = 0;  // of the process
  int32_t stream = -1;  // -1: the host
  uint32_t sequence = 0;
  std::vector<uint32_t> clock;  // by stream
  const char* what = "";
  const void* kernel = nullptr;
};
const Work& WorkOf(uint32_t number);

// Enqueues a grid: `body` is one CUDA thread of it. cudaErrorInvalidConfiguration or
// cudaErrorInvalidValue for what a GPU's limits do not allow.
cudaError_t LaunchGrid(dim3 grid, dim3 shape, size_t shared_bytes, cudaStream_t stream,
                       const void* kernel, std::function<void()> body);
// Enqueues host-side work on a stream as one piece: what fake libraries are made of. `work` may
// touch device memory.
cudaError_t EnqueueWork(cudaStream_t stream, const char* what, std::function<void()> work);
// Reads or writes of a piece of work that is not an emulated kernel.
void AccessRange(const void* address, size_t bytes, bool writes);
// Of memory that is new to whoever gets it: all work on what was there has ended (cudaFree waits).
void ForgetAccesses(const void* address, size_t bytes);

// Beyond what is allocated too.
struct DeviceRange {
  std::byte* begin;
  size_t bytes;
};
DeviceRange DeviceMemory();
bool ProtectsMemory();  // a host that touches it gets SIGSEGV
size_t BytesAllocated();
int StreamsAlive();
std::string NameOf(const void* code);

extern uint64_t num_races;  // reported so far
extern const bool keeps_works;  // for reports: WorkOf knows each

}  // namespace omni::emulated
