#include "runtime/device/cpu_async/cpu_async_device.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "runtime/base/status.h"
#include "runtime/device/cpu_async/async_stream.h"

namespace omni {
namespace {

constexpr int kPoison = 0xff;

class CpuAsyncDevice : public Device {
 public:
  CpuAsyncDevice(const DeviceOptions& options, std::unique_ptr<PagePool> pool)
      : kernels_(*options.kernels),
        delay_seed_(options.delay_seed),
        pool_(std::move(pool)),
        threads_(options.num_threads) {
    pool_->set_on_free([this](PageRun run) { Poison(run); });
  }
  ~CpuAsyncDevice() override { OMNI_CHECK(streams_.empty()); }  // they run work on our pages

  DeviceKind kind() const override { return DeviceKind::kCpuAsync; }
  PagePool& pool() override { return *pool_; }
  ThreadPool& threads() override { return threads_; }
  const KernelRegistry& kernels() const override { return kernels_; }

  std::unique_ptr<Stream> NewStream() override {
    auto stream =
        std::make_unique<AsyncStream>(delay_seed_, num_streams_made_++, [this](AsyncStream* gone) {
          streams_.erase(std::find(streams_.begin(), streams_.end(), gone));
        });
    streams_.push_back(stream.get());
    return stream;
  }
  Stream* memory_stream() override { return streams_.empty() ? nullptr : streams_.front(); }

 private:
  void Poison(PageRun run) {
    const auto overwrite = [run] { std::memset(run.data, kPoison, run.num_bytes); };
    if (Stream* stream = memory_stream()) {
      stream->Enqueue(overwrite);
    } else {
      overwrite();
    }
  }

  const KernelRegistry& kernels_;
  const uint64_t delay_seed_;
  uint64_t num_streams_made_ = 0;
  std::unique_ptr<PagePool> pool_;
  ThreadPool threads_;
  std::vector<AsyncStream*> streams_;  // alive, oldest first
};

}  // namespace

absl::StatusOr<std::unique_ptr<Device>> CreateCpuAsyncDevice(const DeviceOptions& options) {
  OMNI_ASSIGN_OR_RETURN(auto pool, PagePool::Create(options.reserved_bytes));
  return std::make_unique<CpuAsyncDevice>(options, std::move(pool));
}

}  // namespace omni
