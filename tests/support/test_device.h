// A device with all CPU kernels, one stream and an arena, for tests of ops and models.
//
//   class LinearTest : public ::testing::TestWithParam<DeviceKind> {
//     omni::testing::TestDevice device_{GetParam()};
//   };
//   INSTANTIATE_TEST_SUITE_P(Devices, LinearTest, omni::testing::TestDevices(),
//                            omni::testing::DeviceName);
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "runtime/comm/communicator.h"
#include "runtime/device/device.h"
#include "runtime/device/exec_context.h"
#include "runtime/ops/tape.h"

namespace omni::testing {

struct TestDeviceOptions {
  int64_t reserved_bytes = int64_t{1} << 30;
  int32_t num_threads = 2;
  uint64_t delay_seed = 1;
};

class TestDevice {
 public:
  using Options = TestDeviceOptions;

  explicit TestDevice(DeviceKind kind = DeviceKind::kCpu, const Options& options = {});
  ~TestDevice();

  Device& device() { return *device_; }
  Stream& stream() { return *stream_; }
  TensorArena& arena() { return *arena_; }

  // Outputs go to the tape if there is one, else to the arena.
  ExecContext ctx(Tape* tape = nullptr) {
    return {.device = *device_, .stream = *stream_, .tape = tape, .arena = arena_.get()};
  }
  // As ctx(), with outputs in another arena.
  ExecContext ctx(TensorArena& arena) {
    return {.device = *device_, .stream = *stream_, .tape = nullptr, .arena = &arena};
  }

  // `comm`, with this stream for its inputs; staged over host memory where the engine can't reach
  // the device's. As long as both are there.
  Communicator& Reach(Communicator& comm);

  // A tensor of the arena with these contents.
  template <typename T>
  TensorView Upload(const std::vector<T>& host, std::initializer_list<int64_t> sizes) {
    ExecContext context = ctx();
    return UploadNew<T>(context, host, sizes);
  }
  template <typename T>
  std::vector<T> Read(const TensorView& view) {
    ExecContext context = ctx();
    return HostRead<T>(context, view);
  }

  // Host doubles to and from a tensor of any float type, rounding as that type does.
  TensorView UploadAs(DType dtype, const std::vector<double>& host, absl::Span<const int64_t> sizes,
                      TensorArena& arena);
  std::vector<double> ReadDoubles(const TensorView& view);

  int64_t used_bytes() { return device_->pool().stats().used_bytes; }

 private:
  KernelRegistry kernels_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<TensorArena> arena_;
  std::unique_ptr<Communicator> staged_;
};

// Whether OMNITRAIN_TEST_GPU=1 asks for tests on a real GPU as well.
bool WantsGpu();
// Whether cuda_emulated is there: not without CUDA's headers, nor under ThreadSanitizer, which
// takes a switch of stacks for a race.
bool HasEmulatedGpu();

// cpu, cpu_async, cuda_emulated and cuda, as far as they are there, for INSTANTIATE_TEST_SUITE_P,
// and their names.
inline auto TestDevices() {
  std::vector<DeviceKind> kinds = {DeviceKind::kCpu, DeviceKind::kCpuAsync};
  if (HasEmulatedGpu()) kinds.push_back(DeviceKind::kCudaEmulated);
  if (WantsGpu()) kinds.push_back(DeviceKind::kCuda);
  return ::testing::ValuesIn(kinds);
}
std::string DeviceName(const ::testing::TestParamInfo<DeviceKind>& info);

}  // namespace omni::testing
