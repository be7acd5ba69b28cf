// Calls on tensors that the engines can't reach, the emulated GPU's: staged over host memory, and
// over NCCL (the emulated GPU's own, for ranks that are threads).
#include <gtest/gtest.h>

#include <latch>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/comm/host_staged.h"
#include "runtime/comm/nccl_communicator.h"
#include "runtime/device/args/elementwise.h"
#include "tests/support/run_ranks.h"
#include "tests/support/test_device.h"

namespace omni {
namespace {

using test::RunRanks;
using testing::TestDevice;

constexpr int32_t kRanks = 3;

struct Way {
  const char* engine;
  bool over_nccl;
};

class Rank {
 public:
  Rank(Communicator& world, bool over_nccl) {
    if (over_nccl) {
      auto nccl = ConnectNccl(&world, &device_.device(), {});
      OMNI_CHECK_OK(nccl.status());
      comm_ = *std::move(nccl);
    } else {
      comm_ = StageOnHost(&world, &device_.device());
    }
    comm_->SetInputStream(&device_.stream());
  }
  ~Rank() { comm_->SetInputStream(nullptr); }

  Communicator& comm() { return *comm_; }
  Stream& stream() { return device_.stream(); }
  // `count` elements, first, first + 1, ...
  TensorView Count(int64_t count, float first) {
    std::vector<float> values(count);
    std::iota(values.begin(), values.end(), first);
    return device_.Upload<float>(values, {count});
  }
  TensorView Room(int64_t count) { return Count(count, -1000.f); }
  std::vector<float> Read(const TensorView& view) { return device_.Read<float>(view); }
  // On the stream, before what comes next.
  void Double(const TensorView& view) {
    ExecContext ctx = device_.ctx();
    Launch(ctx, OpId::kScale, DType::kFloat32, ScaleArgs{view, 2.0});
  }

