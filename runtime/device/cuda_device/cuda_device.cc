#include "runtime/device/cuda_device/cuda_device.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/base/plugin.h"
#include "runtime/base/status.h"
#include "runtime/device/cuda_device/cuda_api.h"
#include "runtime/device/strided.h"

namespace omni {
namespace {

constexpr int32_t kUnset = 0xff;

// What cannot fail but by a fault of the GPU or of this program ends it: results are lost.
void Must(const CudaApi& api, int32_t error, const char* what) {
  if (error != 0) CheckFailed(__FILE__, __LINE__, absl::StrCat(what, ": ", api.describe(error)));
}

// Pinned memory in sizes of powers of two, kept for the next who asks. Outlives the device if
// somebody still holds some.
class HostBuffers : public std::enable_shared_from_this<HostBuffers> {
 public:
  explicit HostBuffers(const CudaApi& api) : api_(api) {}
  ~HostBuffers() {
    for (const auto& [num_bytes, data] : free_) api_.release_host(data);
  }

  std::shared_ptr<std::byte> Take(int64_t num_bytes) {
    int64_t size = kPageBytes;
    while (size < num_bytes) size *= 2;
    std::byte* data = nullptr;
    {
      const std::lock_guard lock(mutex_);
      if (const auto found = free_.find(size); found != free_.end()) {
        data = found->second;
        free_.erase(found);
      }
    }
    if (data == nullptr) {
      Must(api_, api_.allocate_host(size, reinterpret_cast<void**>(&data)), "pinned host memory");
    }
    return {data, [self = shared_from_this(), size](std::byte* taken) {
              const std::lock_guard lock(self->mutex_);
              self->free_.emplace(size, taken);
            }};
  }

 private:
  const CudaApi& api_;
  std::mutex mutex_;
  std::multimap<int64_t, std::byte*> free_;
};

class CudaEvent final : public Event {
 public:
  explicit CudaEvent(const CudaApi& api) : api_(api) {
    Must(api_, api_.create_event(&event_), "an event");
  }
  ~CudaEvent() override { api_.destroy_event(event_); }
  void* get() const { return event_; }
  // One that was lost with the GPU is reached: nothing more will come.
  bool is_reached() const override { return api_.query(event_) != kCudaNotReady; }

 private:
  const CudaApi& api_;
  void* event_ = nullptr;
};

class CudaStream final : public Stream {
 public:
  CudaStream(const CudaApi& api, std::function<void(CudaStream*)> on_destroy)
      : api_(api), on_destroy_(std::move(on_destroy)) {
    Must(api_, api_.create_stream(&stream_), "a stream");
  }
  ~CudaStream() override {
    (void)api_.synchronize(stream_);
    on_destroy_(this);
    api_.destroy_stream(stream_);
  }

  void RunOnHost(std::function<void()> work) override {
    auto* held = new std::function<void()>(std::move(work));  // freed by whoever runs it
    const auto body = [](void* arg) {
      const std::unique_ptr<std::function<void()>> mine(static_cast<std::function<void()>*>(arg));
      (*mine)();
    };
    Must(api_, api_.run_on_host(body, held, stream_), "work of the host on a stream");
  }
  std::shared_ptr<Event> Record() override {
    auto event = std::make_shared<CudaEvent>(api_);
    Must(api_, api_.record(event->get(), stream_), "recording an event");
    return event;
  }
  void Wait(const std::shared_ptr<Event>& event) override {
    const auto awaited = std::dynamic_pointer_cast<CudaEvent>(event);
    OMNI_CHECK(awaited != nullptr);  // an event of another kind of device
    Must(api_, api_.wait(stream_, awaited->get()), "waiting for an event");
  }
  absl::Status Synchronize() override {
    const int32_t error = api_.synchronize(stream_);
    if (error == 0) return absl::OkStatus();
    return absl::InternalError(
        absl::StrCat("the GPU failed in this or an earlier call: ", api_.describe(error)));
  }
  void* native_handle() const override { return stream_; }

