// What the emulated GPU notices: each mistake is planted, and must be found.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "runtime/device/cuda_emulated/runtime.h"
#include "tests/runtime/device/cuda/mistakes.h"
#include "tests/runtime/device/cuda/on_device.h"

namespace omni::cuda {
namespace {

using ::omni::testing::CheckCuda;
using ::omni::testing::DeviceBytes;
using ::omni::testing::DeviceStream;

std::vector<float> Numbers(int n) {
  std::vector<float> numbers(n);
  for (int i = 0; i < n; ++i) numbers[i] = static_cast<float>(i + 1);
  return numbers;
}

enum class Outcome { kRight, kWrong, kRace };
Outcome Reverse(Mistake mistake, int n) {
  const uint64_t races = emulated::num_races;
  const DeviceStream stream;
  const std::vector<float> numbers = Numbers(n);
  const DeviceBytes data(n * sizeof(float));
  data.Upload(numbers.data(), stream);
  CheckCuda(RunReverse(mistake, reinterpret_cast<float*>(data.data()), n, stream.get()));
  std::vector<float> found(n);
  data.Download(found.data(), stream);
  if (emulated::num_races > races) return Outcome::kRace;
  for (int i = 0; i < n; ++i)
    if (found[i] != numbers[i / 128 * 128 + 127 - i % 128]) return Outcome::kWrong;
  return Outcome::kRight;
}

#if OMNI_TEST_RACES
constexpr Outcome kUnordered = Outcome::kRace;
#else
constexpr Outcome kUnordered = Outcome::kWrong;
#endif

TEST(EmulatorTest, ARightKernelIsRight) {
  EXPECT_EQ(Reverse(Mistake::kNone, 256), Outcome::kRight);
  EXPECT_EQ(Reverse(Mistake::kNone, 128 * 50), Outcome::kRight);
}

TEST(EmulatorTest, AMissingBarrierIsSeen) {
  EXPECT_EQ(Reverse(Mistake::kMissingBarrier, 256), kUnordered);
}
TEST(EmulatorTest, TwoBlocksThatWriteOnePlaceAreSeen) {
  EXPECT_EQ(Reverse(Mistake::kGridRace, 256), kUnordered);
}
TEST(EmulatorTest, SharedMemoryIsNotANumberUntilItIsSet) {
  EXPECT_EQ(Reverse(Mistake::kUnsetShared, 256), Outcome::kWrong);
}

TEST(EmulatorDeathTest, WhatAGpuWouldHangOnOrTrapEndsTheProgram) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(Reverse(Mistake::kMisaligned, 256), "misaligned address .block 0,0,0 thread 1.");
  EXPECT_DEATH(Reverse(Mistake::kDivergentBarrier, 256), "emulated GPU: ");
  EXPECT_DEATH(Reverse(Mistake::kTwoBarriers, 256),
               "threads of a block wait at different barriers");
  EXPECT_DEATH(Reverse(Mistake::kEarlyExit, 256), "a barrier that some threads of the block have");
  EXPECT_DEATH(Reverse(Mistake::kPartialWarp, 256), "emulated GPU: ");
}

TEST(EmulatorDeathTest, TheHostCannotTouchDeviceMemory) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  if (!emulated::ProtectsMemory()) GTEST_SKIP() << "this processor has no protection keys";
  EXPECT_DEATH(
      {
        const DeviceBytes data(64);
        data.data()[0] = std::byte{1};
      },
      "");
}

TEST(EmulatorDeathTest, TheDefaultStreamIsRefused) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        const DeviceBytes data(64);
        cudaMemsetAsync(data.data(), 0, 64, nullptr);
      },
      "the default stream is not emulated");
}

TEST(EmulatorDeathTest, CopiesStayInsideTheirAllocation) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        const DeviceStream stream;
        const DeviceBytes data(64);
        cudaMemsetAsync(data.data() + 32, 0, 64, stream.get());
      },
      "an access beyond a device allocation");
}

TEST(EmulatorTest, LaunchesBeyondTheLimitsAreErrors) {
  const DeviceStream stream;
  EXPECT_EQ(emulated::LaunchGrid(dim3(1), dim3(2048), 0, stream.get(), nullptr, [] {}),
            cudaErrorInvalidConfiguration);
  EXPECT_EQ(emulated::LaunchGrid(dim3(1, 70000), dim3(32), 0, stream.get(), nullptr, [] {}),
            cudaErrorInvalidConfiguration);
  EXPECT_EQ(emulated::LaunchGrid(dim3(1), dim3(32), 60 << 10, stream.get(), nullptr, [] {}),
            cudaErrorInvalidValue);
}

TEST(EmulatorTest, FreshMemoryIsNotANumberAndWhatIsKeptIsCounted) {
  const DeviceStream stream;
  {
    const DeviceBytes data(64);
    EXPECT_EQ(emulated::BytesAllocated(), 64u);
    float found[16];
    data.Download(found, stream);
    for (const float x : found) EXPECT_TRUE(std::isnan(x));
  }
  EXPECT_EQ(emulated::BytesAllocated(), 0u);
}

// One stream writes what another reads, with the event in between and without.
Outcome TwoStreams(bool with_event) {
  const uint64_t races = emulated::num_races;
  const DeviceStream one, other;
  cudaEvent_t event;
  CheckCuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  {
    const DeviceBytes from(4096), to(4096);
    CheckCuda(cudaMemsetAsync(from.data(), 1, 4096, one.get()));
    CheckCuda(cudaEventRecord(event, one.get()));
    if (with_event) CheckCuda(cudaStreamWaitEvent(other.get(), event, 0));
    CheckCuda(cudaMemcpyAsync(to.data(), from.data(), 4096, cudaMemcpyDeviceToDevice, other.get()));
    other.Synchronize();
    one.Synchronize();
  }
  CheckCuda(cudaEventDestroy(event));
  return emulated::num_races > races ? Outcome::kRace : Outcome::kRight;
}

TEST(EmulatorTest, StreamsAreOrderedByEventsAlone) {
  EXPECT_EQ(TwoStreams(true), Outcome::kRight);
#if OMNI_TEST_RACES
  EXPECT_EQ(TwoStreams(false), Outcome::kRace);
#endif
}

}  // namespace
}  // namespace omni::cuda