 private:
  TestDevice device_{DeviceKind::kCudaEmulated, {.reserved_bytes = 64 << 20, .num_threads = 1}};
  std::unique_ptr<Communicator> comm_;
};

class GpuCommTest : public ::testing::TestWithParam<Way> {
 protected:
  void SetUp() override {
    if (!testing::HasEmulatedGpu()) GTEST_SKIP() << "there is no emulated GPU in this build";
  }
  void Run(const std::function<void(Rank& rank, int32_t index)>& body) {
    const absl::Status status =
        RunRanks(kRanks, GetParam().engine, [&](Communicator& world, int32_t index) {
          Rank rank(world, GetParam().over_nccl);
          body(rank, index);
          return world.status();
        });
    EXPECT_TRUE(status.ok()) << status;
  }
};
INSTANTIATE_TEST_SUITE_P(Ways, GpuCommTest,
                         ::testing::Values(Way{"shm", false}, Way{"tcp", false}, Way{"shm", true},
                                           Way{"tcp", true}),
                         [](const auto& info) {
                           return absl::StrCat(info.param.over_nccl ? "nccl_" : "staged_",
                                               info.param.engine);
                         });

// Kernels before and after a call are ordered with it by the stream alone.
TEST_P(GpuCommTest, AllReduceBetweenKernels) {
  Run([](Rank& rank, int32_t index) {
    const TensorView data = rank.Count(5, static_cast<float>(index));
    rank.Double(data);
    rank.comm().AllReduce(data, ReduceOp::kSum)->Wait(rank.stream());
    rank.Double(data);
    EXPECT_EQ(rank.Read(data), (std::vector<float>{12, 24, 36, 48, 60}));
    ASSERT_TRUE(rank.comm().AllReduce(data, ReduceOp::kMax)->WaitHost(absl::Minutes(1)).ok());
    EXPECT_EQ(rank.Read(data), (std::vector<float>{12, 24, 36, 48, 60}));
  });
}

TEST_P(GpuCommTest, UnevenShards) {
  const std::vector<int64_t> counts = {2, 0, 3};
  Run([&](Rank& rank, int32_t index) {
    const TensorView whole = rank.Count(5, static_cast<float>(10 * index));
    const TensorView part = rank.Room(counts[index]);
    rank.comm().ReduceScatter(whole, part, counts, ReduceOp::kSum)->Wait(rank.stream());
    const TensorView again = rank.Room(5);
    rank.comm().AllGather(part, again, counts)->Wait(rank.stream());
    EXPECT_EQ(rank.Read(again), (std::vector<float>{30, 33, 36, 39, 42}));
    // In its own place.
    const TensorView own = whole.Rows(index == 0 ? 0 : 2, counts[index]);
    rank.comm().AllGather(own, whole, counts)->Wait(rank.stream());
    EXPECT_EQ(rank.Read(whole), (std::vector<float>{0, 1, 22, 23, 24}));
  });
}

TEST_P(GpuCommTest, AllToAllAndBroadcast) {
  Run([](Rank& rank, int32_t index) {
    // Rank r sends r + 1 elements to each.
    const std::vector<int64_t> sent(kRanks, index + 1), received = {1, 2, 3};
    const TensorView from = rank.Count((index + 1) * kRanks, static_cast<float>(100 * index));
    const TensorView to = rank.Room(6);
    rank.comm().AllToAll(from, sent, to, received)->Wait(rank.stream());
    const auto at = static_cast<float>(index);
    EXPECT_EQ(rank.Read(to), (std::vector<float>{at, 100 + 2 * at, 101 + 2 * at, 200 + 3 * at,
                                                 201 + 3 * at, 202 + 3 * at}));
    const TensorView told = rank.Count(4, static_cast<float>(10 * index));
    rank.comm().Broadcast(told, 1)->Wait(rank.stream());
    EXPECT_EQ(rank.Read(told), (std::vector<float>{10, 11, 12, 13}));
  });
}

TEST_P(GpuCommTest, AGroupOfMessages) {
  Run([](Rank& rank, int32_t index) {
    Communicator& comm = rank.comm();
    const int32_t next = (index + 1) % kRanks, last = (index + kRanks - 1) % kRanks;
    const TensorView sent = rank.Count(3, static_cast<float>(index)), received = rank.Room(3);
    const TensorView summed = rank.Count(2, 1.f);
    comm.GroupBegin();
    WorkPtr sum = comm.AllReduce(summed, ReduceOp::kSum);
    comm.Send(sent, next);
    WorkPtr early = comm.Recv(received, last);
    WorkPtr all = comm.GroupEnd();
    all->Wait(rank.stream());
    sum->Wait(rank.stream());
    early->Wait(rank.stream());  // copies nothing twice
    const auto first = static_cast<float>(last);
    EXPECT_EQ(rank.Read(received), (std::vector<float>{first, first + 1, first + 2}));
    EXPECT_EQ(rank.Read(summed), (std::vector<float>{3, 6}));
  });
}

TEST_P(GpuCommTest, PartsOfTheWorldAndHostMemory) {
  Run([](Rank& rank, int32_t index) {
    auto part = rank.comm().Split({0, 2}, "ends");
    ASSERT_TRUE(part.ok()) << part.status();
    if (index != 1) {
      const TensorView data = rank.Count(2, 5.f);
      (*part)->AllReduce(data, ReduceOp::kSum)->Wait(rank.stream());
      EXPECT_EQ(rank.Read(data), (std::vector<float>{10, 12}));
    } else {
      EXPECT_EQ(*part, nullptr);
    }
    std::vector<int64_t> host = {index};
    const TensorView view =
        TensorView::Dense(host.data(), DType::kInt64, DeviceKind::kCpu, {int64_t{1}});
    ASSERT_TRUE(rank.comm().AllReduce(view, ReduceOp::kSum)->WaitHost(absl::Minutes(1)).ok());
    EXPECT_EQ(host[0], 3);
  });
}

// Also one that only a stream waits for: it goes on, and the reason is there before results are
// used.
TEST_P(GpuCommTest, AFailureReachesWhoWaits) {
  for (const bool on_host : {true, false}) {
    std::latch connected(kRanks);
    const absl::Status status =
        RunRanks(kRanks, GetParam().engine, [&](Communicator& world, int32_t index) {
          Rank rank(world, GetParam().over_nccl);
          const TensorView data = rank.Count(2, 0.f);
          connected.arrive_and_wait();
          if (index == 1) {
            rank.comm().Abort("the test");
            return absl::OkStatus();
          }
          const WorkPtr work = rank.comm().AllReduce(data, ReduceOp::kSum);
          absl::Status seen;
          if (on_host) {
            seen = work->WaitHost(absl::Minutes(1));
          } else {
            work->Wait(rank.stream());
            EXPECT_TRUE(rank.stream().Synchronize().ok());
            seen = rank.comm().status();
          }
          EXPECT_EQ(seen.code(), absl::StatusCode::kAborted) << seen;
          EXPECT_NE(seen.message().find("the test"), absl::string_view::npos) << seen;
          return absl::OkStatus();
        });
    EXPECT_TRUE(status.ok()) << status;
  }
}

// A rank that never makes the call the others wait in.
TEST(NcclTest, ACallThatDoesNotEndIsGivenUp) {
  if (!testing::HasEmulatedGpu()) GTEST_SKIP() << "there is no emulated GPU in this build";
  const absl::Status status = RunRanks(2, "shm", [](Communicator& world, int32_t index) {
    TestDevice device(DeviceKind::kCudaEmulated, {.reserved_bytes = 64 << 20, .num_threads = 1});
    auto comm = ConnectNccl(&world, &device.device(), {.stall = absl::Milliseconds(300)});
    OMNI_CHECK_OK(comm.status());
    (*comm)->SetInputStream(&device.stream());
    if (index == 0) {
      const TensorView data = device.Upload<float>({1, 2}, {2});
      (*comm)->AllReduce(data, ReduceOp::kSum)->Wait(device.stream());
      EXPECT_TRUE(device.stream().Synchronize().ok());
      const std::string why((*comm)->status().message());
      EXPECT_NE(why.find("group=world all_reduce fp32[2] on rank 0 has not ended in 300ms"),
                std::string::npos)
          << why;
    } else {
      while ((*comm)->status().ok()) absl::SleepFor(absl::Milliseconds(5));
      EXPECT_NE(std::string((*comm)->status().message()).find("has not ended in 300ms"),
                std::string::npos);
    }
    (*comm)->SetInputStream(nullptr);
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
}

}  // namespace
}  // namespace omni