 private:
  const CudaApi& api_;
  std::function<void(CudaStream*)> on_destroy_;
  void* stream_ = nullptr;
};

class CudaDevice final : public Device {
 public:
  CudaDevice(const CudaApi& api, const DeviceOptions& options, void* library, std::byte* memory)
      : api_(api),
        kind_(options.kind),
        library_(library),
        pool_(PagePool::Over(memory, options.reserved_bytes,
                             [&api, memory] { api.release(memory); })),
        threads_(options.num_threads),
        buffers_(std::make_shared<HostBuffers>(api)) {
    for (int64_t i = 0; i < api.num_kernels; ++i) kernels_.Register(api.kernels[i]);
    Must(api_, api_.allocate(sizeof(int32_t), reinterpret_cast<void**>(&flags_)), "flags");
    if (kind_ == DeviceKind::kCudaEmulated) {
      pool_->set_on_allocate([this](PageRun run) { Poison(run); });
    }
  }
  ~CudaDevice() override {
    OMNI_CHECK(streams_.empty());
    api_.release(flags_);
    api_.close(library_);
  }

  DeviceKind kind() const override { return kind_; }
  PagePool& pool() override { return *pool_; }
  ThreadPool& threads() override { return threads_; }
  const KernelRegistry& kernels() const override { return kernels_; }
  bool launches_at_once() const override { return true; }
  const NcclApi* nccl() const { return api_.nccl; }
  Stream* memory_stream() override { return streams_.empty() ? nullptr : streams_.front(); }

  std::unique_ptr<Stream> NewStream() override {
    auto stream = std::make_unique<CudaStream>(api_, [this](CudaStream* gone) {
      streams_.erase(std::find(streams_.begin(), streams_.end(), gone));
    });
    streams_.push_back(stream.get());
    if (streams_.size() == 1) {
      Must(api_, api_.fill(flags_, 0, sizeof(int32_t), stream->native_handle()), "flags");
      OMNI_CHECK_OK(stream->Synchronize());
    }
    return stream;
  }

  KernelContext ContextOn(Stream& stream) override {
    return {
        .stream = stream.native_handle(), .pool = &threads_, .flags = flags_, .library = library_};
  }
  std::string DescribeError(int32_t code) const override {
    return code < 0 ? api_.describe(code) : Device::DescribeError(code);
  }

  void CopyIn(Stream& stream, const void* host, const TensorView& to) override {
    if (to.num_bytes() == 0) return;
    const std::shared_ptr<std::byte> held = HostBuffer(to.num_bytes());
    std::memcpy(held.get(), host, to.num_bytes());
    Copy(stream, to, held.get(), /*to_device=*/true);
    stream.RunOnHost([held] {});
  }
  absl::Status CopyOut(Stream& stream, const TensorView& from, void* host) override {
    const int64_t flag_at = (from.num_bytes() + 63) / 64 * 64;
    const std::shared_ptr<std::byte> held = HostBuffer(flag_at + 64);
    Copy(stream, from, held.get(), /*to_device=*/false);
    Must(api_,
         api_.copy(held.get() + flag_at, flags_, sizeof(int32_t), /*to_device=*/0,
                   stream.native_handle()),
         "reading flags");
    OMNI_RETURN_IF_ERROR(stream.Synchronize());
    if (from.num_bytes() > 0) std::memcpy(host, held.get(), from.num_bytes());
    int32_t raised;
    std::memcpy(&raised, held.get() + flag_at, sizeof(raised));
    if (raised == 0) return absl::OkStatus();
    return absl::InternalError(
        absl::StrCat("a kernel since the last read failed with code ", raised));
  }
  void CopyInLater(Stream& stream, const void* host, const TensorView& to) override {
    OMNI_CHECK(to.is_dense());
    Copy(stream, to, static_cast<std::byte*>(const_cast<void*>(host)), /*to_device=*/true);
  }
  void CopyOutLater(Stream& stream, const TensorView& from, void* host) override {
    OMNI_CHECK(from.is_dense());
    Copy(stream, from, static_cast<std::byte*>(host), /*to_device=*/false);
  }
  std::shared_ptr<std::byte> HostBuffer(int64_t num_bytes) override {
    return buffers_->Take(num_bytes);
  }

