// What must hold around the calls of both engines: the same bits everywhere and every time,
// inputs made on streams, errors that name rank and call, nothing left behind.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <future>
#include <mutex>
#include <set>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "runtime/base/status.h"
#include "runtime/comm/communicator.h"
#include "runtime/comm/shm.h"
#include "runtime/comm/tcp.h"
#include "tests/support/run_ranks.h"
#include "tests/support/test_device.h"

namespace omni {
namespace {

using test::RunRanks;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr absl::Duration kPatience = absl::Seconds(60);

template <typename T>
TensorView ViewOf(std::vector<T>& data) {
  return TensorView::Dense(data.data(), DTypeOf<T>::value, DeviceKind::kCpu,
                           {static_cast<int64_t>(data.size())});
}

std::string Text(const absl::Status& status) { return status.ToString(); }

// Runs fn on all ranks as threads; every rank's result. All of them answer when asked, if slowly.
std::vector<absl::Status> Results(int32_t size, const char* engine, const test::RankFn& fn,
                                  CommOptions options = {}) {
  options.query_deadline = kPatience;
  std::vector<absl::Status> results(size);
  std::mutex mutex;
  const absl::Status run = RunRanks(
      size, engine,
      [&](Communicator& comm, int32_t rank) {
        absl::Status status = fn(comm, rank);
        const std::lock_guard<std::mutex> lock(mutex);
        results[rank] = std::move(status);
        return absl::OkStatus();
      },
      options);
  EXPECT_EQ(run, absl::OkStatus());
  return results;
}

class EngineTest : public ::testing::TestWithParam<const char*> {};

// Sums of these have other bits in another order.
std::vector<float> Awkward(int32_t rank, int64_t count) {
  std::vector<float> values(count);
  for (int64_t i = 0; i < count; ++i) {
    values[i] = 1.0f / static_cast<float>(1 + (i * 7919 + rank * 104729) % 1000003);
  }
  return values;
}

TEST(EnginesTest, AgreeBitForBitAndRepeatThemselves) {
  std::vector<std::vector<float>> results;
  std::mutex mutex;
  int32_t run_index = 0;
  for (const char* engine : {"shm", "tcp", "shm", "tcp"}) {
    const auto run = [&](Communicator& comm, int32_t rank) -> absl::Status {
      std::vector<float> data = Awkward(rank, 300007);
      absl::SleepFor(absl::Milliseconds((rank * 7 + run_index * 5) % 11));  // another order
      OMNI_RETURN_IF_ERROR(comm.AllReduce(ViewOf(data), ReduceOp::kSum)->WaitHost(kPatience));
      const std::lock_guard<std::mutex> lock(mutex);
      results.push_back(std::move(data));
      return absl::OkStatus();
    };
    ASSERT_EQ(RunRanks(4, engine, run), absl::OkStatus());
    ++run_index;
  }
  ASSERT_EQ(results.size(), 16u);
  for (size_t i = 1; i < results.size(); ++i) EXPECT_TRUE(results[i] == results[0]) << i;
}

TEST_P(EngineTest, CallsFollowTheStreamThatMakesTheirInput) {
  const auto check = [](Communicator& comm, int32_t rank) -> absl::Status {
    testing::TestDevice device(DeviceKind::kCpuAsync,
                               {.delay_seed = static_cast<uint64_t>(rank + 1)});
    Stream& stream = device.stream();
    comm.SetInputStream(&stream);
    std::vector<float> data(2000, -1), doubled(2000, -1);
    for (int32_t round = 0; round < 20; ++round) {
      stream.RunOnHost([&] { data.assign(2000, static_cast<float>(rank + round)); });
      WorkPtr work = comm.AllReduce(ViewOf(data), ReduceOp::kSum);
      work->Wait(stream);
      stream.RunOnHost([&] {
        for (size_t i = 0; i < data.size(); ++i) doubled[i] = 2 * data[i];
      });
      OMNI_RETURN_IF_ERROR(stream.Synchronize());
      const float expected = 2.0f * static_cast<float>(3 + 3 * round);
      for (const float value : doubled) {
        if (value != expected) {
          return absl::InternalError(absl::StrCat(value, " is not ", expected));
        }
      }
    }
    comm.SetInputStream(nullptr);
    return comm.status();
  };
  EXPECT_EQ(RunRanks(3, GetParam(), check), absl::OkStatus());
}

TEST_P(EngineTest, MessagesKeepTheirOrder) {
  const auto check = [](Communicator& comm, int32_t rank) -> absl::Status {
    std::vector<std::vector<int32_t>> data(100, std::vector<int32_t>(1 + rank));
    std::vector<WorkPtr> works;
    for (int32_t i = 0; i < 100; ++i) {
      data[i].assign(i * 10, rank == 0 ? i : -1);
      works.push_back(rank == 0 ? comm.Send(ViewOf(data[i]), 1) : comm.Recv(ViewOf(data[i]), 0));
    }
    OMNI_RETURN_IF_ERROR(works.back()->WaitHost(kPatience));
    for (int32_t i = 0; i < 100; ++i) {
      if (data[i] != std::vector<int32_t>(i * 10, i)) return absl::InternalError("order");
    }
    return absl::OkStatus();
  };
  EXPECT_EQ(RunRanks(2, GetParam(), check), absl::OkStatus());
}

TEST_P(EngineTest, WhoStaysAwayIsNamedAtTheDeadline) {
  std::promise<void> others_are_done;
  std::mutex mutex;
  int32_t done = 0;
  const auto results =
      Results(4, GetParam(),
              [&](Communicator& comm, int32_t rank) -> absl::Status {
                OMNI_RETURN_IF_ERROR(comm.Barrier()->WaitHost(kPatience));
                std::vector<float> data(262144);
                if (rank == 2) {  // too late: it hears of it now, if it has not yet
                  others_are_done.get_future().wait();
                  return comm.AllReduce(ViewOf(data), ReduceOp::kSum)->WaitHost(kPatience);
                }
                const absl::Status status =
                    comm.AllReduce(ViewOf(data), ReduceOp::kSum)->WaitHost(kPatience);
                const std::lock_guard<std::mutex> lock(mutex);
                if (++done == 3) others_are_done.set_value();
                return status;
              },
              {.deadline = absl::Seconds(2)});
  for (int32_t rank = 0; rank < 4; ++rank) {
    EXPECT_EQ(results[rank].code(), absl::StatusCode::kDeadlineExceeded) << "rank " << rank;
    EXPECT_THAT(Text(results[rank]), HasSubstr("rank 2 is behind"));
    EXPECT_THAT(Text(results[rank]), HasSubstr("#2 group=world all_reduce sum fp32 1.0 MiB"));
  }
}

// Rank 0 waits for 1, which waits for 2, which does nothing: not 1 is to blame.
TEST_P(EngineTest, TheEndOfAChainOfWaitersIsNamed) {
  std::promise<void> over;
  const auto results = Results(3, GetParam(),
                               [&](Communicator& comm, int32_t rank) -> absl::Status {
                                 if (rank == 2) {
                                   over.get_future().wait();
                                   return absl::OkStatus();
                                 }
                                 std::vector<float> data(10);
                                 const absl::Status status =
                                     comm.Recv(ViewOf(data), rank + 1)->WaitHost(kPatience);
                                 if (rank == 0) over.set_value();
                                 return status;
                               },
                               {.deadline = absl::Seconds(2)});
  EXPECT_THAT(Text(results[0]), HasSubstr("rank 2 is behind"));
  EXPECT_THAT(Text(results[1]), HasSubstr("rank 2 is behind"));
}

TEST_P(EngineTest, AWaitersOwnDeadlineHoldsToo) {
  std::promise<void> over;
  const auto results = Results(2, GetParam(), [&](Communicator& comm, int32_t rank) {
    if (rank == 1) {
      over.get_future().wait();
      return comm.Barrier()->WaitHost(kPatience);
    }
    const absl::Status status = comm.Barrier()->WaitHost(absl::Milliseconds(50));
    // Dead from here on, at once.
    EXPECT_EQ(comm.Barrier()->WaitHost(kPatience), status);
    over.set_value();
    return status;
  });
  EXPECT_EQ(results[0].code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(Text(results[0]), HasSubstr("rank 1 is behind: #1 group=world barrier"));
}

// The thread that runs a call and the one that waits for it may give up at the same moment, while
// they answer others who do.
TEST_P(EngineTest, WhoeverGivesUpFirstNamesTheRank) {
  constexpr absl::Duration kDeadline = absl::Milliseconds(60);
  constexpr int32_t kSize = 4, kAbsent = 3;
  for (int32_t round = 0; round < 40; ++round) {
    std::promise<void> over;
    std::atomic<int32_t> waiting = kSize - 1;
    const auto results =
        Results(kSize, GetParam(),
                [&](Communicator& comm, int32_t rank) -> absl::Status {
                  if (rank == kAbsent) {
                    over.get_future().wait();
                    return absl::OkStatus();
                  }
                  std::vector<float> data(10);
                  const WorkPtr receive = comm.Recv(ViewOf(data), kAbsent);
                  absl::SleepFor(absl::Milliseconds(2));  // the group's thread takes it
                  const absl::Status status = receive->WaitHost(kDeadline);
                  if (--waiting == 0) over.set_value();
                  return status;
                },
                {.deadline = kDeadline});
    for (int32_t rank = 0; rank < kAbsent; ++rank) {
      ASSERT_THAT(Text(results[rank]), HasSubstr("rank 3 is behind: #1 group=world recv")) << round;
    }
  }
}

TEST_P(EngineTest, ACallWithoutItsInputIsNamed) {
  std::promise<void> over;
  auto is_over = over.get_future().share();
  const auto results = Results(2, GetParam(), [&](Communicator& comm, int32_t rank) {
    testing::TestDevice device(DeviceKind::kCpuAsync);
    comm.SetInputStream(&device.stream());
    std::vector<float> data(10), more(20);
    absl::Status status;
    if (rank == 0) {
      device.stream().RunOnHost([&] { is_over.wait(); });
      const WorkPtr first = comm.Send(ViewOf(data), 1);
      status = comm.Send(ViewOf(more), 1)->WaitHost(absl::Milliseconds(60));
      over.set_value();
    } else {
      is_over.wait();
    }
    EXPECT_EQ(device.stream().Synchronize(), absl::OkStatus());
    comm.SetInputStream(nullptr);
    return status;
  });
  EXPECT_THAT(Text(results[0]), HasSubstr("rank 0 is behind: #2 group=world send to 1 fp32 80 B"));
  EXPECT_THAT(Text(results[0]),
              HasSubstr("rank 0 has not made the input of #1 group=world send to 1 fp32 40 B"));
}

TEST_P(EngineTest, AnAbortReachesEverybody) {
  const auto results = Results(4, GetParam(), [&](Communicator& comm, int32_t rank) {
    std::vector<float> data(100000);
    (void)comm.AllReduce(ViewOf(data), ReduceOp::kSum)->WaitHost(kPatience);
    if (rank == 3) {
      comm.Abort("the optimizer is on fire");
      return comm.status();
    }
    return comm.AllReduce(ViewOf(data), ReduceOp::kSum)->WaitHost(kPatience);
  });
  for (const absl::Status& status : results) {
    EXPECT_EQ(status, absl::AbortedError("the optimizer is on fire"));
  }
}

// Whoever waits in another group of the job need not wait for its own deadline.
TEST_P(EngineTest, AFailureEndsAllGroupsOfTheJob) {
  const auto results = Results(4, GetParam(), [](Communicator& comm, int32_t rank) -> absl::Status {
    OMNI_ASSIGN_OR_RETURN(auto low, comm.Split({0, 1}, "low"));
    OMNI_ASSIGN_OR_RETURN(auto high, comm.Split({2, 3}, "high"));
    OMNI_ASSIGN_OR_RETURN(auto late, comm.Split({0, 1, 2, 3}, "late"));
    // Else it may meet a rank that is still making the last group.
    OMNI_RETURN_IF_ERROR(comm.Barrier()->WaitHost(kPatience));
    if (rank == 3) {
      high->Abort("enough");
      EXPECT_EQ(comm.status(), absl::AbortedError("enough"));
      return late->Barrier()->WaitHost(kPatience);  // and for what comes later
    }
    std::vector<float> data(10);
    Communicator& group = rank == 2 ? *high : *low;
    return rank == 1 ? comm.Barrier()->WaitHost(kPatience)
                     : group.Recv(ViewOf(data), 1)->WaitHost(kPatience);
  });
  for (const absl::Status& status : results) EXPECT_EQ(status, absl::AbortedError("enough"));
}

// 0 waits in the group "a" for 1, which waits in the group "b" for 2, which does something else.
TEST_P(EngineTest, WaitsAreFollowedAcrossGroups) {
  std::promise<void> over;
  std::vector<std::vector<std::string>> reports(3);
  const auto results = Results(3, GetParam(),
                               [&](Communicator& comm, int32_t rank) -> absl::Status {
                                 OMNI_ASSIGN_OR_RETURN(auto a, comm.Split({1, 0}, "a"));
                                 OMNI_ASSIGN_OR_RETURN(auto b, comm.Split({1, 2}, "b"));
                                 comm.SetActivity(absl::StrCat("forward chunk ", rank));
                                 std::vector<float> data(10);
                                 absl::Status status;
                                 if (rank == 0) {
                                   status = a->Recv(ViewOf(data), 0)->WaitHost(kPatience);
                                   over.set_value();
                                 } else if (rank == 1) {
                                   status = b->Recv(ViewOf(data), 1)->WaitHost(kPatience);
                                 } else {
                                   over.get_future().wait();
                                 }
                                 reports[rank] = comm.FaultReport();
                                 return status;
                               },
                               {.deadline = absl::Seconds(2)});
  for (const int32_t rank : {0, 1}) {
    EXPECT_EQ(results[rank].code(), absl::StatusCode::kDeadlineExceeded);
    EXPECT_THAT(Text(results[rank]), HasSubstr("rank 2 is behind: #1 group=world/"));
    EXPECT_THAT(Text(results[rank]),
                HasSubstr("; rank 2 is at \"forward chunk 2\", unchanged for "));
    EXPECT_EQ(reports[rank].front(), results[rank].message());
    const std::string report = absl::StrJoin(reports[rank], "\n");
    EXPECT_THAT(report, HasSubstr(absl::StrCat("this rank, ", rank, ", is at \"forward chunk ",
                                               rank, "\" since ")));
    EXPECT_THAT(report, HasSubstr("#1 group=world split done in "));
    EXPECT_THAT(report,
                HasSubstr(rank == 0 ? "#1 group=world/a{1,0} recv from 1 fp32 40 B failed"
                                    : "#1 group=world/b{1,2} recv from 2 fp32 40 B failed"));
    EXPECT_THAT(report, HasSubstr(rank == 0 ? ", waiting for rank 1" : ", waiting for rank 2"));
  }
}

TEST_P(EngineTest, TheReportKeepsOldCallsThatHaveNotEnded) {
  const auto check = [](Communicator& comm, int32_t rank) -> absl::Status {
    OMNI_ASSIGN_OR_RETURN(auto group, comm.Split({0, 1}, "group"));
    std::vector<float> data(10);
    std::vector<WorkPtr> posted;
    for (int i = 0; i < 40; ++i) {
      if (rank == 0) posted.push_back(group->Recv(ViewOf(data), 1));
      const absl::Status status = comm.Barrier()->WaitHost(kPatience);
      if (rank == 0) OMNI_RETURN_IF_ERROR(status);
    }
    if (rank == 1) return absl::OkStatus();  // the other may have given up during its last barrier
    comm.Abort("enough");
    const std::string report = absl::StrJoin(comm.FaultReport(), "\n");
    EXPECT_THAT(report, HasSubstr("#41 group=world barrier done in "));
    EXPECT_THAT(report, Not(HasSubstr("#2 group=world barrier")));
    // "failed", or "pending" until the thread that runs it has seen the failure.
    EXPECT_THAT(report, HasSubstr("#1 group=world/group recv from 1 fp32 40 B "));
    EXPECT_THAT(report, HasSubstr("#40 group=world/group recv from 1 fp32 40 B failed after "));
    return absl::OkStatus();
  };
  EXPECT_EQ(RunRanks(2, GetParam(), check), absl::OkStatus());
}

// What is posted early may take longer than the deadline.
TEST_P(EngineTest, ACallNobodyWaitsForHasNoDeadline) {
  constexpr absl::Duration kShort = absl::Seconds(1);
  std::promise<void> go, sent;
  const auto results =
      Results(2, GetParam(),
              [&](Communicator& comm, int32_t rank) -> absl::Status {
                std::vector<float> data(10, static_cast<float>(rank));
                if (rank == 1) {
                  go.get_future().wait();
                  const absl::Status status = comm.Send(ViewOf(data), 0)->WaitHost(kPatience);
                  sent.set_value();
                  return status;
                }
                WorkPtr early = comm.Recv(ViewOf(data), 1);
                absl::SleepFor(1.5 * kShort);
                go.set_value();
                sent.get_future().wait();
                OMNI_RETURN_IF_ERROR(early->WaitHost(kPatience));
                return data.back() == 1 ? absl::OkStatus() : absl::InternalError("data");
              },
              {.deadline = kShort});
  for (const absl::Status& status : results) EXPECT_EQ(status, absl::OkStatus());
}

TEST_P(EngineTest, WhoLeavesIsNamed) {
  const auto results = Results(3, GetParam(), [&](Communicator& comm, int32_t rank) {
    const absl::Status first = comm.Barrier()->WaitHost(kPatience);
    if (rank == 1) return first;
    return comm.Barrier()->WaitHost(kPatience);
  });
  EXPECT_EQ(results[1], absl::OkStatus());
  for (const int32_t rank : {0, 2}) {
    EXPECT_EQ(results[rank].code(), absl::StatusCode::kAborted);
    EXPECT_THAT(Text(results[rank]), HasSubstr("rank 1 left world during #2 group=world barrier"));
  }
}

// A rank that is through with its part may go while others still read what it sent.
TEST_P(EngineTest, LastWordsAreHeard) {
  const auto check = [](Communicator& comm, int32_t rank) -> absl::Status {
    std::vector<float> data(20000, rank == 0 ? 7.0f : 0.0f);
    WorkPtr work = comm.Broadcast(ViewOf(data), 0);
    if (rank != 0) absl::SleepFor(absl::Milliseconds(30));
    OMNI_RETURN_IF_ERROR(work->WaitHost(kPatience));
    return data.back() == 7 ? absl::OkStatus() : absl::InternalError("data");
  };
  for (int i = 0; i < 5; ++i) EXPECT_EQ(RunRanks(3, GetParam(), check), absl::OkStatus());
}

struct MismatchCase {
  const char* name;
  std::function<WorkPtr(Communicator&, TensorView small, TensorView large)> even, odd;
  const char* expected;
};

TEST_P(EngineTest, CallsThatDifferBetweenRanksAreFound) {
  const std::vector<MismatchCase> cases = {
      {"verb", [](auto& c, auto s, auto) { return c.AllReduce(s, ReduceOp::kSum); },
       [](auto& c, auto, auto) { return c.Barrier(); }, "makes barrier #1"},
      {"bytes", [](auto& c, auto s, auto) { return c.AllReduce(s, ReduceOp::kSum); },
       [](auto& c, auto, auto l) { return c.AllReduce(l, ReduceOp::kSum); },
       "all_reduce sum fp32 1.6 KiB"},
      {"op", [](auto& c, auto s, auto) { return c.AllReduce(s, ReduceOp::kSum); },
       [](auto& c, auto s, auto) { return c.AllReduce(s, ReduceOp::kMax); }, "all_reduce max fp32"},
      {"root", [](auto& c, auto s, auto) { return c.Broadcast(s, 0); },
       [](auto& c, auto, auto) { return c.Barrier(); }, "makes barrier #1"},
      {"dtype", [](auto& c, auto s, auto) { return c.AllReduce(s, ReduceOp::kSum); },
       [](auto& c, auto s, auto) {
         s.dtype = DType::kInt32;
         return c.AllReduce(s, ReduceOp::kSum);
       },
       "all_reduce sum int32"},
      {"message", [](auto& c, auto s, auto) { return c.Send(s, 1); },
       [](auto& c, auto, auto l) { return c.Recv(l, 0); }, "send/recv fp32"},
  };
  for (const MismatchCase& test : cases) {
    const auto results = Results(2, GetParam(), [&](Communicator& comm, int32_t rank) {
      std::vector<float> small(100), large(400);
      const auto& make = rank == 0 ? test.even : test.odd;
      absl::Status status = make(comm, ViewOf(small), ViewOf(large))->WaitHost(kPatience);
      // A sender is through before the receiver looks; it hears at its next call.
      if (status.ok()) status = comm.Barrier()->WaitHost(kPatience);
      return status;
    });
    for (const absl::Status& status : results) {
      EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << test.name << ": " << status;
      EXPECT_THAT(Text(status), HasSubstr("calls differ between ranks")) << test.name;
      EXPECT_THAT(Text(status), HasSubstr(test.expected)) << test.name;
    }
  }
}

TEST_P(EngineTest, SplitsThatDifferBetweenRanksAreFound) {
  const auto results = Results(3, GetParam(), [&](Communicator& comm, int32_t rank) {
    const std::vector<int32_t> ranks =
        rank == 2 ? std::vector<int32_t>{0, 2} : std::vector<int32_t>{0, 1};
    return comm.Split(ranks, "dp").status();
  });
  for (const absl::Status& status : results) {
    EXPECT_THAT(Text(status), HasSubstr("(other ranks or channel)"));
  }
}

TEST_P(EngineTest, RecentCallsTellWhatHappened) {
  const auto check = [](Communicator& comm, int32_t rank) -> absl::Status {
    std::vector<double> data(1 << 17);
    OMNI_RETURN_IF_ERROR(comm.AllReduce(ViewOf(data), ReduceOp::kSum)->WaitHost(kPatience));
    OMNI_RETURN_IF_ERROR(comm.Broadcast(ViewOf(data), 1)->WaitHost(kPatience));
    OMNI_RETURN_IF_ERROR(
        (rank == 0 ? comm.Send(ViewOf(data), 1) : comm.Recv(ViewOf(data), 0))->WaitHost(kPatience));
    const std::vector<std::string> lines = comm.RecentCalls();
    EXPECT_EQ(lines.size(), 3u);
    EXPECT_THAT(lines[0], HasSubstr("#1 group=world all_reduce sum fp64 1.0 MiB done in "));
    EXPECT_THAT(lines[1], HasSubstr("#2 group=world broadcast fp64 1.0 MiB root 1 done in "));
    EXPECT_THAT(lines[2], HasSubstr(rank == 0 ? "#3 group=world send to 1 fp64 1.0 MiB"
                                              : "#3 group=world recv from 0 fp64 1.0 MiB"));
    for (int i = 0; i < 40; ++i) OMNI_RETURN_IF_ERROR(comm.Barrier()->WaitHost(kPatience));
    EXPECT_EQ(comm.RecentCalls().size(), 32u);
    EXPECT_THAT(comm.RecentCalls().back(), HasSubstr("#43 group=world barrier done"));
    return absl::OkStatus();
  };
  EXPECT_EQ(RunRanks(2, GetParam(), check), absl::OkStatus());
}

// Ours: other programs of the host may have theirs.
std::set<std::string> SharedMemoryFiles() {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator("/dev/shm")) {
    std::string name = entry.path().filename();
    if (absl::StrContains(name, "omni")) names.insert(std::move(name));
  }
  return names;
}

TEST_P(EngineTest, NothingIsLeftBehind) {
  const int64_t fds_before = test::CountOpenFds();
  const std::set<std::string> files_before = SharedMemoryFiles();
  const auto check = [](Communicator& comm, int32_t rank) -> absl::Status {
    OMNI_ASSIGN_OR_RETURN(auto all, comm.Split({3, 2, 1, 0}, "all"));
    OMNI_ASSIGN_OR_RETURN(auto some, comm.Split({1, 2}, "some"));
    std::vector<float> data(50000);
    // Unfinished work, too, goes without a trace, whether this rank or its peer left first.
    std::vector<float> unused(10);
    WorkPtr pending = rank == 0 ? all->Recv(ViewOf(unused), 1) : nullptr;
    OMNI_RETURN_IF_ERROR(comm.AllReduce(ViewOf(data), ReduceOp::kSum)->WaitHost(kPatience));
    all.reset();
    if (pending && pending->WaitHost(kPatience).ok()) {
      return absl::InternalError("pending work of a communicator that is gone");
    }
    return absl::OkStatus();
  };
  for (int i = 0; i < 3; ++i) EXPECT_EQ(RunRanks(4, GetParam(), check), absl::OkStatus());
  EXPECT_EQ(test::CountOpenFds(), fds_before);
  EXPECT_EQ(SharedMemoryFiles(), files_before);
}

INSTANTIATE_TEST_SUITE_P(Engines, EngineTest, ::testing::Values("shm", "tcp"),
                         [](const auto& info) { return std::string(info.param); });

// Others may run this test at the same time.
std::string ShmName(const char* test) { return absl::StrCat("connect-test-", getpid(), "-", test); }

TEST(ConnectTest, AbsentRankIsNamed) {
  auto listener = TcpListener::Create("127.0.0.1");
  ASSERT_TRUE(listener.ok());
  const std::vector<std::string> addresses = {listener->address(), "127.0.0.1:1"};
  const auto waits =
      ConnectTcp(*std::move(listener), addresses, 0, {.connect_deadline = absl::Milliseconds(100)});
  EXPECT_EQ(waits.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(Text(waits.status()), HasSubstr("rank 1 (127.0.0.1:1) has not connected"));

  const auto calls =
      ConnectShm(ShmName("absent"), 1, 2, {.connect_deadline = absl::Milliseconds(100)});
  EXPECT_EQ(calls.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Text(calls.status()), HasSubstr("connecting to rank 0"));
}

// Both ranks of a world of two, made differently.
std::pair<absl::Status, absl::Status> ConnectTwo(const CommOptions& first,
                                                 const CommOptions& second) {
  auto listeners = std::pair(*TcpListener::Create("127.0.0.1"), *TcpListener::Create("127.0.0.1"));
  const std::vector<std::string> addresses = {listeners.first.address(),
                                              listeners.second.address()};
  auto other = std::async(std::launch::async, [&] {
    return ConnectTcp(std::move(listeners.second), addresses, 1, second).status();
  });
  const absl::Status status = ConnectTcp(std::move(listeners.first), addresses, 0, first).status();
  return {status, other.get()};
}

TEST(ConnectTest, OtherGenerationsAndJobsAreRefused) {
  const CommOptions base = {.connect_deadline = absl::Seconds(3), .generation = 4};
  CommOptions later = base, other_job = base;
  later.generation = 5;
  other_job.token = 99;
  const auto [first, second] = ConnectTwo(base, later);
  EXPECT_FALSE(first.ok());
  EXPECT_EQ(second.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Text(second), HasSubstr("is of generation 4, this rank of generation 5"));
  EXPECT_EQ(ConnectTwo(base, other_job).second.code(), absl::StatusCode::kPermissionDenied);
  const CommOptions patient = {.generation = 4};
  EXPECT_EQ(ConnectTwo(patient, patient).second, absl::OkStatus());
}

TEST(ConnectTest, BadAddressesAndTakenNamesAreNamed) {
  EXPECT_FALSE(TcpListener::Create("no.such.host.invalid").ok());
  auto listener = TcpListener::Create("127.0.0.1");
  const std::vector<std::string> addresses = {"nonsense", listener->address()};
  const auto bad = ConnectTcp(*std::move(listener), addresses, 1);
  EXPECT_EQ(bad.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Text(bad.status()), HasSubstr("\"nonsense\""));

  auto alone = ConnectShm(ShmName("taken"), 0, 1);
  ASSERT_TRUE(alone.ok()) << alone.status();
  EXPECT_EQ(ConnectShm(ShmName("taken"), 0, 1).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(ConnectShm(std::string(200, 'x'), 0, 1).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace omni
