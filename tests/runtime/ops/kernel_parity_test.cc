// Walks the kernel registry: every variant of every op that kernel_reference.cc knows, in every
// dtype, against plain loops in fp64; and its bits against its own on other numbers of threads.
// A new kernel needs no new test.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <set>
#include <thread>

#include "runtime/device/thread_pool.h"
#include "tests/runtime/ops/kernel_cases.h"

namespace omni {
namespace {

using ::omni::testing::KernelProblem;

// Runs the kernel with its scratch full of NaN.
int32_t RunKernel(const KernelEntry& entry, const void* args, int32_t num_threads) {
  ThreadPool pool(num_threads);
  const int64_t bytes = entry.scratch_bytes == nullptr ? 0 : entry.scratch_bytes(args);
  std::vector<std::byte> memory(bytes + 128, std::byte{0xff});
  auto* scratch =
      reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
  const KernelContext context{
      .stream = nullptr,
      .scratch = scratch,
      .scratch_bytes = bytes,
      .pool = &pool,
      .parallel_for = [](void* p, int64_t num_tasks, void (*body)(void*, int64_t), void* arg) {
        static_cast<ThreadPool*>(p)->ParallelFor(num_tasks, body, arg);
      }};
  const int32_t error = entry.run(args, &context);
  for (int64_t i = bytes; i < bytes + 64; ++i)  // stays within what it asked for
    if (scratch + i < memory.data() + memory.size()) {
      EXPECT_EQ(scratch[i], std::byte{0xff});
    }
  return error;
}

KernelRegistry CpuKernels() {
  KernelRegistry registry;
  RegisterCpuKernels(registry);
  return registry;
}

TEST(KernelParityTest, EveryVariantMatchesPlainLoops) {
  int num_cases = 0;
  ::omni::testing::ForEachCase(CpuKernels(),
                               [&](const KernelEntry& entry, const KernelProblem& problem) {
                                 ++num_cases;
                                 ASSERT_EQ(RunKernel(entry, problem.args(), 2), 0);
                                 ::omni::testing::ExpectResults(entry, problem);
                               });
  EXPECT_GT(num_cases, 400);
}

TEST(KernelParityTest, BitsDoNotDependOnThreads) {
  ::omni::testing::ForEachCase(CpuKernels(), [&](const KernelEntry& entry, KernelProblem& problem) {
    problem.Snapshot();
    std::vector<std::vector<std::byte>> once;
    for (const int32_t num_threads : {1, 2, 3, 4}) {
      problem.Restore();
      ASSERT_EQ(RunKernel(entry, problem.args(), num_threads), 0);
      for (size_t i = 0; i < problem.outputs().size(); ++i) {
        const TensorView& view = problem.outputs()[i].view;
        const auto* data = static_cast<const std::byte*>(view.data);
        if (num_threads == 1)
          once.emplace_back(data, data + view.num_bytes());
        else
          EXPECT_TRUE(std::equal(once[i].begin(), once[i].end(), data))
              << num_threads << " threads";
      }
    }
  });
}

// The BLAS hands out work buffers; two products starting together must not get the same one
// (runtime/device/cpu/gemm.cc). Without the lock there, about one in ten thousand did.
TEST(KernelParityTest, ProductsThatStartTogetherDoNotMeet) {
  KernelRegistry registry;
  RegisterCpuKernels(registry);
  KernelProblem problem[2] = {{DType::kFloat64, 1}, {DType::kFloat64, 2}};
  const KernelEntry* entry = nullptr;
  std::vector<double> expected[2];
  const auto run = [&](int i) {
    const KernelContext context{
        .stream = nullptr,
        .scratch = nullptr,
        .scratch_bytes = 0,
        .pool = nullptr,
        .parallel_for = [](void*, int64_t num_tasks, void (*body)(void*, int64_t), void* arg) {
          for (int64_t task = 0; task < num_tasks; ++task) body(arg, task);
        }};
    return entry->run(problem[i].args(), &context);
  };
  const auto result = [&](int i) {
    const TensorView& view = problem[i].outputs()[0].view;
    return absl::MakeConstSpan(view.ptr<double>(), view.num_elements());
  };
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(::omni::testing::MakeReference(OpId::kLinearForward, 40, 24, 0, problem[i]));
    entry =
        registry.Find(OpId::kLinearForward, DeviceKind::kCpu, DType::kFloat64, problem[i].args());
    ASSERT_EQ(run(i), 0);
    expected[i].assign(result(i).begin(), result(i).end());
  }
  std::atomic<int> round[2] = {0, 0};
  int wrong[2] = {0, 0};
  const auto compete = [&](int i) {
    for (int r = 1; r <= 50000; ++r) {
      round[i] = r;
      while (round[1 - i] < r) std::this_thread::yield();
      run(i);
      wrong[i] += result(i) != absl::MakeConstSpan(expected[i]) ? 1 : 0;
    }
  };
  std::thread other(compete, 1);
  compete(0);
  other.join();
  EXPECT_EQ(wrong[0] + wrong[1], 0);
}

// Every op that is not attention, RoPE, element-wise or the optimizer's has a reference here.
TEST(KernelParityTest, EveryOpHasAReference) {
  const std::set<OpId> elsewhere = {OpId::kRopeForward,
                                    OpId::kRopeBackward,
                                    OpId::kAttentionForward,
                                    OpId::kAttentionBackward,
                                    OpId::kAttentionPartialForward,
                                    OpId::kAttentionPartialBackward,
                                    OpId::kAttentionCached,
                                    OpId::kFill,
                                    OpId::kCopyCast,
                                    OpId::kAdd,
                                    OpId::kAxpy,
                                    OpId::kScale,
                                    OpId::kAdamW,
                                    OpId::kSumOfSquares,
                                    OpId::kMuonMomentum,
                                    OpId::kNewtonSchulz,
                                    OpId::kMuonApply};
  for (int32_t op = 0; op < static_cast<int32_t>(OpId::kNumOps); ++op) {
    KernelProblem problem(DType::kFloat32, 1);
    const bool here = ::omni::testing::MakeReference(static_cast<OpId>(op), 3, 5, 0, problem);
    EXPECT_NE(here, elsewhere.count(static_cast<OpId>(op)) > 0) << OpName(static_cast<OpId>(op));
  }
}

}  // namespace
}  // namespace omni
