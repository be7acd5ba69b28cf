// Ranks as processes that are killed and stopped: the survivors must know, soon, who it was.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "tests/support/in_time.h"
#include "tests/support/run_ranks.h"

namespace omni {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr absl::Duration kPatience = absl::Seconds(60);
constexpr absl::Duration kDeadline = absl::Milliseconds(1500);  // of who waits for a stopped rank
constexpr absl::Duration kLongDeadline = absl::Seconds(60);     // a dead one is known without

TensorView ViewOf(std::vector<float>& data) {
  return TensorView::Dense(data.data(), DType::kFloat32, DeviceKind::kCpu,
                           {static_cast<int64_t>(data.size())});
}

// argument: engine,name,what,fault. Prints "ready", then all-reduces (or waits) until an error, and
// prints when it came, in nanoseconds of the wall clock, and what it was.
int LoopProgram(int32_t rank, int32_t size, const std::string& argument) {
  const std::vector<std::string> parts = absl::StrSplit(argument, ',');
  auto joined = test::JoinWorld(parts[0], parts[1], rank, size,
                                {.deadline = parts[3] == "stop" ? kDeadline : kLongDeadline,
                                 .query_deadline = absl::Seconds(1)});
  if (!joined.ok()) {
    std::printf("%s\n", joined.status().ToString().c_str());
    return 2;
  }
  Communicator& comm = **joined;
  const bool only_neighbours = parts[2] == "neighbours";
  std::vector<float> data(parts[2] == "small" ? 100 : 3000000, 1.0f), other(data.size());
  absl::Status status;
  for (int64_t step = 0; status.ok(); ++step) {
    if (only_neighbours) {
      comm.GroupBegin();
      comm.Send(ViewOf(data), (rank + 1) % size);
      comm.Recv(ViewOf(other), (rank + size - 1) % size);
      status = comm.GroupEnd()->WaitHost(kPatience);
    } else {
      status = comm.AllReduce(ViewOf(data), ReduceOp::kMax)->WaitHost(kPatience);
    }
    if (step == 2) {
      std::printf("ready\n");
      std::fflush(stdout);
    }
  }
  std::printf("%lld %s\n", static_cast<long long>(absl::ToUnixNanos(absl::Now())),
              status.ToString().c_str());
  const absl::Status later = comm.Barrier()->WaitHost(kPatience);
  return later == status ? 0 : 3;
}

std::string JobName(const std::string& test) { return absl::StrCat("test-", getpid(), "-", test); }

struct Case {
  const char* engine;
  const char* what;
};

class ProcessesTest : public testing::TestWithParam<Case> {
 protected:
  std::string Argument(const std::string& name, const char* fault) {
    return absl::StrCat(GetParam().engine, ",", name, ",", GetParam().what, ",", fault);
  }
};

TEST_P(ProcessesTest, SurvivorsNameTheKilledWithinASecond) {
  constexpr int32_t kSize = 4;
  for (const int32_t victim : {2, 0}) {
    test::ExpectInTime([&]() -> std::string {
      const std::string name = JobName(absl::StrCat("kill", victim, GetParam().engine));
      absl::Duration longest;
      {
        test::RankProcesses ranks("loop", kSize, Argument(name, "kill"));
        for (int32_t rank = 0; rank < kSize; ++rank) EXPECT_EQ(ranks.ReadLine(rank), "ready");
        const absl::Time killed = absl::Now();
        ranks.Signal(victim, SIGKILL);
        for (int32_t rank = 0; rank < kSize; ++rank) {
          if (rank == victim) continue;
          const std::pair<std::string, std::string> line =
              absl::StrSplit(ranks.ReadLine(rank), absl::MaxSplits(' ', 1));
          EXPECT_THAT(line.second, HasSubstr("ABORTED"));
          EXPECT_THAT(line.second, HasSubstr(absl::StrCat("rank ", victim, " of world died")));
          int64_t when = 0;
          EXPECT_TRUE(absl::SimpleAtoi(line.first, &when)) << line.first;
          longest = std::max(longest, absl::FromUnixNanos(when) - killed);
          EXPECT_EQ(ranks.Wait(rank), 0);
        }
        EXPECT_EQ(ranks.Wait(victim), 128 + SIGKILL);
      }
      EXPECT_FALSE(test::SocketsExist(name));
      if (longest < absl::Seconds(1)) return "";
      return absl::StrCat("rank ", victim, " was killed and named after ",
                          absl::FormatDuration(longest));
    });
  }
}

TEST_P(ProcessesTest, SurvivorsNameTheStoppedAtTheDeadline) {
  constexpr int32_t kSize = 4, kVictim = 1;
  test::ExpectInTime([&]() -> std::string {
    const std::string name = JobName(absl::StrCat("stop", GetParam().engine));
    test::RankProcesses ranks("loop", kSize, Argument(name, "stop"));
    for (int32_t rank = 0; rank < kSize; ++rank) {
      // Until then the deadline holds as well.
      if (const std::string line = ranks.ReadLine(rank); line != "ready")
        return "not ready: " + line;
    }
    ranks.Signal(kVictim, SIGSTOP);
    for (int32_t rank = 0; rank < kSize; ++rank) {
      if (rank == kVictim) continue;
      const std::string line = ranks.ReadLine(rank);
      EXPECT_THAT(line, HasSubstr("DEADLINE_EXCEEDED"));
      EXPECT_THAT(line, HasSubstr(absl::StrCat("rank ", kVictim, " is behind")));
      EXPECT_THAT(line, HasSubstr("has not answered: stopped or cut off"));
      EXPECT_EQ(ranks.Wait(rank), 0);
    }
    // Woken again, it hears what it missed.
    ranks.Signal(kVictim, SIGCONT);
    EXPECT_THAT(ranks.ReadLine(kVictim), HasSubstr("is behind"));
    return "";
  });
}

INSTANTIATE_TEST_SUITE_P(Engines, ProcessesTest,
                         testing::Values(Case{"shm", "large"}, Case{"shm", "small"},
                                         Case{"shm", "neighbours"}, Case{"tcp", "large"},
                                         Case{"tcp", "small"}, Case{"tcp", "neighbours"}),
                         [](const auto& info) {
                           return absl::StrCat(info.param.engine, "_", info.param.what);
                         });

}  // namespace
}  // namespace omni

int main(int argc, char** argv) {
  omni::test::RunAsRankIfSpawned({{"loop", omni::LoopProgram}});
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
