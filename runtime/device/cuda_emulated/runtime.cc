// A CUDA runtime whose devices are this process: streams are threads, events are points in their
// queues, device memory is a range of addresses that only stream threads may touch (protection
// keys, where the processor has them: a host that dereferences a device pointer gets SIGSEGV).
//
// It is stricter than a GPU: unknown handles, freeing what is in use by the allocator's rules,
// copies that leave their allocation and launches beyond the limits are errors or end the program.
#include "runtime/device/cuda_emulated/runtime.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <sys/mman.h>

#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "runtime/device/cuda_emulated/block.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#endif

namespace {
struct EventState {
  std::mutex mutex;
  std::condition_variable changed;
  uint64_t recorded = 0, reached = 0;
  std::vector<uint32_t> clock;  // at the last record
};
}  // namespace
// An event may be destroyed while streams still have to reach it or wait for it.
struct CUevent_st {
  std::shared_ptr<EventState> state = std::make_shared<EventState>();
};

struct CUstream_st {
  int32_t index = 0;
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::function<void()>> queue;
  bool stop = false, busy = false;
  std::vector<uint32_t> clock;  // what is known to have ended before the next piece
  std::thread thread;
};

namespace omni::emulated {
namespace {

// Addresses of the device, and memory once it is touched. ASan marks all of them.
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kReserved = size_t{16} << 30;
#else
constexpr size_t kReserved = size_t{64} << 30;
#endif
constexpr size_t kAlignment = 256, kRedZone = 256, kMostFilled = size_t{64} << 20;

struct Runtime {
  std::mutex mutex;
  std::byte* memory = nullptr;
  int key = -1;
  std::map<std::byte*, size_t> allocated;  // requested bytes
  std::multimap<size_t, std::byte*> free;  // whole blocks
  std::map<std::byte*, size_t> block_bytes;
  size_t used = 0, allocated_bytes = 0;
  std::vector<std::unique_ptr<Work>> works;  // if any are kept
  uint32_t num_works = 0;
  std::atomic<int> streams_alive{0}, streams_made{0};
  std::map<const void*, int> shared_limit;  // kernels that asked for more
};
Runtime& TheRuntime() {
  static Runtime* runtime = [] {
    auto* made = new Runtime;
    made->memory =
        static_cast<std::byte*>(mmap(nullptr, kReserved, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (made->memory == MAP_FAILED) Fault("no addresses for device memory; see ulimit -v");
    made->key = pkey_alloc(0, PKEY_DISABLE_ACCESS);  // of this thread and those it starts
    if (made->key >= 0) pkey_mprotect(made->memory, kReserved, PROT_READ | PROT_WRITE, made->key);
    made->works.push_back(std::make_unique<Work>());
    ASAN_POISON_MEMORY_REGION(made->memory, kReserved);
    return made;
  }();
  return *runtime;
}
thread_local cudaError_t last_error = cudaSuccess;
thread_local uint32_t running_work = 0;
thread_local std::vector<uint32_t> host_clock;  // what this thread knows to have ended

cudaError_t Failed(cudaError_t error) { return last_error = error; }

void Merge(std::vector<uint32_t>& into, const std::vector<uint32_t>& from) {
  if (!keeps_works) return;  // nobody asks for clocks
  if (into.size() < from.size()) into.resize(from.size());
  for (size_t i = 0; i < from.size(); ++i) into[i] = std::max(into[i], from[i]);
}

bool IsNews(std::vector<uint32_t> known, const std::vector<uint32_t>& told) {
  std::vector<uint32_t> merged = known;
  Merge(merged, told);
  merged.resize(std::max(merged.size(), known.size()));
  known.resize(merged.size());
  return merged != known;
}
// For tests of what looks for races: OMNI_EMULATED_LEAVE_OUT_WAIT=N leaves out the Nth wait for an
// event, since it was set to N, that tells its stream something new.
bool LeavesOutWait() {
  const char* const wanted = std::getenv("OMNI_EMULATED_LEAVE_OUT_WAIT");
  if (wanted == nullptr) return false;
  static std::string last;
  static int64_t count = 0;
  if (last != wanted) count = 0;
  last = wanted;
  return ++count == std::atoll(wanted);
}

void Push(cudaStream_t stream, std::function<void()> run) {
  {
    const std::lock_guard lock(stream->mutex);
    stream->queue.push_back(std::move(run));
  }
  stream->changed.notify_one();
}

// Numbers a piece of work and notes what it comes after.
uint32_t NewWork(cudaStream_t stream, const char* what, const void* kernel) {
  Runtime& runtime = TheRuntime();
  const std::lock_guard lock(runtime.mutex);
  if (!keeps_works) return ++runtime.num_works;
  Merge(stream->clock, host_clock);
  if (stream->clock.size() <= static_cast<size_t>(stream->index))
    stream->clock.resize(stream->index + 1);
  auto work = std::make_unique<Work>();
  work->number = static_cast<uint32_t>(runtime.works.size());
  work->stream = stream->index;
  work->sequence = ++stream->clock[stream->index];
  work->clock = stream->clock;
  work->what = what;
  work->kernel = kernel;
  runtime.works.push_back(std::move(work));
  return runtime.works.back()->number;
}

cudaError_t Enqueue(cudaStream_t stream, const char* what, const void* kernel,
                    std::function<void()> work) {
  if (stream == nullptr) Fault("the default stream is not emulated: it orders what should not be");
  const uint32_t number = NewWork(stream, what, kernel);
  Push(stream, [number, work = std::move(work)] {
    running_work = number;
    work();
    running_work = 0;
  });
  return cudaSuccess;
}

void CheckInside(const void* address, size_t bytes) {
  Runtime& runtime = TheRuntime();
  auto* data = static_cast<std::byte*>(const_cast<void*>(address));
  if (data < runtime.memory || data >= runtime.memory + kReserved) return;  // host memory
  const std::lock_guard lock(runtime.mutex);
  auto it = runtime.allocated.upper_bound(data);
  if (it == runtime.allocated.begin()) Fault("device memory that was not allocated");
  --it;
  if (data + bytes > it->first + it->second) Fault("an access beyond a device allocation");
}

}  // namespace

const Work& WorkOf(uint32_t number) {
  const std::lock_guard lock(TheRuntime().mutex);
  return *TheRuntime().works[number];
}
uint32_t RunningWork() { return running_work; }
DeviceRange DeviceMemory() { return {TheRuntime().memory, kReserved}; }
bool ProtectsMemory() { return TheRuntime().key >= 0; }
size_t BytesAllocated() { return TheRuntime().allocated_bytes; }
int StreamsAlive() { return TheRuntime().streams_alive; }
cudaError_t EnqueueWork(cudaStream_t stream, const char* what, std::function<void()> work) {
  return Enqueue(stream, what, nullptr, std::move(work));
}
std::string NameOf(const void* code) {
  Dl_info info;
  if (dladdr(code, &info) == 0) return "?";
  char text[512];  // addr2line -Cfe PROGRAM OFFSET
  std::snprintf(text, sizeof(text), "%s+%#zx", info.dli_fname,
                static_cast<size_t>(static_cast<const char*>(code) -
                                    static_cast<const char*>(info.dli_fbase)));
  return text;
}

cudaError_t LaunchGrid(dim3 grid, dim3 shape, size_t shared_bytes, cudaStream_t stream,
                       const void* kernel, std::function<void()> body) {
  const uint64_t threads = uint64_t{shape.x} * shape.y * shape.z;
  if (threads == 0 || threads > 1024 || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
      grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    return Failed(cudaErrorInvalidConfiguration);
  if (threads % 32 != 0) Fault("a block that is not whole warps");
  {
    const std::lock_guard lock(TheRuntime().mutex);
    const auto limit = TheRuntime().shared_limit.find(kernel);
    const size_t allowed = limit == TheRuntime().shared_limit.end() ? 48 << 10 : limit->second;
    if (shared_bytes > allowed) return Failed(cudaErrorInvalidValue);
  }
  return Enqueue(stream, "kernel", kernel, [=, body = std::move(body)] {
    Grid run{.grid = grid, .shape = shape, .shared_bytes = shared_bytes};
    run.body = [](void* arg) { (*static_cast<const std::function<void()>*>(arg))(); };
    run.arg = const_cast<std::function<void()>*>(&body);
    run.launch = running_work;
    RunGrid(run);
  });
}

}  // namespace omni::emulated

using namespace omni::emulated;

extern "C" {

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error; }
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "emulated error";
}
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaMallocHost(void** data, size_t bytes) {
  *data = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  return *data == nullptr ? Failed(cudaErrorMemoryAllocation) : cudaSuccess;
}
cudaError_t cudaFreeHost(void* data) {
  std::free(data);
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** result, size_t bytes) {
  Runtime& runtime = TheRuntime();
  const std::lock_guard lock(runtime.mutex);
  const size_t whole = (bytes + kRedZone + kAlignment - 1) / kAlignment * kAlignment;
  std::byte* data;
  const auto found = runtime.free.lower_bound(whole);
  if (found != runtime.free.end() && found->first == whole) {
    data = found->second;
    runtime.free.erase(found);
  } else {
    if (runtime.used + whole > kReserved) return Failed(cudaErrorMemoryAllocation);
    data = runtime.memory + runtime.used;
    runtime.used += whole;
    runtime.block_bytes[data] = whole;
  }
  runtime.allocated[data] = bytes;
  runtime.allocated_bytes += bytes;
  ASAN_UNPOISON_MEMORY_REGION(data, bytes);
  ForgetAccesses(data, bytes);
  if (runtime.key >= 0) pkey_set(runtime.key, 0);
  // NaN until written. A large region is somebody's pool, who fills what it hands out.
  if (bytes <= kMostFilled) std::memset(data, 0xff, bytes);
  if (runtime.key >= 0) pkey_set(runtime.key, PKEY_DISABLE_ACCESS);
  *result = data;
  return cudaSuccess;
}
cudaError_t cudaFree(void* address) {
  Runtime& runtime = TheRuntime();
  const std::lock_guard lock(runtime.mutex);
  auto* data = static_cast<std::byte*>(address);
  const auto it = runtime.allocated.find(data);
  if (it == runtime.allocated.end()) Fault("cudaFree of what cudaMalloc did not give");
  runtime.allocated_bytes -= it->second;
  ASAN_POISON_MEMORY_REGION(data, it->second);
  if (it->second > kMostFilled) madvise(data, it->second, MADV_DONTNEED);
  runtime.free.emplace(runtime.block_bytes[data], data);
  runtime.allocated.erase(it);
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* result, unsigned flags) {
  if (flags != cudaStreamNonBlocking) Fault("streams must be made with cudaStreamNonBlocking");
  auto* stream = new CUstream_st;
  TheRuntime();
  stream->index = TheRuntime().streams_made++;
  ++TheRuntime().streams_alive;
  stream->thread = std::thread([stream] {
    if (TheRuntime().key >= 0) pkey_set(TheRuntime().key, 0);
    for (;;) {
      std::function<void()> work;
      {
        std::unique_lock lock(stream->mutex);
        stream->busy = false;
        stream->changed.notify_all();
        stream->changed.wait(lock, [stream] { return stream->stop || !stream->queue.empty(); });
        if (stream->queue.empty()) return;
        work = std::move(stream->queue.front());
        stream->queue.pop_front();
        stream->busy = true;
      }
      work();
    }
  });
  *result = stream;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  {
    const std::lock_guard lock(stream->mutex);
    stream->stop = true;
  }
  stream->changed.notify_all();
  stream->thread.join();
  --TheRuntime().streams_alive;
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  std::unique_lock lock(stream->mutex);
  stream->changed.wait(lock, [stream] { return stream->queue.empty() && !stream->busy; });
  const std::lock_guard runtime_lock(TheRuntime().mutex);
  Merge(host_clock, stream->clock);
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t handle) {
  const std::lock_guard lock(handle->state->mutex);
  if (handle->state->reached < handle->state->recorded) return cudaErrorNotReady;
  Merge(host_clock, handle->state->clock);
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t stream) {
  const std::shared_ptr<EventState> event = handle->state;
  uint64_t number;
  {
    const std::lock_guard lock(event->mutex);
    number = ++event->recorded;
    const std::lock_guard runtime_lock(TheRuntime().mutex);
    event->clock = stream->clock;
  }
  Push(stream, [event, number] {
    const std::lock_guard lock(event->mutex);
    event->reached = number;
    event->changed.notify_all();
  });
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t handle, unsigned) {
  const std::shared_ptr<EventState> event = handle->state;
  const std::lock_guard lock(event->mutex);
  const uint64_t number = event->recorded;
  {
    const std::lock_guard runtime_lock(TheRuntime().mutex);
    if (IsNews(stream->clock, event->clock) && LeavesOutWait()) return cudaSuccess;
    Merge(stream->clock, event->clock);
  }
  Push(stream, [event, number] {
    std::unique_lock waiting(event->mutex);
    event->changed.wait(waiting, [&] { return event->reached >= number; });
  });
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  CheckInside(to, bytes);
  CheckInside(from, bytes);
  return EnqueueWork(stream, "memcpy", [=] {
    AccessRange(from, bytes, false);
    AccessRange(to, bytes, true);
    std::memcpy(to, from, bytes);
  });
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind, cudaStream_t stream) {
  if (height == 0 || width == 0) return cudaSuccess;
  if (width > to_pitch || width > from_pitch) return Failed(cudaErrorInvalidPitchValue);
  CheckInside(to, (height - 1) * to_pitch + width);
  CheckInside(from, (height - 1) * from_pitch + width);
  return EnqueueWork(stream, "memcpy", [=] {
    for (size_t row = 0; row < height; ++row) {
      std::byte* const into = static_cast<std::byte*>(to) + row * to_pitch;
      const std::byte* const out = static_cast<const std::byte*>(from) + row * from_pitch;
      AccessRange(out, width, false);
      AccessRange(into, width, true);
      std::memcpy(into, out, width);
    }
  });
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t body, void* arg) {
  return EnqueueWork(stream, "host function", [=] {
    const int key = TheRuntime().key;  // it may not touch the device
    if (key >= 0) pkey_set(key, PKEY_DISABLE_ACCESS);
    body(arg);
    if (key >= 0) pkey_set(key, 0);
  });
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  CheckInside(to, bytes);
  return EnqueueWork(stream, "memset", [=] {
    AccessRange(to, bytes, true);
    std::memset(to, value, bytes);
  });
}
cudaError_t cudaMemset2DAsync(void* to, size_t pitch, int value, size_t width, size_t height,
                              cudaStream_t stream) {
  if (height == 0 || width == 0) return cudaSuccess;
  CheckInside(to, (height - 1) * pitch + width);
  return EnqueueWork(stream, "memset", [=] {
    for (size_t row = 0; row < height; ++row) {
      std::byte* const at = static_cast<std::byte*>(to) + row * pitch;
      AccessRange(at, width, true);
      std::memset(at, value, width);
    }
  });
}
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value > (227 << 10)) return Failed(cudaErrorInvalidValue);
    const std::lock_guard lock(TheRuntime().mutex);
    TheRuntime().shared_limit[kernel] = value;
  }
  return cudaSuccess;
}

}  // extern "C"
