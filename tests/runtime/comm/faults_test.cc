// A rank that is killed, stopped or hangs while the others work in many groups: all of them end
// within the deadline and a second, and say who it was and what it was doing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "runtime/base/status.h"
#include "tests/support/in_time.h"
#include "tests/support/run_ranks.h"

namespace omni {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(60);
constexpr absl::Duration kDeadline = absl::Seconds(1);
constexpr absl::Duration kLongDeadline = absl::Seconds(60);  // a dead rank is known without
constexpr int32_t kSize = 4, kFaultyRound = 3;
constexpr char kFatal[] = "backward chunk 1 microbatch 7";

TensorView ViewOf(std::vector<float>& data) {
  return TensorView::Dense(data.data(), DType::kFloat32, DeviceKind::kCpu,
                           {static_cast<int64_t>(data.size())});
}

void Print(absl::string_view line) {
  std::printf("%.*s\n", static_cast<int>(line.size()), line.data());
  std::fflush(stdout);
}

bool Dies(const std::string& kind) { return absl::StartsWith(kind, "kill"); }

CommOptions OptionsFor(const std::string& kind) {
  CommOptions options{.deadline = Dies(kind) ? kLongDeadline : kDeadline};
  if (kind == "hang") options.query_deadline = kPatience;  // all answer, if slowly
  return options;
}

void Fault(Communicator& world, const std::string& kind) {
  world.FlushActivity();
  if (kind != "killatonce") absl::SleepFor(absl::Milliseconds(400));  // the others wait for it
  Print(absl::StrCat(absl::ToUnixNanos(absl::Now())));
  if (Dies(kind)) raise(SIGKILL);
  if (kind == "stop") raise(SIGSTOP);
  absl::SleepFor(absl::Minutes(5));
}

// A mesh of two by two: rows {0, 1} and {2, 3}, columns {0, 2} and {1, 3}.
struct Mesh {
  std::unique_ptr<Communicator> row, column;
};

absl::StatusOr<Mesh> MakeMesh(Communicator& world) {
  Mesh mesh;
  for (const int32_t first : {0, 1}) {
    OMNI_ASSIGN_OR_RETURN(auto row, world.Split({2 * first, 2 * first + 1}, "row"));
    if (row != nullptr) mesh.row = std::move(row);
    OMNI_ASSIGN_OR_RETURN(auto column, world.Split({first, first + 2}, "column"));
    if (column != nullptr) mesh.column = std::move(column);
  }
  return mesh;
}

absl::Status Work(Communicator& world, Mesh& mesh, const std::string& kind, bool is_victim,
                  bool is_large) {
  std::vector<float> data(is_large ? 500000 : 100, 1.0f), other(data.size());
  for (int32_t round = 0;; ++round) {
    world.SetActivity(absl::StrCat("forward microbatch ", round));
    OMNI_RETURN_IF_ERROR(mesh.row->AllReduce(ViewOf(data), ReduceOp::kMax)->WaitHost(kPatience));
    if (is_victim && round == kFaultyRound) {
      world.SetActivity(kFatal);
      Fault(world, kind);
    }
    OMNI_RETURN_IF_ERROR(mesh.column->AllReduce(ViewOf(data), ReduceOp::kMax)->WaitHost(kPatience));
    world.SetActivity("exchange");
    mesh.row->GroupBegin();
    mesh.row->Send(ViewOf(data), 1 - mesh.row->rank());
    mesh.row->Recv(ViewOf(other), 1 - mesh.row->rank());
    OMNI_RETURN_IF_ERROR(mesh.row->GroupEnd()->WaitHost(kPatience));
    if (round % 2 == 1) OMNI_RETURN_IF_ERROR(world.Barrier()->WaitHost(kPatience));
  }
}

// argument: engine,name,kind,victim,size. Prints, as the victim, when its fault begins; as another
// rank when all was over, in nanoseconds, with the status, then the report, then "end".
int MeshProgram(int32_t rank, int32_t size, const std::string& argument) {
  const std::vector<std::string> parts = absl::StrSplit(argument, ',');
  const bool is_victim = absl::StrCat(rank) == parts[3];
  absl::Status status;
  std::vector<std::string> report;
  {
    auto world = test::JoinWorld(parts[0], parts[1], rank, size, OptionsFor(parts[2]));
    if (!world.ok()) return 2;
    auto mesh = MakeMesh(**world);
    if (!mesh.ok()) return 3;
    status = Work(**world, *mesh, parts[2], is_victim, parts[4] == "large");
    report = (*world)->FaultReport();
    // All groups have the one reason.
    if ((*world)->status() != status || mesh->row->status() != status) return 4;
    if (mesh->column->Barrier()->WaitHost(kPatience) != status) return 5;
  }
  Print(absl::StrCat(absl::ToUnixNanos(absl::Now()), " ", status.ToString()));
  for (const std::string& line : report) Print(line);
  Print("end");
  return 0;
}

struct Case {
  const char* engine;
  const char* kind;
  const char* size;
};

class FaultsTest : public testing::TestWithParam<Case> {};

// Shared memory is anonymous here, so it goes with its processes; a name would outlive them.
bool NamedMemoryExists() {
  for (const auto& entry : std::filesystem::directory_iterator("/dev/shm")) {
    if (absl::StrContains(entry.path().filename().string(), "omni")) return true;
  }
  return false;
}

// One job with a fault of `victim`; what of it took too long.
std::string RunWithFault(const Case& how, int32_t victim) {
  const std::string kind = how.kind, name = absl::StrCat("faults-", getpid(), "-", victim);
  absl::Duration longest;
  {
    test::RankProcesses ranks("mesh", kSize,
                              absl::StrJoin({std::string(how.engine), name, kind,
                                             absl::StrCat(victim), std::string(how.size)},
                                            ","));
    int64_t begin = 0;
    const std::string struck = ranks.ReadLine(victim);
    if (!absl::SimpleAtoi(struck, &begin)) return "the fault was not reached: " + struck;
    for (int32_t rank = 0; rank < kSize; ++rank) {
      if (rank == victim) continue;
      SCOPED_TRACE(absl::StrCat("rank ", rank));
      const std::pair<std::string, std::string> first =
          absl::StrSplit(ranks.ReadLine(rank), absl::MaxSplits(' ', 1));
      int64_t end = 0;
      EXPECT_TRUE(absl::SimpleAtoi(first.first, &end)) << first.first;
      longest = std::max(longest, absl::Nanoseconds(end - begin));
      const std::string& status = first.second;
      EXPECT_THAT(status, HasSubstr(absl::StrCat("at \"", kFatal, "\"")));
      if (Dies(kind)) {
        EXPECT_THAT(status, HasSubstr(absl::StrCat("rank ", victim, " of world died")));
      } else {
        EXPECT_THAT(status, HasSubstr(absl::StrCat("rank ", victim, " is behind: #")));
        EXPECT_THAT(status,
                    HasSubstr(absl::StrCat("; rank ", victim,
                                           kind == "stop" ? " has not answered" : " is at \"")));
      }
      std::vector<std::string> report;
      for (std::string line = ranks.ReadLine(rank); line != "end"; line = ranks.ReadLine(rank)) {
        EXPECT_FALSE(line.empty());
        if (line.empty()) return "";
        report.push_back(line);
      }
      const std::string text = absl::StrJoin(report, "\n");
      EXPECT_THAT(status, HasSubstr(report.front()));
      EXPECT_THAT(text, HasSubstr(absl::StrCat("this rank, ", rank, ", is at \"")));
      // The calls of all groups in their order; the last has not made it.
      const size_t calls = text.find("#1 group=world split done");
      const size_t row = text.find(" group=world/row{", calls);
      const size_t column = text.find(" group=world/column{", calls);
      EXPECT_TRUE(row < column && column < text.find(" group=world barrier", calls)) << text;
      EXPECT_THAT(report.back(), HasSubstr(" failed after "));
      if (kind != "killatonce") {
        EXPECT_THAT(report.back(), HasSubstr(", waiting for rank "));
      }
      EXPECT_EQ(ranks.Wait(rank), 0);
    }
  }
  EXPECT_FALSE(test::SocketsExist(name));
  const absl::Duration limit = (Dies(kind) ? absl::ZeroDuration() : kDeadline) + absl::Seconds(1);
  if (longest < limit) return "";
  return absl::StrCat("ended ", absl::FormatDuration(longest), " after the fault of rank ", victim);
}

TEST_P(FaultsTest, AllOthersEndInTimeAndNameRankAndActivity) {
  for (int32_t victim = 0; victim < kSize; ++victim) {
    SCOPED_TRACE(absl::StrCat("victim ", victim));
    test::ExpectInTime([&] { return RunWithFault(GetParam(), victim); });
  }
  EXPECT_FALSE(NamedMemoryExists());
}

INSTANTIATE_TEST_SUITE_P(Engines, FaultsTest,
                         testing::Values(Case{"shm", "kill", "small"}, Case{"shm", "stop", "small"},
                                         Case{"shm", "hang", "small"},
                                         Case{"shm", "killatonce", "small"},
                                         Case{"tcp", "kill", "small"}, Case{"tcp", "stop", "small"},
                                         Case{"tcp", "hang", "small"}, Case{"shm", "kill", "large"},
                                         Case{"tcp", "stop", "large"}),
                         [](const auto& info) {
                           return absl::StrCat(info.param.engine, "_", info.param.kind, "_",
                                               info.param.size);
                         });

}  // namespace
}  // namespace omni

int main(int argc, char** argv) {
  omni::test::RunAsRankIfSpawned({{"mesh", omni::MeshProgram}});
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