 private:
  // Between a view and dense host memory.
  void Copy(Stream& stream, const TensorView& view, std::byte* host, bool to_device) {
    void* const native = stream.native_handle();
    const auto element = static_cast<int64_t>(SizeOf(view.dtype));
    if (view.num_elements() == 0) return;
    if (view.num_dims == 2 && !view.is_dense()) {
      const int64_t stride = view.strides[0] * element, row = view.sizes[1] * element;
      Must(api_,
           to_device ? api_.copy_rows(view.data, stride, host, row, row, view.sizes[0], 1, native)
                     : api_.copy_rows(host, row, view.data, stride, row, view.sizes[0], 0, native),
           "a copy of rows");
      return;
    }
    ForEachRun(view, [&](std::byte* run, int64_t offset, int64_t num_bytes) {
      Must(api_,
           to_device ? api_.copy(run, host + offset, num_bytes, 1, native)
                     : api_.copy(host + offset, run, num_bytes, 0, native),
           "a copy");
    });
  }
  void Poison(PageRun run) {
    Stream* const stream = memory_stream();
    if (stream == nullptr) return;
    Must(api_, api_.fill(run.data, kUnset, run.num_bytes, stream->native_handle()), "poison");
  }

  const CudaApi& api_;
  const DeviceKind kind_;
  void* const library_;
  KernelRegistry kernels_;
  std::unique_ptr<PagePool> pool_;
  ThreadPool threads_;
  const std::shared_ptr<HostBuffers> buffers_;
  int32_t* flags_ = nullptr;          // on the device
  std::vector<CudaStream*> streams_;  // alive, oldest first
};

absl::StatusOr<const CudaApi*> OpenApi(DeviceKind kind) {
  const bool is_emulated = kind == DeviceKind::kCudaEmulated;
  const Plugin plugin{
      .file = is_emulated ? "libomni_cuda_emulated.so" : "libomni_cuda.so",
      .environment = is_emulated ? "OMNITRAIN_CUDA_EMULATED_PLUGIN" : "OMNITRAIN_CUDA_PLUGIN",
      .entry = "omni_cuda_api"};
  const CudaApi* api = nullptr;
  const absl::Status status = OpenPlugin(plugin, "", [&](void* entry) {
    api = reinterpret_cast<const CudaApi* (*)()>(entry)();
    return api->abi == kCudaAbi;
  });
  if (status.ok()) return api;
  return absl::FailedPreconditionError(
      absl::StrCat("runtime.device: ", DeviceName(kind), ": there is no plugin for it (",
                   status.message(), "); was omnitrain built where CUDA is installed?"));
}

}  // namespace

const NcclApi* NcclOf(Device& device) {
  const auto* cuda = dynamic_cast<const CudaDevice*>(&device);
  return cuda == nullptr ? nullptr : cuda->nccl();
}

absl::StatusOr<std::unique_ptr<Device>> CreateCudaDevice(const DeviceOptions& options) {
  OMNI_ASSIGN_OR_RETURN(const CudaApi* api, OpenApi(options.kind));
  char why[512] = "";
  void* const library = api->open(options.index, why, sizeof(why));
  if (library == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("runtime.device: ", DeviceName(options.kind), ": ", why));
  }
  void* memory = nullptr;
  const int32_t error = api->allocate(options.reserved_bytes, &memory);
  if (error != 0) {
    api->close(library);
    return absl::ResourceExhaustedError(absl::StrCat("can't reserve ", options.reserved_bytes,
                                                     " bytes of GPU memory: ", api->describe(error),
                                                     "; lower runtime.reserve_gib"));
  }
  return std::make_unique<CudaDevice>(*api, options, library, static_cast<std::byte*>(memory));
}

}  // namespace omni
