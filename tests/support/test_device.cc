#include "tests/support/test_device.h"

#include <cstdlib>

#include "runtime/base/check.h"
#include "runtime/comm/host_staged.h"

namespace omni::testing {
namespace {

template <typename T>
std::vector<T> Converted(const std::vector<double>& host) {
  std::vector<T> out(host.size());
  for (size_t i = 0; i < host.size(); ++i) {
    if constexpr (std::is_same_v<T, BFloat16>)
      out[i] = BFloat16(static_cast<float>(host[i]));
    else
      out[i] = static_cast<T>(host[i]);
  }
  return out;
}

template <typename T>
std::vector<double> Doubles(const std::vector<T>& host) {
  std::vector<double> out(host.size());
  for (size_t i = 0; i < host.size(); ++i) {
    if constexpr (std::is_same_v<T, BFloat16>)
      out[i] = static_cast<float>(host[i]);
    else
      out[i] = static_cast<double>(host[i]);
  }
  return out;
}

}  // namespace

TestDevice::TestDevice(DeviceKind kind, const Options& options) {
  RegisterCpuKernels(kernels_);
  auto device = Device::Create({.kind = kind,
                                .reserved_bytes = options.reserved_bytes,
                                .num_threads = options.num_threads,
                                .delay_seed = options.delay_seed,
                                .kernels = &kernels_});
  OMNI_CHECK_OK(device.status());
  device_ = *std::move(device);
  stream_ = device_->NewStream();
  arena_ = std::make_unique<TensorArena>(*device_);
}

TestDevice::~TestDevice() {
  arena_.reset();
  stream_.reset();  // runs what is queued, poisoning included, while the pool is there
}

TensorView TestDevice::UploadAs(DType dtype, const std::vector<double>& host,
                                absl::Span<const int64_t> sizes, TensorArena& arena) {
  ExecContext context = ctx(arena);
  const TensorView view = context.New(dtype, sizes);
  OMNI_CHECK_EQ(view.num_elements(), static_cast<int64_t>(host.size()));
  switch (dtype) {
    case DType::kFloat64:
      omni::Upload(context, host.data(), view.num_bytes(), view);
      break;
    case DType::kFloat32:
      omni::Upload(context, Converted<float>(host).data(), view.num_bytes(), view);
      break;
    case DType::kBFloat16:
      omni::Upload(context, Converted<BFloat16>(host).data(), view.num_bytes(), view);
      break;
    default:
      OMNI_CHECK(false);
  }
  return view;
}

std::vector<double> TestDevice::ReadDoubles(const TensorView& view) {
  switch (view.dtype) {
    case DType::kFloat64:
      return Read<double>(view);
    case DType::kFloat32:
      return Doubles(Read<float>(view));
    case DType::kBFloat16:
      return Doubles(Read<BFloat16>(view));
    case DType::kInt32:
      return Doubles(Read<int32_t>(view));
    case DType::kInt64:
      return Doubles(Read<int64_t>(view));
    case DType::kUInt8:
      return Doubles(Read<uint8_t>(view));
  }
  return {};
}

Communicator& TestDevice::Reach(Communicator& comm) {
  Communicator* reached = &comm;
  if (!IsHostMemory(device_->kind())) {
    staged_ = StageOnHost(&comm, device_.get());
    reached = staged_.get();
  }
  reached->SetInputStream(stream_.get());
  return *reached;
}

bool WantsGpu() {
  const char* const wanted = std::getenv("OMNITRAIN_TEST_GPU");
  return wanted != nullptr && std::string(wanted) == "1";
}
bool HasEmulatedGpu() { return OMNI_TEST_EMULATED_GPU != 0; }

std::string DeviceName(const ::testing::TestParamInfo<DeviceKind>& info) {
  switch (info.param) {
    case DeviceKind::kCpu:
      return "Cpu";
    case DeviceKind::kCpuAsync:
      return "CpuAsync";
    case DeviceKind::kCuda:
      return "Cuda";
    case DeviceKind::kCudaEmulated:
      return "CudaEmulated";
  }
  return "Unknown";
}

}  // namespace omni::testing
