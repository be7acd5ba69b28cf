#include "runtime/device/cpu_async/cpu_async_device.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "runtime/base/status.h"
#include "runtime/device/cpu_async/async_stream.h"
#include "runtime/device/host_device.h"

namespace omni {
namespace {

constexpr int kPoison = 0xff;

class CpuAsyncDevice : public HostDevice {
 public:
  CpuAsyncDevice(const DeviceOptions& options, std::unique_ptr<PagePool> pool)
      : HostDevice(options, std::move(pool)), delay_seed_(options.delay_seed) {
    this->pool().set_on_free([this](PageRun run) { Poison(run); });
  }
  ~CpuAsyncDevice() override { OMNI_CHECK(streams_.empty()); }  // they run work on our pages

  DeviceKind kind() const override { return DeviceKind::kCpuAsync; }
  bool launches_at_once() const override { return false; }

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
      stream->RunOnHost(overwrite);
    } else {
      overwrite();
    }
  }

  const uint64_t delay_seed_;
  uint64_t num_streams_made_ = 0;
  std::vector<AsyncStream*> streams_;  // alive, oldest first
};

}  // namespace

absl::StatusOr<std::unique_ptr<Device>> CreateCpuAsyncDevice(const DeviceOptions& options) {
  OMNI_ASSIGN_OR_RETURN(auto pool, PagePool::Create(options.reserved_bytes));
  return std::make_unique<CpuAsyncDevice>(options, std::move(pool));
}

}  // namespace omni
