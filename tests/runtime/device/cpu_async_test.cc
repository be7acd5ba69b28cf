// Streams, events, poisoning, and moving data in and out, on both CPU devices where it applies.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <thread>
#include <vector>

#include "runtime/device/args/elementwise.h"
#include "runtime/device/exec_context.h"
#include "tests/support/test_device.h"

namespace omni {
namespace {

using testing::TestDevice;

class StreamTest : public ::testing::TestWithParam<DeviceKind> {
 protected:
  TestDevice device_{GetParam()};
};

TEST_P(StreamTest, WorkRunsInOrder) {
  std::vector<int> order;  // touched by the stream only, until Synchronize
  for (int i = 0; i < 300; ++i) device_.stream().RunOnHost([&order, i] { order.push_back(i); });
  ASSERT_TRUE(device_.stream().Synchronize().ok());
  ASSERT_EQ(order.size(), 300u);
  for (int i = 0; i < 300; ++i) EXPECT_EQ(order[i], i);
}

TEST_P(StreamTest, AnEventOrdersTwoStreams) {
  const auto other = device_.device().NewStream();
  int64_t value = 0;  // handed to and fro; a missing wait is a race
  for (int i = 0; i < 100; ++i) {
    device_.stream().RunOnHost([&value] { value += 1; });
    other->Wait(device_.stream().Record());
    other->RunOnHost([&value] { value *= 2; });
    device_.stream().Wait(other->Record());
    device_.stream().RunOnHost([&value] { value %= 1000003; });
  }
  ASSERT_TRUE(device_.stream().Synchronize().ok());
  int64_t expected = 0;
  for (int i = 0; i < 100; ++i) expected = (expected + 1) * 2 % 1000003;
  EXPECT_EQ(value, expected);
}

TEST_P(StreamTest, AnEventMayBeAwaitedByManyAndLate) {
  const auto event = device_.stream().Record();
  ASSERT_TRUE(device_.stream().Synchronize().ok());
  const auto a = device_.device().NewStream(), b = device_.device().NewStream();
  a->Wait(event);
  b->Wait(event);
  EXPECT_TRUE(a->Synchronize().ok());
  EXPECT_TRUE(b->Synchronize().ok());
}

TEST_P(StreamTest, AStreamEndsWithItsWorkDone) {
  int count = 0;
  {
    const auto other = device_.device().NewStream();
    for (int i = 0; i < 50; ++i) other->RunOnHost([&count] { ++count; });
  }
  EXPECT_EQ(count, 50);
}

TEST_P(StreamTest, UploadCopiesBeforeItReturns) {
  ExecContext ctx = device_.ctx();
  std::vector<float> host = {1, 2, 3};
  const TensorView view = ctx.New(DType::kFloat32, {3});
  Upload(ctx, host.data(), 12, view);
  host = {7, 8, 9};
  EXPECT_EQ(device_.Read<float>(view), (std::vector<float>{1, 2, 3}));
}

TEST_P(StreamTest, StridedViewsAreUploadedAndRead) {
  const TensorView wide = device_.Upload<int32_t>({0, 1, 2, 3, 4, 5, 6, 7}, {2, 4});
  const TensorView middle = wide.Columns(1, 2);
  EXPECT_EQ(device_.Read<int32_t>(middle), (std::vector<int32_t>{1, 2, 5, 6}));
  ExecContext ctx = device_.ctx();
  const std::vector<int32_t> fresh = {10, 20, 30, 40};
  Upload(ctx, fresh.data(), 16, middle);
  EXPECT_EQ(device_.Read<int32_t>(wide), (std::vector<int32_t>{0, 10, 20, 3, 4, 30, 40, 7}));
  EXPECT_EQ(device_.Read<int32_t>(wide.Rows(1, 0)), std::vector<int32_t>{});
}

TEST_P(StreamTest, AKernelSeesItsArgumentsAsTheyWereAtTheLaunch) {
  ExecContext ctx = device_.ctx();
  const TensorView view = ctx.New(DType::kFloat64, {1000});
  FillArgs args{view, 1.0};
  for (int i = 1; i <= 5; ++i) {
    args.value = i;
    Launch(ctx, OpId::kFill, DType::kFloat64, args);
  }
  args.value = -1.0;
  EXPECT_EQ(device_.Read<double>(view), std::vector<double>(1000, 5.0));
}

// Pages go round between tensors while kernels still wait in the queue.
TEST_P(StreamTest, MemoryIsReusedInStreamOrder) {
  const TensorView total = device_.Upload<double>(std::vector<double>(512, 0.0), {512});
  for (int i = 1; i <= 200; ++i) {
    TensorArena temporary(device_.device());
    ExecContext ctx = device_.ctx(temporary);
    const TensorView term = ctx.New(DType::kFloat64, {512});
    Launch(ctx, OpId::kFill, DType::kFloat64, FillArgs{term, static_cast<double>(i)});
    Launch(ctx, OpId::kAxpy, DType::kFloat64, AxpyArgs{term, total, 1.0});
  }
  EXPECT_EQ(device_.Read<double>(total), std::vector<double>(512, 20100.0));
}

INSTANTIATE_TEST_SUITE_P(Devices, StreamTest, testing::TestDevices(), testing::DeviceName);

TEST(CpuAsyncTest, FreedPagesAreOverwritten) {
  TestDevice device(DeviceKind::kCpuAsync);
  TensorView freed;
  {
    TensorArena temporary(device.device());
    ExecContext ctx = device.ctx(temporary);
    freed = UploadNew<float>(ctx, std::vector<float>(3000, 1.0f), {3000});
    EXPECT_EQ(device.Read<float>(freed), std::vector<float>(3000, 1.0f));
  }
  for (const float value : device.Read<float>(freed)) ASSERT_TRUE(std::isnan(value));
  freed.dtype = DType::kInt32;
  EXPECT_EQ(device.Read<int32_t>(freed), std::vector<int32_t>(3000, -1));
}

// The overwriting waits for kernels enqueued before the pages were freed, and hits those after.
TEST(CpuAsyncTest, PoisonComesInStreamOrder) {
  TestDevice device(DeviceKind::kCpuAsync);
  ExecContext ctx = device.ctx();
  const TensorView before = ctx.New(DType::kFloat64, {600}),
                   after = ctx.New(DType::kFloat64, {600});
  {
    TensorArena temporary(device.device());
    ExecContext inner = device.ctx(temporary);
    const TensorView source = UploadNew<double>(inner, std::vector<double>(600, 4.0), {600});
    Launch(inner, OpId::kCopyCast, DType::kFloat64, CopyCastArgs{source, before});
    temporary.Release();
    Launch(inner, OpId::kCopyCast, DType::kFloat64, CopyCastArgs{source, after});
  }
  EXPECT_EQ(device.Read<double>(before), std::vector<double>(600, 4.0));
  for (const double value : device.Read<double>(after)) ASSERT_TRUE(std::isnan(value));
}

// Marks its scratch, dawdles, and says in `out` whether the mark is still there.
struct MarkArgs {
  TensorView out;
};
int32_t MarkScratch(const void* raw, const KernelContext* context) {
  auto* scratch = static_cast<uint8_t*>(context->scratch);
  std::fill(scratch, scratch + context->scratch_bytes, uint8_t{7});
  std::this_thread::sleep_for(std::chrono::milliseconds(2));
  const bool intact = std::all_of(scratch, scratch + context->scratch_bytes,
                                  [](uint8_t byte) { return byte == 7; });
  static_cast<const MarkArgs*>(raw)->out.ptr<int32_t>()[0] = intact ? 1 : 0;
  return 0;
}

// Scratch of a kernel on a second stream must not reach the first stream before it is done.
TEST(CpuAsyncTest, ScratchOnASecondStreamIsSafe) {
  KernelRegistry kernels;
  RegisterCpuKernels(kernels);
  kernels.Register({OpId::kScale, DeviceKind::kCpu, DType::kInt32, "mark", 0, MarkScratch, nullptr,
                    [](const void*) -> int64_t { return 2 * kPageBytes; }});
  auto device = *Device::Create(
      {.kind = DeviceKind::kCpuAsync, .reserved_bytes = 1 << 20, .kernels = &kernels});
  const auto first = device->NewStream(), second = device->NewStream();
  TensorArena arena(*device);
  ExecContext ctx{.device = *device, .stream = *first, .tape = nullptr, .arena = &arena};
  ExecContext on_second{.device = *device, .stream = *second, .tape = nullptr, .arena = &arena};
  const TensorView intact = ctx.New(DType::kInt32, {8});
  for (int i = 0; i < 8; ++i) {
    Launch(on_second, OpId::kScale, DType::kInt32, MarkArgs{intact.Rows(i, 1)});
    // Meanwhile the first stream takes pages and writes to them.
    TensorArena temporary(*device);
    ExecContext other{.device = *device, .stream = *first, .tape = nullptr, .arena = &temporary};
    const TensorView pages = other.New(DType::kFloat64, {2048});
    Launch(other, OpId::kFill, DType::kFloat64, FillArgs{pages, -1.0});
  }
  first->Wait(second->Record());
  EXPECT_EQ(HostRead<int32_t>(ctx, intact), std::vector<int32_t>(8, 1));
}

TEST(CpuAsyncTest, TheMemoryStreamIsTheOldest) {
  TestDevice cpu(DeviceKind::kCpu), async(DeviceKind::kCpuAsync);
  EXPECT_EQ(cpu.device().memory_stream(), nullptr);
  const auto second = async.device().NewStream();
  EXPECT_EQ(async.device().memory_stream(), &async.stream());
}

TEST(CpuAsyncTest, AStreamOutlivingItsDeviceIsCaught) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        KernelRegistry kernels;
        auto device = Device::Create(
            {.kind = DeviceKind::kCpuAsync, .reserved_bytes = 1 << 20, .kernels = &kernels});
        auto stream = (*device)->NewStream();
        device->reset();
      },
      "CHECK failed");
}

TEST(DeviceTest, CudaIsNotThereWithoutItsPlugin) {
  KernelRegistry kernels;
  const auto device = Device::Create({.kind = DeviceKind::kCuda, .kernels = &kernels});
  EXPECT_EQ(device.status().code(), absl::StatusCode::kFailedPrecondition) << device.status();
}

}  // namespace
}  // namespace omni
